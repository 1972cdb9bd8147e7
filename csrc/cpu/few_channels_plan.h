// How a forward problem is run.
#pragma once

#include "cpu/few_channels_packed.h"
#include "cpu/few_channels_row_windows.h"
#include "cpu/few_channels_rows.h"
#include "cpu/integers.h"

namespace cmf {
namespace CMF_ISA {

constexpr int kVector = kLanes<float>;
constexpr int64_t kFrameFloats = 24 * 1024;    // of x that an item frames, about
constexpr int64_t kScratchFloats = 24 * 1024;  // of the convolution's output in scratch, about
constexpr int64_t kTileFloats = 24 * 1024;     // of transformed tiles, about
// y past the caches from this many bytes on: what is smaller may be read from there
constexpr int64_t kStreamBytes = 2 << 20;

enum class Way {
  kTiles,       // as kWindows, by few_channels_winograd.h
  kWindows,     // maxima of 2 x 2 in registers
  kRowWindows,  // the same in rows of planes, by few_channels_row_windows.h
  kLines,       // no pooling: from registers into y
  kPooled,      // maxima of rows in scratch
  kEpilogue,    // rows in scratch, and band_epilogue.h
  kRows,        // rows of planes in scratch, by few_channels_rows.h, and act_pool2d_worker.h
};

struct Plan {
  Way way;
  bool direct;  // values are stored into y at once
  bool planes;  // through scratch, by few_channels_planes.h; by band_epilogue.h else
  bool stream;
  int columns;   // of a block of lines
  int64_t rows;  // of y in an item

  // y is written from registers; through scratch else
  bool in_registers() const { return direct || way == Way::kRowWindows; }
};

inline int64_t z_rows(const ActPool2dProblem& p, int64_t y_rows) {
  return (y_rows - 1) * p.pool_stride_height + p.pool_height;
}

inline int64_t tile_groups(const ActPool2dProblem& p) {
  return (p.out_width + kTilesTogether - 1) / kTilesTogether;
}

// Floats of the transformed tiles of a row of windows.
inline int64_t tile_row_floats(const ConvActPool2dProblem& problem) {
  return tile_groups(problem.pool) * kFrequencies * problem.in_channels * kTilesTogether;
}

inline Plan make_plan(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                      int threads) {
  const ActPool2dProblem& p = problem.pool;
  const Activation activation = static_cast<Activation>(p.activation);
  const bool quick = activation == Activation::kIdentity || activation == Activation::kRelu ||
                     (activation == Activation::kLeakyRelu && p.activation_param > 0);
  const bool maxima = p.pool == Pool::kMax && p.monotone && !tensors.preactivation;
  const bool twos = p.pool_height == 2 && p.pool_width == 2 && p.pool_stride_height == 2 &&
                    p.pool_stride_width == 2 && p.pool_pad_height == 0 && p.pool_pad_width == 0 &&
                    2 * p.out_height <= p.height && 2 * p.out_width <= p.width;
  Plan plan;
  plan.way = maxima && twos ? Way::kWindows : maxima ? Way::kPooled : Way::kEpilogue;
  const bool threes = problem.kernel_height == 3 && problem.kernel_width == 3 &&
                      problem.stride_height == 1 && problem.stride_width == 1;
  if (plan.way == Way::kWindows && threes && problem.in_channels >= kLeastWinograd &&
      problem.in_channels <= kMostWinograd &&
      transforms_finite(static_cast<const float*>(tensors.w),
                        p.channels * problem.in_channels * 9)) {
    plan.way = Way::kTiles;
  }
  if (plan.way == Way::kWindows && quick && !p.channels_last && problem.stride_width == 1 &&
      takes_row_windows(p.out_width, p.channels)) {
    plan.way = Way::kRowWindows;
  }
  if (p.pool == Pool::kNone && quick) plan.way = Way::kLines;
  if (plan.way == Way::kEpilogue && !p.channels_last && p.channels <= kRowFilters &&
      problem.stride_width == 1 && p.width >= kLanes<float>) {
    plan.way = Way::kRows;
  }
  plan.direct = p.channels_last && quick && plan.way != Way::kEpilogue;
  plan.planes = !p.channels_last && quick && plan.way != Way::kEpilogue && plan.way != Way::kRows &&
                plan.way != Way::kRowWindows;
  const int64_t y_bytes = p.batch * p.channels * p.out_height * p.out_width * 4;
  bool aligned = reinterpret_cast<uintptr_t>(tensors.y) % CMF_VECTOR_BYTES == 0;
  // blocks of channels are whole lines, or all that a pixel has
  if (plan.direct) {
    aligned = aligned && (p.channels % kLineFloats == 0 ||
                          (p.channels <= kBlockLanes && p.channels % kVector == 0));
  }
  // vectors along several planes in turn: whole rows of them, and planes too
  if (plan.planes) aligned = aligned && kVector == kLineFloats && p.out_width % kVector == 0;
  plan.stream = (plan.direct || plan.planes) && aligned && y_bytes >= kStreamBytes;
  plan.columns = line_columns(p.width);
  const int64_t frame_row = (problem.width + 2 * problem.pad_width) * problem.in_channels;
  const int64_t x_rows = p.pool_stride_height * problem.stride_height;
  int64_t rows = kFrameFloats / (frame_row * x_rows);
  if (!plan.in_registers()) {
    const bool lines =
        plan.way == Way::kEpilogue || plan.way == Way::kLines || plan.way == Way::kRows;
    const int64_t row = lines ? p.width * p.pool_stride_height : p.out_width;
    const int64_t lanes = plan.way == Way::kRows ? kRowFilters : kBlockLanes;
    rows = least(rows, kScratchFloats / (row * lanes));
  }
  if (plan.way == Way::kTiles) rows = least(rows, kTileFloats / tile_row_floats(problem));
  rows = most(1, least(rows, p.out_height));
  // small batches: rows for every thread
  while (rows > 4 && p.batch * ((p.out_height + rows - 1) / rows) < 4 * threads) rows /= 2;
  const int64_t bands = (p.out_height + rows - 1) / rows;
  plan.rows = (p.out_height + bands - 1) / bands;
  return plan;
}

// Outputs along a row that a frame has inputs for: short rows are read by whole blocks.
inline int64_t frame_columns(const ConvActPool2dProblem& problem, const Plan& plan) {
  const ActPool2dProblem& p = problem.pool;
  if (plan.way == Way::kRowWindows) return most(p.width, 2 * kWindowsTogether);
  if (plan.way != Way::kTiles) return most(p.width, kLineMost);
  return most(most(p.width, 2 * tile_groups(p) * kTilesTogether), kLineMost);
}

inline bool frame_planar(const ConvActPool2dProblem& problem, const Plan& plan) {
  return plan.way == Way::kTiles || plan.way == Way::kRows || plan.way == Way::kRowWindows ||
         !problem.x_channels_last;
}

}  // namespace CMF_ISA
}  // namespace cmf
