// What one thread needs to pool and activate rows: used over a whole tensor, and over a band of a
// convolution's output that lies in scratch memory.
#pragma once

#include <stdlib.h>

#include <type_traits>

#include "common/activation.h"
#include "common/mask_rule.h"
#include "cpu/act_pool2d.h"
#include "cpu/act_row.h"
#include "cpu/integers.h"
#include "cpu/pool_average.h"
#include "cpu/pool_rows.h"

namespace cmf {
namespace CMF_ISA {

constexpr int64_t kBatch = 512;  // elements of the pooled rows that are activated in one run

// One thread's buffers and the loop over one image (channels_last) or one plane (contiguous).
template <class T>
class ForwardWorker {
 public:
  typedef ComputeType<T> C;

  explicit ForwardWorker(const ActPool2dProblem& problem)
      : p_(problem),
        vertical_(vertical_axis(problem)),
        horizontal_(horizontal_axis(problem)),
        interior_(pool_interior(horizontal_)),
        channels_(problem.channels_last ? problem.channels : 1),
        row_length_(problem.width * channels_),
        out_length_(problem.out_width * channels_),
        ring_rows_(problem.pool_height < problem.height ? problem.pool_height : problem.height),
        activate_first_(!(problem.pool == Pool::kMax && problem.monotone) &&
                        static_cast<Activation>(problem.activation) != Activation::kIdentity),
        planes_(averages_planes(problem)),
        rule_(mask_rule<C>(static_cast<Activation>(problem.activation))) {}

  ~ForwardWorker() {
    free(memory_);
    free(rows_);
  }
  ForwardWorker(const ForwardWorker&) = delete;
  ForwardWorker& operator=(const ForwardWorker&) = delete;

  // `bias` is the problem's whole [K] or null.
  bool prepare(const T* bias) {
    const bool pools = p_.pool != Pool::kNone;
    const int64_t slack = kSlackLanes * kLanes<C>;
    const int64_t ring =
        pools && (activate_first_ || planes_) ? ring_rows_ * row_length_ + slack : 0;
    const int64_t bias_row = p_.channels_last ? row_length_ : 0;
    // rows are pooled into a buffer until there is work for a long run of the activation
    batch_ = kBatch / out_length_ > 1 ? kBatch / out_length_ : 1;
    const int64_t out = pools ? batch_ * out_length_ + slack : 0;
    const int64_t count = ring + bias_row + channels_ + out;
    memory_ = static_cast<C*>(malloc(static_cast<size_t>(count) * sizeof(C)));
    rows_ = static_cast<const void**>(malloc(static_cast<size_t>(p_.pool_height) * sizeof(void*)));
    if (!memory_ || !rows_) return false;
    ring_ = memory_;
    no_bias_ = memory_ + ring;
    bias_row_ = no_bias_ + channels_;
    out_ = bias_row_ + bias_row;
    // what is read behind the ring's last row doesn't count, but has a value
    for (int64_t i = ring ? ring - slack : 0; i < ring; ++i) ring_[i] = C(0);
    // x + -0.0 is x for every x, zeros' signs included
    for (int64_t c = 0; c < channels_; ++c) no_bias_[c] = C(-0.0);
    for (int64_t i = 0; i < bias_row; i += channels_) {
      for (int64_t c = 0; c < channels_; ++c) {
        bias_row_[i + c] = bias ? to_compute<C>(bias[c]) : C(-0.0);
      }
    }
    return true;
  }

  // Output rows p_first .. p_last - 1 of the image or plane `x`; `bias` is a contiguous plane's.
  // `x_left`: how many elements of all the input lie at x and behind; `rows_left`: how many output
  // rows this thread will write from p_first on.
  void run(const T* x, C bias, T* y, char* index, T* preactivation, int64_t p_first, int64_t p_last,
           int64_t x_left, int64_t rows_left) {
    const RowBias<C> row_bias = {bias, p_.channels_last ? bias_row_ : nullptr};
    if (p_.pool == Pool::kNone) {
      const int64_t offset = p_first * row_length_;
      if (p_.channels_last) {
        for (int64_t h = p_first; h < p_last; ++h) {
          activate_row(p_, x + h * row_length_, row_bias, y + h * row_length_, row_length_);
        }
      } else {
        activate_row(p_, x + offset, row_bias, y + offset, (p_last - p_first) * row_length_);
      }
      return;
    }
    if (planes_) {
      const int64_t count = p_.height * row_length_;
      C sum = sum_of_plane(x, row_bias, count);
      divide_run(&sum, 1, count);
      *y = from_compute<T>(sum);
      return;
    }
    staged_ = 0;
    const int64_t slack = kSlackLanes * kLanes<C>;
    int64_t pending = 0;  // rows in the buffer
    for (int64_t p = p_first; p < p_last; ++p) {
      const PoolWindow window = pool_window(vertical_, p);
      const CodeRow codes = CodeRow{index, p_.index_itemsize}.from(p * out_length_);
      C* out = out_ + pending * out_length_;
      const int64_t behind = (rows_left - (p - p_first) - 1) * out_length_;
      if (activate_first_) {
        stage_rows(x, row_bias, window);
        pool_rows(WindowRows<C>{reinterpret_cast<const C* const*>(rows_), window, behind >= slack},
                  C(-0.0), no_bias_, out, codes);
      } else {
        for (int64_t r = window.first; r < window.last; ++r) {
          rows_[r] = x + (window.start + r) * row_length_;
        }
        const int64_t end = (window.start + window.last) * row_length_;
        pool_rows(WindowRows<T>{reinterpret_cast<const T* const*>(rows_), window,
                                behind >= slack && x_left - end >= slack},
                  bias, bias_row_, out, codes);
      }
      if (p_.pool == Pool::kAvg) {
        const int64_t rows = pool_extent(vertical_, window, p_.count_include_pad);
        divide_average_row(horizontal_, interior_, rows, p_.count_include_pad, channels_, out);
      }
      if (preactivation) {
        gather(x, row_bias, window, codes, preactivation + p * out_length_);
      }
      if (++pending == batch_ || p + 1 == p_last) {
        finish_rows(y + (p + 1 - pending) * out_length_, pending * out_length_);
        pending = 0;
      }
    }
  }

 private:
  // Of act(x + bias).
  C sum_of_plane(const T* x, RowBias<C> bias, int64_t count) {
    if constexpr (std::is_same<T, C>::value) {
      const bool plain = static_cast<Activation>(p_.activation) == Activation::kIdentity;
      if (plain && bias.value == C(0)) return sum_row(x, count);
    }
    activate_row(p_, x, bias, ring_, count);
    return sum_row(ring_, count);
  }
  C* slot(int64_t h) const { return ring_ + h % ring_rows_ * row_length_; }

  // act(x + bias) of the window's rows; a row that the last window had too is still in the ring.
  void stage_rows(const T* x, RowBias<C> bias, PoolWindow window) {
    const int64_t end = window.start + window.last;
    int64_t h = most(staged_, window.start + window.first);
    while (h < end) {
      // a plane's rows are one as long as they lie together in the ring too: short ones alone would
      // leave lanes idle
      const int64_t together = bias.row ? 1 : least(end - h, ring_rows_ - h % ring_rows_);
      activate_row(p_, x + h * row_length_, bias, slot(h), together * row_length_);
      h += together;
    }
    staged_ = most(staged_, end);
    for (int64_t r = window.first; r < window.last; ++r) rows_[r] = slot(window.start + r);
  }

  template <class S>
  void pool_rows(WindowRows<S> input, C bias, const C* bias_row, C* out, CodeRow codes) {
    if (p_.pool == Pool::kMax) {
      codes.data ? pool_with<MaxReducer, true>(input, bias, bias_row, out, codes)
                 : pool_with<MaxReducer, false>(input, bias, bias_row, out, codes);
    } else {
      codes.data ? pool_with<SumReducer, true>(input, bias, bias_row, out, codes)
                 : pool_with<SumReducer, false>(input, bias, bias_row, out, codes);
    }
  }

  template <template <class, class, class, bool> class Reducer, bool kTrack, class S>
  void pool_with(WindowRows<S> input, C bias, const C* bias_row, C* out, CodeRow codes) {
    if (p_.channels_last) {
      pool_row_channels_last<Reducer, kTrack>(rule_, input, horizontal_, channels_, bias_row, out,
                                              codes);
    } else {
      pool_row_contiguous<Reducer, kTrack>(rule_, input, horizontal_, interior_, bias, out, codes);
    }
  }

  void finish_rows(T* y, int64_t count) {
    if (activate_first_) {
      store_row(out_, y, count);
    } else {
      activate_row(p_, out_, RowBias<C>{C(-0.0), nullptr}, y, count);
    }
  }

  // x + bias at the positions that the maxima chose.
  void gather(const T* x, RowBias<C> bias, PoolWindow window, CodeRow codes, T* target) {
    for (int64_t q = 0; q < p_.out_width; ++q) {
      const int64_t start = q * p_.pool_stride_width - p_.pool_pad_width;
      for (int64_t c = 0; c < channels_; ++c) {
        const int64_t i = q * channels_ + c;
        const int64_t code = codes.itemsize == 1 ? static_cast<const uint8_t*>(codes.data)[i]
                                                 : static_cast<const int32_t*>(codes.data)[i];
        const int64_t h = window.start + code / p_.pool_width;
        const int64_t w = start + code % p_.pool_width;
        const C b = bias.row ? bias.row[c] : bias.value;
        target[i] = from_compute<T>(to_compute<C>(x[h * row_length_ + w * channels_ + c]) + b);
      }
    }
  }

  const ActPool2dProblem& p_;
  const PoolAxis vertical_;
  const PoolAxis horizontal_;
  const PoolCover interior_;
  const int64_t channels_;    // interleaved in a row: K for channels_last, else 1
  const int64_t row_length_;  // elements of an input row
  const int64_t out_length_;  // elements of an output row
  const int64_t ring_rows_;
  const bool activate_first_;
  const bool planes_;  // whether a plane's average is one number
  const MaskRule<C> rule_;
  int64_t batch_ = 1;   // rows that the buffer holds
  int64_t staged_ = 0;  // input rows below this one have been activated
  C* memory_ = nullptr;
  C* ring_ = nullptr;      // [ring_rows, row_length], where activation comes before the pooling
  C* no_bias_ = nullptr;   // [channels] of -0.0, for rows that are activated already
  C* bias_row_ = nullptr;  // [row_length], channels_last
  C* out_ = nullptr;       // [batch, out_length]
  const void** rows_ = nullptr;
};

}  // namespace CMF_ISA
}  // namespace cmf
