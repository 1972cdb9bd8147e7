#include "cpu/batch_norm_act.h"

#include <math.h>

#include "cpu/batch_norm_moments.h"
#include "cpu/batch_norm_phases.h"
#include "cpu/batch_norm_rows.h"

namespace cmf {
namespace CMF_ISA {
namespace {

// Room for `kRows` numbers a channel, and what z = (x - mean) · scale + shift is made of.
class Channels {
 public:
  bool allocate(int64_t channels, int rows) {
    channels_ = channels;
    return memory_.allocate(channels * rows);
  }
  float* row(int i) const { return memory_.data + i * channels_; }

 private:
  Scratch<float> memory_;
  int64_t channels_ = 0;
};

enum { kScale, kShift, kForwardRows, kSlope = kForwardRows, kOffset, kBackwardRows };

// The same in both directions, so that an activation's kinks are where they were.
void affine_of(const float* statistics, const float* weight, const float* bias, int64_t channels,
               int64_t c, const Channels& out) {
  const float scale = statistics[kInvStd * channels + c] * (weight ? weight[c] : 1.0f);
  const double tail = statistics[kMeanTail * channels + c];
  out.row(kScale)[c] = scale;
  out.row(kShift)[c] = static_cast<float>((bias ? bias[c] : 0.0f) - tail * scale);
}

PlaneRuns planes(const BatchNormActProblem& p, const Piece& piece) {
  return {piece.count, piece.runs, p.channels * p.plane};
}

struct Forward {
  const BatchNormActProblem& p;
  const BatchNormActForward& call;
  const Pieces& pieces;
  const BatchNormRows& rows;
  const Channels& values;
  BatchNormAffine affine;

  void reduce(Range positions, Range channels, const Partial& partial) const {
    for (int64_t i = positions.first; i < positions.last; ++i) {
      const Piece piece = pieces[i];
      double* sums = partial.row(i, 0, channels.first);
      double* squares = partial.row(i, 1, channels.first);
      if (p.channels_last) {
        pixel_moments(call.x + piece.start * p.channels, piece.count, p.channels, channels.first,
                      channels.last, sums, squares);
        continue;
      }
      for (int64_t c = channels.first; c < channels.last; ++c) {
        const Moments moments = plane_moments(call.x + piece.start + c * p.plane, piece.count,
                                              piece.runs, p.channels * p.plane);
        *sums++ = moments.sum;
        *squares++ = moments.squares;
      }
    }
  }

  void finish(Range channels, const Partial& partial) const {
    const int64_t first = channels.first;
    double* const sums = partial.row(0, 0, first);
    double* const squares = partial.row(0, 1, first);
    double count = pieces[0].size();
    for (int64_t i = 1; i < pieces.count; ++i) {
      const double more = pieces[i].size();
      merge_moments(sums, squares, count, partial.row(i, 0, first), partial.row(i, 1, first), more,
                    channels.last - first);
      count += more;
    }
    for (int64_t c = first; c < channels.last; ++c) {
      const Moments total = {sums[c - first], squares[c - first]};
      const double mean = total.sum / count;
      const float head = static_cast<float>(mean);
      call.statistics[kMean * p.channels + c] = head;
      call.statistics[kMeanTail * p.channels + c] = static_cast<float>(mean - head);
      call.statistics[kInvStd * p.channels + c] =
          static_cast<float>(1 / sqrt(total.squares / count + p.eps));
      if (call.running_mean) {
        const double keep = 1 - call.momentum;
        call.running_mean[c] =
            static_cast<float>(call.momentum * mean + keep * call.running_mean[c]);
        call.running_var[c] = static_cast<float>(call.momentum * (total.squares / (count - 1)) +
                                                 keep * call.running_var[c]);
      }
      affine_of(call.statistics, call.weight, call.bias, p.channels, c, values);
    }
  }

  void apply(Range positions, Range channels) const {
    // backwards: what was read last is still in the cache
    for (int64_t i = positions.last - 1; i >= positions.first; --i) {
      const Piece piece = pieces[i];
      if (p.channels_last) {
        const int64_t start = piece.start * p.channels;
        rows.pixel_forward(affine, call.x + start, call.y + start, piece.count, p.channels,
                           channels.first, channels.last);
        continue;
      }
      for (int64_t c = channels.first; c < channels.last; ++c) {
        const int64_t start = piece.start + c * p.plane;
        rows.plane_forward(affine.from(c), call.x + start, call.y + start, planes(p, piece));
      }
    }
  }
};

struct Backward {
  const BatchNormActProblem& p;
  const BatchNormActBackward& call;
  const Pieces& pieces;
  const BatchNormRows& rows;
  const Channels& values;
  BatchNormAffine affine;
  BatchNormGradient gradient;

  void reduce(Range positions, Range channels, const Partial& partial) const {
    for (int64_t i = positions.first; i < positions.last; ++i) {
      const Piece piece = pieces[i];
      double* sums = partial.row(i, 0, channels.first);
      double* dots = partial.row(i, 1, channels.first);
      for (int64_t c = 0; c < channels.last - channels.first; ++c) sums[c] = dots[c] = 0;
      if (p.channels_last) {
        const int64_t start = piece.start * p.channels;
        rows.pixel_sums(affine, call.x + start, call.dy + start, piece.count, p.channels,
                        channels.first, channels.last, sums, dots);
        continue;
      }
      for (int64_t c = channels.first; c < channels.last; ++c) {
        const int64_t start = piece.start + c * p.plane;
        rows.plane_sums(affine.from(c), call.x + start, call.dy + start, planes(p, piece), sums++,
                        dots++);
      }
    }
  }

  void finish(Range channels, const Partial& partial) const {
    const double count = static_cast<double>(p.batch * p.plane);
    const int64_t first = channels.first;
    double* const sums = partial.row(0, 0, first);
    double* const dots = partial.row(0, 1, first);
    for (int64_t i = 1; i < pieces.count; ++i) {
      const double* const more_sums = partial.row(i, 0, first);
      const double* const more_dots = partial.row(i, 1, first);
      for (int64_t c = 0; c < channels.last - first; ++c) {
        sums[c] += more_sums[c];
        dots[c] += more_dots[c];
      }
    }
    for (int64_t c = first; c < channels.last; ++c) {
      const double sum = sums[c - first];
      const double tail = call.statistics[kMeanTail * p.channels + c];
      const double invstd = call.statistics[kInvStd * p.channels + c];
      const double scale = values.row(kScale)[c];
      const double dot = dots[c - first] - tail * sum;
      if (call.dbias) call.dbias[c] = static_cast<float>(sum);
      if (call.dweight) call.dweight[c] = static_cast<float>(dot * invstd);
      // dx = scale (dz - mean(dz) - xhat mean(dz xhat)), xhat = (x - mean) invstd
      const double slope = -scale * invstd * invstd * dot / count;
      values.row(kSlope)[c] = static_cast<float>(slope);
      values.row(kOffset)[c] = static_cast<float>(-scale * sum / count - slope * tail);
    }
  }

  void apply(Range positions, Range channels) const {
    if (!call.dx) return;
    for (int64_t i = positions.last - 1; i >= positions.first; --i) {
      const Piece piece = pieces[i];
      if (p.channels_last) {
        const int64_t start = piece.start * p.channels;
        rows.pixel_gradient(affine, gradient, call.x + start, call.dy + start, call.dx + start,
                            piece.count, p.channels, channels.first, channels.last);
        continue;
      }
      for (int64_t c = channels.first; c < channels.last; ++c) {
        const int64_t start = piece.start + c * p.plane;
        rows.plane_gradient(affine.from(c), gradient.from(c), call.x + start, call.dy + start,
                            call.dx + start, planes(p, piece));
      }
    }
  }
};

}  // namespace

bool batch_norm_act_forward(const BatchNormActProblem& p, const BatchNormActForward& call,
                            int threads) {
  Channels values;
  if (!values.allocate(p.channels, kForwardRows)) return false;
  const Pieces pieces(p);
  const Forward pass = {p,
                        call,
                        pieces,
                        batch_norm_rows(p.activation),
                        values,
                        {call.statistics + kMean * p.channels, values.row(kScale),
                         values.row(kShift), static_cast<float>(p.activation_param)}};
  return run_phases(p, pieces, threads, pass);
}

bool batch_norm_act_backward(const BatchNormActProblem& p, const BatchNormActBackward& call,
                             int threads) {
  Channels values;
  if (!values.allocate(p.channels, kBackwardRows)) return false;
  for (int64_t c = 0; c < p.channels; ++c) {
    affine_of(call.statistics, call.weight, call.bias, p.channels, c, values);
  }
  const Pieces pieces(p);
  const Backward pass = {p,
                         call,
                         pieces,
                         batch_norm_rows(p.activation),
                         values,
                         {call.statistics + kMean * p.channels, values.row(kScale),
                          values.row(kShift), static_cast<float>(p.activation_param)},
                         {values.row(kSlope), values.row(kOffset)}};
  return run_phases(p, pieces, threads, pass);
}

}  // namespace CMF_ISA
}  // namespace cmf
