// How the work of batch normalization is cut: pieces of the positions, and threads.
//
// Each direction reduces every channel to two numbers, finishes those, and goes over the positions
// again. The numbers are added over pieces that depend on the problem alone, in order: the same
// bits for any number of threads, however these share the work.
#pragma once

#include "common/batch_norm_act_problem.h"
#include "common/dtype.h"
#include "cpu/scratch.h"

namespace cmf {
namespace CMF_ISA {

struct Range {
  int64_t first, last;
};

CMF_HOST_DEVICE Range share(int64_t count, int64_t part, int64_t parts) {
  return {count * part / parts, count * (part + 1) / parts};
}

// Some of a channel's positions: rows of pixels, or runs of one length in images behind each other.
struct Piece {
  int64_t start;  // pixels: the first row; planes: where the first channel's first run begins
  int64_t count;  // pixels: rows; planes: elements of a run
  int64_t runs;

  double size() const { return static_cast<double>(count * runs); }
};

class Pieces {
 public:
  explicit Pieces(const BatchNormActProblem& p)
      : pixels_(p.channels_last),
        rows_(p.channels_last ? p.batch * p.plane : p.plane),
        images_(p.channels_last ? 1 : p.batch),
        stride_(p.channels * p.plane) {
    if (pixels_) {
      while (2 * cuts_ <= kMostPieces && 2 * cuts_ * kLeastPixels <= rows_) cuts_ *= 2;
    } else if (p.plane > kLongestRun) {
      cuts_ = (p.plane + kLongestRun - 1) / kLongestRun;
    } else if (p.plane < kShortRuns) {
      together_ = kShortRuns / (p.plane < kLeastRun ? kLeastRun : p.plane);
    }
    count = (images_ + together_ - 1) / together_ * cuts_;
  }

  Piece operator[](int64_t i) const {
    const Range range = share(rows_, i % cuts_, cuts_);
    const int64_t image = i / cuts_ * together_;
    const int64_t left = images_ - image;
    return {image * stride_ + range.first, range.last - range.first,
            left < together_ ? left : together_};
  }

  int64_t count;

 private:
  static constexpr int64_t kMostPieces = 64;
  static constexpr int64_t kLeastPixels = 32;
  static constexpr int64_t kLongestRun = 32768;
  static constexpr int64_t kShortRuns = 2048;  // elements of runs that make a piece together
  static constexpr int64_t kLeastRun = 16;     // a run of fewer elements takes as long as of these

  bool pixels_;
  int64_t rows_;
  int64_t images_;
  int64_t stride_;
  int64_t cuts_ = 1;      // of an image's rows
  int64_t together_ = 1;  // images
};

// The two numbers of each piece and channel: piece i of channel c at [i, 0 or 1, c - first].
struct Partial {
  double* data;
  int64_t first;
  int64_t width;

  double* row(int64_t piece, int number, int64_t channel) const {
    return data + (piece * 2 + number) * width + (channel - first);
  }
};

// A parallel region costs about as much as this many elements take one thread.
constexpr int64_t kNormElementsPerThread = 8192;
constexpr int64_t kShortChannel = 4096;  // elements: eight channels are 128 KiB

// pass.reduce(pieces, channels, partial), pass.finish(channels, partial), pass.apply(pieces,
// channels), each for all pieces and channels. False where scratch memory could not be had.
template <class Pass>
bool run_phases(const BatchNormActProblem& p, const Pieces& pieces, int threads, const Pass& pass) {
  const int64_t most = p.batch * p.channels * p.plane / kNormElementsPerThread;
  int64_t parts = most < threads ? (most > 1 ? most : 1) : threads;
  // A granule of channels stays in the cache from the first phase to the last. Pixels go by cache
  // lines; of short channels there are several, whose chains of dependent sums overlap.
  const int64_t granule = p.channels_last ? 64 : p.batch * p.plane <= kShortChannel ? 8 : 1;
  const int64_t granules = (p.channels + granule - 1) / granule;
  const bool by_channel = p.channels_last ? pieces.count < 2 * parts && granules >= parts
                                          : granules % parts == 0 || granules >= 8 * parts;
  const int64_t units = by_channel ? granules : pieces.count;
  if (parts > units) parts = units;
  const int64_t width = by_channel ? (granule < p.channels ? granule : p.channels) : p.channels;
  const int64_t size = pieces.count * 2 * width;
  Scratch<double> memory;
  if (!memory.allocate(by_channel ? parts * size : size)) return false;
  const Range all_pieces = {0, pieces.count};
  const Range all_channels = {0, p.channels};
  const int team = static_cast<int>(parts);
  (void)team;  // unused where there is no OpenMP
#if defined(_OPENMP)
#pragma omp parallel num_threads(team) if (team > 1)
#endif
  {
    if (by_channel) {
#if defined(_OPENMP)
#pragma omp for schedule(static)
#endif
      for (int64_t part = 0; part < parts; ++part) {
        const Range mine = share(granules, part, parts);
        for (int64_t g = mine.first; g < mine.last; ++g) {
          const int64_t end = (g + 1) * granule;
          const Range channels = {g * granule, end < p.channels ? end : p.channels};
          const Partial partial = {memory.data + part * size, channels.first,
                                   channels.last - channels.first};
          pass.reduce(all_pieces, channels, partial);
          pass.finish(channels, partial);
          pass.apply(all_pieces, channels);
        }
      }
    } else {
      const Partial partial = {memory.data, 0, width};
#if defined(_OPENMP)
#pragma omp for schedule(static)
#endif
      for (int64_t part = 0; part < parts; ++part) {
        pass.reduce(share(pieces.count, part, parts), all_channels, partial);
      }
#if defined(_OPENMP)
#pragma omp for schedule(static)
#endif
      for (int64_t part = 0; part < parts; ++part) {
        pass.finish(share(p.channels, part, parts), partial);
      }
#if defined(_OPENMP)
#pragma omp for schedule(static)
#endif
      for (int64_t part = 0; part < parts; ++part) {
        pass.apply(share(pieces.count, part, parts), all_channels);
      }
    }
  }
  return true;
}

}  // namespace CMF_ISA
}  // namespace cmf
