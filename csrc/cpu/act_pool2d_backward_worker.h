// What one thread needs to expand rows of a pooled gradient: used over a whole tensor, and over a
// band of one that lies in scratch memory.
#pragma once

#include <stdlib.h>
#include <string.h>

#include "common/activation.h"
#include "cpu/act_pool2d.h"
#include "cpu/act_row.h"
#include "cpu/pool_average.h"
#include "cpu/simd.h"
#include "cpu/simd_prefetch.h"
#include "cpu/unpool_rows.h"

namespace cmf {
namespace CMF_ISA {

constexpr int64_t kAhead = 256;  // elements of pooled rows that are prepared at once

template <class T>
class BackwardWorker {
 public:
  typedef ComputeType<T> C;

  BackwardWorker(const ActPool2dProblem& problem, const T* dy, const T* saved, const T* bias,
                 const char* index, T* dx)
      : p_(problem),
        vertical_(vertical_axis(problem)),
        horizontal_(horizontal_axis(problem)),
        channels_(problem.channels_last ? problem.channels : 1),
        row_length_(problem.width * channels_),
        out_length_(problem.out_width * channels_),
        dy_(dy),
        saved_(saved),
        bias_(bias),
        index_(index),
        dx_(dx),
        interior_(pool_interior(horizontal_)),
        planes_(averages_planes(problem)) {}

  ~BackwardWorker() { free(memory_); }
  BackwardWorker(const BackwardWorker&) = delete;
  BackwardWorker& operator=(const BackwardWorker&) = delete;

  bool prepare() {
    // the pooled rows that reach one input row: their gradients, and contiguous their codes, with
    // the margins that the vector form reads; a row of dx; the bias along a row
    window_rows_ = (p_.pool_height + p_.pool_stride_height - 1) / p_.pool_stride_height;
    if (window_rows_ > p_.out_height) window_rows_ = p_.out_height;
    vectors_ = !p_.channels_last && unpools_by_vectors(horizontal_, p_.index_itemsize);
    before_ = vectors_ ? unpool_margin_before<C>(horizontal_) : 0;
    slot_ = vectors_ ? before_ + unpool_reach_behind<C>(horizontal_) : out_length_;
    const bool pools = p_.pool != Pool::kNone;
    // Short rows are prepared some ahead: what was just stored in part can't be loaded whole at
    // once.
    ahead_ = vectors_ ? kAhead / out_length_ + 1 : 1;
    if (ahead_ > p_.out_height) ahead_ = p_.out_height;
    ring_rows_ = 1;
    while (ring_rows_ < window_rows_ + ahead_ - 1) ring_rows_ *= 2;
    const int64_t ring = pools ? ring_rows_ * slot_ : 0;
    const int64_t bias_row = p_.channels_last && p_.saved == Saved::kInput ? row_length_ : 0;
    const int64_t code_ring = vectors_ && p_.index_itemsize ? ring : 0;
    const int64_t row = planes_ ? p_.height * row_length_ : row_length_;
    const size_t values = static_cast<size_t>(ring + row + bias_row + p_.channels);
    const size_t rows = static_cast<size_t>(pools ? window_rows_ : 0) * sizeof(PooledRow<C>);
    // 0 everywhere: the margins stay so
    memory_ =
        static_cast<char*>(calloc(1, rows + values * sizeof(C) + static_cast<size_t>(code_ring)));
    if (!memory_) return false;
    rows_ = reinterpret_cast<PooledRow<C>*>(memory_);
    ring_ = reinterpret_cast<C*>(memory_ + rows);
    dx_row_ = ring_ + ring;
    bias_row_ = dx_row_ + row;
    row_sum_ = bias_row_ + bias_row;
    code_ring_ = reinterpret_cast<char*>(row_sum_ + p_.channels);
    for (int64_t i = 0; i < bias_row; i += channels_) {
      for (int64_t c = 0; c < channels_; ++c) {
        bias_row_[i + c] = bias_ ? to_compute<C>(bias_[c]) : C(-0.0);
      }
    }
    return true;
  }

  // Other bases for what the constructor took.
  void rebase(const T* dy, const T* saved, const char* index, T* dx) {
    dy_ = dy;
    saved_ = saved;
    index_ = index;
    dx_ = dx;
  }

  // Input rows h_first .. h_last - 1 of image or plane `plane`. Adds their bias gradient to
  // sums [channels] where that is not null.
  void run(int64_t plane, int64_t h_first, int64_t h_last, double* sums) {
    const C b = bias_ && !p_.channels_last ? to_compute<C>(bias_[plane % p_.channels]) : C(-0.0);
    const RowBias<C> bias = {b, p_.channels_last ? bias_row_ : nullptr};
    if (planes_ && h_last - h_first == p_.height) {
      run_plane(plane, bias, sums);
      return;
    }
    ready_ = -1;
    const int64_t last_p = pool_cover(vertical_, h_last - 1).last;
    for (int64_t h = h_first; h < h_last; ++h) {
      const int64_t x_offset = (plane * p_.height + h) * row_length_;
      C* row = direct_row(x_offset);
      if (p_.pool == Pool::kNone) {
        const T* saved = saved_ ? saved_ + x_offset : nullptr;
        backward_row(p_, dy_ + x_offset, saved, bias, row, row_length_);
        if (sums) add_to_sums(row, p_.width, sums);
      } else {
        const PoolCover cover = pool_cover(vertical_, h);
        for (int64_t p = cover.first; p < cover.last; ++p) {
          const int64_t start = p * p_.pool_stride_height - p_.pool_pad_height;
          if (p > ready_) prepare_rows(plane, p, last_p);
          const C* g = ring_ + slot_of(p) + before_;
          rows_[p - cover.first] = PooledRow<C>{g, codes_of(plane, p), (h - start) * p_.pool_width};
          // every gradient of a maximum arrives somewhere; a pooled row counts with its first input
          // row
          const bool counts = p_.pool == Pool::kMax && h == (start > 0 ? start : 0);
          if (sums && counts) add_to_sums(g, p_.out_width, sums);
        }
        if (dx_ || (sums && p_.pool == Pool::kAvg)) {
          unpool(static_cast<int>(cover.last - cover.first), row);
          if (p_.pool == Pool::kAvg && p_.saved == Saved::kInput) {
            backward_row(p_, static_cast<const C*>(row), saved_ + x_offset, bias, row, row_length_);
          }
          if (sums && p_.pool == Pool::kAvg) add_to_sums(row, p_.width, sums);
        }
      }
      finish_row(row, x_offset);
    }
  }

 private:
  // One gradient for all of a plane, times act' of each element.
  void run_plane(int64_t plane, RowBias<C> bias, double* sums) {
    const int64_t count = p_.height * row_length_;
    C g = to_compute<C>(dy_[plane]);
    divide_run(&g, 1, count);
    if (!dx_ && !sums) return;
    C* row = direct_row(plane * count);
    for (int64_t i = 0; i < count; ++i) row[i] = g;
    if (p_.saved == Saved::kInput) {
      backward_row(p_, static_cast<const C*>(row), saved_ + plane * count, bias, row, count);
    }
    if (sums) sums[0] += static_cast<double>(sum_row(static_cast<const C*>(row), count));
    if (dx_ && sizeof(C) != sizeof(T)) store_row(row, dx_ + plane * count, count);
  }

  // float and double rows are built where they end up; a half row in the buffer, rounded once.
  C* direct_row(int64_t offset) {
    if (dx_ && sizeof(C) == sizeof(T)) return reinterpret_cast<C*>(dx_ + offset);
    return dx_row_;
  }
  void finish_row(const C* row, int64_t offset) {
    if (dx_ && sizeof(C) != sizeof(T)) store_row(row, dx_ + offset, row_length_);
  }

  int64_t slot_of(int64_t p) const { return (p & (ring_rows_ - 1)) * slot_; }

  // Pooled rows from p on: ahead_ of them, but none from last_p on. Rows are asked for in order.
  void prepare_rows(int64_t plane, int64_t p, int64_t last_p) {
    for (int64_t i = p; i < p + ahead_ && i < last_p; ++i) prepare_row(plane, i);
  }

  // g = dy * act' (max), dy / divisor (average) of pooled row p, kept while input rows need it.
  void prepare_row(int64_t plane, int64_t p) {
    const int64_t slot = slot_of(p);
    C* g = ring_ + slot + before_;
    ready_ = p;
    const int64_t offset = (plane * p_.out_height + p) * out_length_;
    prefetch_behind(dy_ + offset, out_length_ * p_.itemsize);
    if (p_.pool == Pool::kMax && saved_) {
      prefetch_behind(saved_ + offset, out_length_ * p_.itemsize);
    }
    if (vectors_ && p_.index_itemsize) {
      memcpy(code_ring_ + slot + before_, index_ + offset, static_cast<size_t>(out_length_));
    }
    if (p_.pool == Pool::kMax) {
      const T* saved = saved_ ? saved_ + offset : nullptr;
      backward_row(p_, dy_ + offset, saved, RowBias<C>{C(-0.0), nullptr}, g, out_length_);
      return;
    }
    widen_row(dy_ + offset, g, out_length_);
    const int64_t rows = pool_extent(vertical_, pool_window(vertical_, p), p_.count_include_pad);
    divide_average_row(horizontal_, interior_, rows, p_.count_include_pad, channels_, g);
  }

  const char* codes_of(int64_t plane, int64_t p) const {
    if (!index_) return nullptr;
    if (vectors_) return code_ring_ + slot_of(p) + before_;
    return index_ + (plane * p_.out_height + p) * out_length_ * p_.index_itemsize;
  }

  void unpool(int count, C* row) {
    if (p_.pool == Pool::kMax) {
      unpool_with(MaxRule{}, count, row);
    } else if (p_.saved != Saved::kMask) {
      unpool_with(AverageRule{}, count, row);
    } else if (static_cast<Activation>(p_.activation) == Activation::kLeakyRelu) {
      unpool_with(MaskedRule<C, true>{static_cast<C>(p_.activation_param)}, count, row);
    } else {
      unpool_with(MaskedRule<C, false>{C(0)}, count, row);
    }
  }

  template <class Rule>
  void unpool_with(const Rule& rule, int count, C* row) {
    if (p_.channels_last) {
      unpool_row_channels_last(horizontal_, channels_, rule, rows_, count, p_.index_itemsize, row);
    } else {
      unpool_row_contiguous(horizontal_, rule, rows_, count, p_.index_itemsize, row);
    }
  }

  // Adds row [pixels] or [pixels, channels] to sums [channels]: a row in C, the rows in double.
  void add_to_sums(const C* row, int64_t pixels, double* sums) {
    if (!p_.channels_last) {
      sums[0] += static_cast<double>(sum_row(row, pixels));
      return;
    }
    sum_pixels(row, pixels, channels_, row_sum_);
    for (int64_t c = 0; c < channels_; ++c) sums[c] += static_cast<double>(row_sum_[c]);
  }

  const ActPool2dProblem& p_;
  const PoolAxis vertical_;
  const PoolAxis horizontal_;
  const int64_t channels_;
  const int64_t row_length_;
  const int64_t out_length_;
  const T* dy_;
  const T* saved_;
  const T* bias_;
  const char* index_;
  T* dx_;
  const PoolCover interior_;
  const bool planes_;        // whether a plane's average is one number
  int64_t window_rows_ = 0;  // pooled rows that one input row may need
  int64_t ahead_ = 1;        // pooled rows that are prepared at once
  int64_t ring_rows_ = 1;    // a power of two, at least window_rows + ahead - 1
  bool vectors_ = false;     // whether rows have margins, and codes are copied beside them
  int64_t before_ = 0;       // elements of the margin before a row in a ring
  int64_t slot_ = 0;         // elements from one row in a ring to the next
  int64_t ready_ = -1;       // the last pooled row whose gradient is in the ring
  char* memory_ = nullptr;
  PooledRow<C>* rows_ = nullptr;  // [window_rows]
  C* ring_ = nullptr;             // [ring_rows, slot]
  C* dx_row_ = nullptr;           // [row_length], or a plane
  C* bias_row_ = nullptr;         // [row_length], channels_last
  C* row_sum_ = nullptr;          // [channels]
  char* code_ring_ = nullptr;     // [ring_rows, slot]
};

}  // namespace CMF_ISA
}  // namespace cmf
