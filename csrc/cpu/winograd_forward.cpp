// y = pool(act(x * w + bias)) with m·m outputs of a filter from alpha·alpha multiplications.
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cpu/groups.h"
#include "cpu/winograd_worker.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;

// Tiles that share transformed weights: for more of them the products take as long as the way of
// those weights from memory.
constexpr int64_t kMostReadingTiles = 64;

// Floats of a transformed tile, and of all transformed weights.
template <class W>
int64_t tile_floats(const WinogradChannels& channels) {
  return int64_t(channels.count()) * kV * W::kFrequencies;
}
template <class W>
int64_t weight_floats(const WinogradChannels& channels, int64_t k_blocks) {
  return k_blocks * W::kFrequencies * channels.weight_step(kWinogradColumns);
}

// A thread's part of the V that all share: some channel blocks of some bands.
template <class W>
void transform_part(WinogradWorker<W>& worker, int64_t bands, int64_t count, int64_t part,
                    int64_t team) {
  const int64_t last = bands * count * (part + 1) / team;
  for (int64_t i = bands * count * part / team; i < last;) {
    const int64_t c = i % count;
    const int64_t c_last = least(count, c + last - i);
    worker.transform_shared(i / count, c, c_last);
    i += c_last - c;
  }
}

template <class W>
bool forward(const ConvActPool2dProblem& p, const ConvForwardTensors& tensors, int threads) {
  WinogradChannels channels;
  if (!channels.prepare(p, W::kTaps)) return false;
  const TileStore store = tile_store(p.pool, W::kOutputs, tensors.index != nullptr);
  const int64_t k_blocks = divide_up(p.pool.channels, int64_t(kWinogradColumns));
  const WinogradBands bands(p.pool, W::kOutputs, store, tile_floats<W>(channels),
                            weight_floats<W>(channels, k_blocks), !tensors.prepared, threads);
  // few bands are shared by several threads, each with output channels of its own
  int64_t shares = bands.count() < threads ? (threads + bands.count() - 1) / bands.count() : 1;
  if (shares > k_blocks) shares = k_blocks;
  const int64_t items = bands.count() * shares;
  const int parts = items < threads ? static_cast<int>(items) : threads;
  // what several threads need is transformed once: it lies in the cache that they share once too
  const bool shared = shares > 1;
  Scratch<float> v;
  if (shared && !v.allocate(bands.count() * WinogradWorker<W>::data_floats(channels, bands))) {
    return false;
  }
  bool success = true;
#if defined(_OPENMP)
#pragma omp parallel num_threads(parts) if (parts > 1)
#endif
  {
    WinogradWorker<W> worker(p, tensors, channels, bands, store, v.data);
    const bool ready = worker.prepare((k_blocks + shares - 1) / shares);
    if (!ready) {
#if defined(_OPENMP)
#pragma omp atomic write
#endif
      success = false;
    }
#if defined(_OPENMP)
    const int64_t part = omp_get_thread_num();
    const int64_t team = omp_get_num_threads();
#else
    const int64_t part = 0;
    const int64_t team = 1;
#endif
    if (shared) {
      if (ready) transform_part(worker, bands.count(), channels.count(), part, team);
#if defined(_OPENMP)
#pragma omp barrier
#endif
    }
    // consecutive items: the next band's rows overlap with this one's
    const int64_t last = items * (part + 1) / team;
    for (int64_t item = items * part / team; ready && item < last; ++item) {
      const int64_t share = item / bands.count();
      const int64_t band = item % bands.count();
      const int64_t next = item + 1 < last && band + 1 < bands.count() ? band + 1 : band;
      worker.run(band, k_blocks * share / shares, k_blocks * (share + 1) / shares, next);
    }
  }
  return success;
}

template <class W>
bool forward_groups(const Groups& groups, const ConvForwardTensors& tensors, int threads) {
  const ConvActPool2dProblem& p = groups.problem();
  if (groups.count() == 1) return forward<W>(p, tensors, threads);
  const int64_t prepared = winograd_weight_floats(p, W::kOutputs);
  return prepared > 0 && groups.each(threads, [&](int64_t g, int threads_of_group) {
    return forward<W>(p, groups.tensors(tensors, g, prepared), threads_of_group);
  });
}

}  // namespace

bool winograd_transforms_weights(const ConvActPool2dProblem& p, int threads) {
  return with_winograd(p, winograd_outputs(p), [&](auto w) {
    typedef decltype(w) W;
    WinogradChannels channels;
    const int64_t k_blocks = divide_up(p.pool.channels, int64_t(kWinogradColumns));
    // each thread has output channels of its own
    return p.groups == 1 && k_blocks >= threads && channels.prepare(p, W::kTaps) &&
           WinogradBands::few_tiles(p.pool, W::kOutputs, tile_store(p.pool, W::kOutputs, true),
                                    tile_floats<W>(channels), weight_floats<W>(channels, k_blocks));
  });
}

bool winograd_reads_weights(const ConvActPool2dProblem& p, int threads) {
  const int64_t outputs = winograd_outputs(p);
  const int64_t tiles =
      p.pool.batch * divide_up(p.pool.height, outputs) * divide_up(p.pool.width, outputs);
  // F(4)'s are four times what the filters are; F(2)'s twice, which matters where several blocks of
  // tiles read them, and F(5)'s take longer to be made
  const bool pays = outputs == 4 || (outputs == 2 && tiles > kMostTileBlock);
  return pays && tiles <= kMostReadingTiles && winograd_transforms_weights(p, threads);
}

const char* winograd_refusal(const ConvActPool2dProblem& p, bool backward) {
  if (static_cast<DType>(p.pool.dtype) != DType::kFloat32) return "computes in float32 alone";
  if (const char* reason = groups_refusal(p)) return reason;
  if (p.dilation_height != 1 || p.dilation_width != 1) return "takes dilation 1 alone";
  if (winograd_taps(p) < 2) return "takes filters of 2 taps a stride or more alone";
  const WinogradParts parts = winograd_parts(p);
  if (parts.count() > 1 && (p.stride_height > 1 || p.stride_width > 1)) {
    return "takes filters of more than 5 taps at stride 1 alone";
  }
  if (parts.height > kMostParts || parts.width > kMostParts) {
    return "takes filters of at most 15 taps";
  }
  if (p.pool.index_itemsize > 1) return "takes windows of at most 255 elements";
  if (!backward) return nullptr;
  if (p.pool.saved == Saved::kInput) {
    return "has no backward of an activation that needs the convolution's output itself";
  }
  if (p.pad_height >= p.kernel_height || p.pad_width >= p.kernel_width) {
    return "has no backward of a padding as large as the filter";
  }
  return nullptr;
}

bool winograd_forward(const ConvActPool2dProblem& p, const ConvForwardTensors& tensors,
                      int threads) {
  const Groups groups(p);
  return with_winograd(groups.problem(), winograd_outputs(groups.problem()), [&](auto w) {
    return forward_groups<decltype(w)>(groups, tensors, threads);
  });
}

const char* winograd_f6_refusal(const ConvActPool2dProblem& p, bool backward) {
  if (backward) return "has no backward of its own";
  const bool fits =
      p.kernel_height == 3 && p.kernel_width == 3 && p.stride_height == 1 && p.stride_width == 1;
  return fits ? winograd_refusal(p, false) : "takes 3×3 filters at stride 1 alone";
}

bool winograd_f6_forward(const ConvActPool2dProblem& p, const ConvForwardTensors& tensors,
                         int threads) {
  return forward_groups<Winograd<6, 3>>(Groups(p), tensors, threads);
}

}  // namespace CMF_ISA
}  // namespace cmf
