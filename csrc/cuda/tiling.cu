#include "common/check.h"
#include "cuda/act_pool2d.h"
#include "cuda/tiling.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int64_t kEnoughThreads = int64_t{1} << 19;  // for any GPU to be busy
constexpr int64_t kMostSteps = 16;                    // of a thread, so that sums stay short
constexpr int kMostThreadsX = 64;                     // channels_last

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Threads along the channels: a power of two that leaves few of them idle.
int channel_threads(int64_t vectors) {
  for (int threads = kMostThreadsX; threads >= 8; threads /= 2) {
    if (vectors % threads == 0) return threads;
  }
  int threads = 1;
  while (threads < vectors && threads < kMostThreadsX) threads *= 2;
  return threads;
}

bool always_wide = false;

}  // namespace

void set_always_wide(bool wide) { always_wide = wide; }

Divider make_divider(int64_t divisor, int64_t most) {
  return Divider::make(divisor, always_wide ? INT64_MAX : most);
}

Tiling make_tiling(bool channels_last, int64_t batch, int64_t channels, int64_t cells,
                   int64_t cell_width, int vector) {
  Tiling t = {};
  t.channels_last = channels_last;
  t.cells = cells;
  t.cell_width = cell_width;
  t.images = channels_last ? batch : batch * channels;
  t.interleaved = channels_last ? channels : 1;
  const int64_t vectors = channels_last ? ceil_divide(channels, vector) : 1;
  const int64_t all = t.images * cells * vectors;
  int64_t steps = all / kEnoughThreads;
  steps = steps < 1 ? 1 : steps > kMostSteps ? kMostSteps : steps;
  t.by_cells = make_divider(cells, t.images * cells);
  t.by_cell_width = make_divider(cell_width, cells);
  t.by_channels = make_divider(channels, batch * channels);
  if (channels_last) {
    t.threads_x = channel_threads(vectors);
    t.threads_y = kThreads / t.threads_x;
    t.chunk = steps * t.threads_y;
    t.parts = ceil_divide(t.images * cells, t.chunk);
    t.channel_tiles = ceil_divide(vectors, t.threads_x);
    t.by_parts = make_divider(t.channel_tiles, t.parts * t.channel_tiles);
  } else {
    t.threads_x = cells <= 8 ? 8 : cells <= 128 ? 32 : kThreads;
    t.threads_y = kThreads / t.threads_x;
    t.chunk = steps * t.threads_x;
    t.parts = ceil_divide(cells, t.chunk);
    t.channel_tiles = 1;
    t.by_parts = make_divider(t.parts, t.images * t.parts + t.threads_y);
  }
  return t;
}

int64_t blocks_of(const Tiling& t) {
  if (t.channels_last) return t.parts * t.channel_tiles;
  return ceil_divide(t.images * t.parts, t.threads_y);
}

int64_t partial_sums_of(const Tiling& t) {
  return t.channels_last ? t.parts * t.interleaved : t.images * t.parts;
}

void check_act_pool2d(const ActPool2dProblem& p) {
  constexpr int64_t kMost = int64_t{1} << 29;  // so that no sum of two leaves 32 bits
  check_range("height", p.height, 1, kMost);
  check_range("width", p.width, 1, kMost);
  check_range("pool_height", p.pool_height, 1, kMost);
  check_range("pool_width", p.pool_width, 1, kMost);
  check_range("pool_stride_height", p.pool_stride_height, 1, kMost);
  check_range("pool_stride_width", p.pool_stride_width, 1, kMost);
}

}  // namespace CMF_ISA
}  // namespace cmf
