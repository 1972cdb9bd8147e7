// y = pool(act(x + bias)): x is read once, y is written once, and between them rows stay in cache.
#include <stdlib.h>

#include "common/activation.h"
#include "cpu/act_pool2d.h"
#include "cpu/act_row.h"
#include "cpu/pool_rows.h"

namespace cmf {
namespace CMF_ISA {
namespace {

template <class C>
MaskRule<C> mask_rule(const ActPool2dProblem& p) {
  const Activation activation = static_cast<Activation>(p.activation);
  // torch's threshold_backward and hardtanh_backward let the gradient of a NaN pass, leaky_relu's not
  return MaskRule<C>{activation == Activation::kRelu6 ? C(6) : static_cast<C>(__builtin_nan("")),
                     activation != Activation::kLeakyRelu};
}

// One thread's buffers and the loop over one image (channels_last) or one plane (contiguous).
template <class T>
class ForwardWorker {
 public:
  typedef ComputeType<T> C;

  explicit ForwardWorker(const ActPool2dProblem& problem)
      : p_(problem),
        vertical_(vertical_axis(problem)),
        horizontal_(horizontal_axis(problem)),
        channels_(problem.channels_last ? problem.channels : 1),
        row_length_(problem.width * channels_),
        out_length_(problem.out_width * channels_),
        ring_rows_(problem.pool_height < problem.height ? problem.pool_height : problem.height),
        activate_first_(!(problem.pool == Pool::kMax && problem.monotone) &&
                        static_cast<Activation>(problem.activation) != Activation::kIdentity),
        rule_(mask_rule<C>(problem)) {}

  ~ForwardWorker() {
    free(memory_);
    free(rows_);
  }
  ForwardWorker(const ForwardWorker&) = delete;
  ForwardWorker& operator=(const ForwardWorker&) = delete;

  // `bias` is the problem's whole [K] or null.
  bool prepare(const T* bias) {
    const bool pools = p_.pool != Pool::kNone;
    const int64_t ring = pools && activate_first_ ? ring_rows_ * row_length_ : 0;
    const int64_t bias_row = p_.channels_last ? row_length_ : 0;
    const int64_t count = ring + bias_row + channels_ + out_length_;
    memory_ = static_cast<C*>(malloc(static_cast<size_t>(count) * sizeof(C)));
    rows_ = static_cast<const void**>(malloc(static_cast<size_t>(p_.pool_height) * sizeof(void*)));
    if (!memory_ || !rows_) return false;
    ring_ = memory_;
    no_bias_ = memory_ + ring;
    bias_row_ = no_bias_ + channels_;
    out_ = bias_row_ + bias_row;
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
  void run(const T* x, C bias, T* y, char* index, T* preactivation, int64_t p_first,
           int64_t p_last) {
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
    staged_ = 0;
    for (int64_t p = p_first; p < p_last; ++p) {
      const PoolWindow window = pool_window(vertical_, p);
      const CodeRow codes = CodeRow{index, p_.index_itemsize}.from(p * out_length_);
      T* target = y + p * out_length_;
      if (activate_first_) {
        stage_rows(x, row_bias, window);
        pool_rows(reinterpret_cast<const C* const*>(rows_), window, C(-0.0), no_bias_, codes);
        finish_average(window);
        store_row(out_, target, out_length_);
      } else {
        for (int64_t r = window.first; r < window.last; ++r) {
          rows_[r] = x + (window.start + r) * row_length_;
        }
        pool_rows(reinterpret_cast<const T* const*>(rows_), window, bias, bias_row_, codes);
        finish_average(window);
        activate_row(p_, out_, RowBias<C>{C(-0.0), nullptr}, target, out_length_);
      }
      if (preactivation) {
        gather(x, row_bias, window, codes, preactivation + p * out_length_);
      }
    }
  }

 private:
  // act(x + bias) of the window's rows; a row that the last window had too is still in the ring.
  void stage_rows(const T* x, RowBias<C> bias, PoolWindow window) {
    for (int64_t r = window.first; r < window.last; ++r) {
      const int64_t h = window.start + r;
      C* slot = ring_ + (h % ring_rows_) * row_length_;
      if (h >= staged_) {
        activate_row(p_, x + h * row_length_, bias, slot, row_length_);
        staged_ = h + 1;
      }
      rows_[r] = slot;
    }
  }

  template <class S>
  void pool_rows(const S* const* rows, PoolWindow window, C bias, const C* bias_row,
                 CodeRow codes) {
    const WindowRows<S> input = {rows, window};
    if (p_.pool == Pool::kMax) {
      codes.data ? pool_with<MaxReducer, true>(input, bias, bias_row, codes)
                 : pool_with<MaxReducer, false>(input, bias, bias_row, codes);
    } else {
      codes.data ? pool_with<SumReducer, true>(input, bias, bias_row, codes)
                 : pool_with<SumReducer, false>(input, bias, bias_row, codes);
    }
  }

  template <template <class, class, class, bool> class Reducer, bool kTrack, class S>
  void pool_with(WindowRows<S> input, C bias, const C* bias_row, CodeRow codes) {
    if (p_.channels_last) {
      pool_row_channels_last<Reducer, kTrack>(rule_, input, horizontal_, channels_, bias_row, out_,
                                              codes);
    } else {
      pool_row_contiguous<Reducer, kTrack>(rule_, input, horizontal_, bias, out_, codes);
    }
  }

  void finish_average(PoolWindow window) {
    if (p_.pool != Pool::kAvg) return;
    const int64_t rows = pool_extent(vertical_, window, p_.count_include_pad);
    for (int64_t q = 0; q < p_.out_width; ++q) {
      const int64_t columns =
          pool_extent(horizontal_, pool_window(horizontal_, q), p_.count_include_pad);
      const C divisor = static_cast<C>(rows * columns);
      C* values = out_ + q * channels_;
      for (int64_t c = 0; c < channels_; ++c) values[c] /= divisor;
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
  const int64_t channels_;    // interleaved in a row: K for channels_last, else 1
  const int64_t row_length_;  // elements of an input row
  const int64_t out_length_;  // elements of an output row
  const int64_t ring_rows_;
  const bool activate_first_;
  const MaskRule<C> rule_;
  int64_t staged_ = 0;  // input rows below this one have been activated
  C* memory_ = nullptr;
  C* ring_ = nullptr;      // [ring_rows, row_length], where activation comes before the pooling
  C* no_bias_ = nullptr;   // [channels] of -0.0, for rows that are activated already
  C* bias_row_ = nullptr;  // [row_length], channels_last
  C* out_ = nullptr;       // [out_length]
  const void** rows_ = nullptr;
};

template <class T>
bool forward(const ActPool2dProblem& p, const T* x, const T* bias, T* y, char* index,
             T* preactivation, int threads) {
  typedef ComputeType<T> C;
  // images (channels_last) or planes, each of P output rows; a thread takes a run of rows
  const int64_t planes = p.channels_last ? p.batch : p.batch * p.channels;
  const int64_t interleaved = p.channels_last ? p.channels : 1;
  const int64_t x_plane = p.height * p.width * interleaved;
  const int64_t y_plane = p.out_height * p.out_width * interleaved;
  const int64_t rows = planes * p.out_height;
  const int parts = useful_threads(p, threads);
  bool success = true;
#pragma omp parallel for num_threads(parts) schedule(static) if (parts > 1)
  for (int part = 0; part < parts; ++part) {
    ForwardWorker<T> worker(p);
    if (!worker.prepare(bias)) {
#pragma omp atomic write
      success = false;
      continue;
    }
    const int64_t end = rows / parts * (part + 1) + (part + 1 == parts ? rows % parts : 0);
    for (int64_t row = rows / parts * part; row < end;) {
      const int64_t plane = row / p.out_height;
      const int64_t first = row % p.out_height;
      const int64_t left = end - row;
      const int64_t last = first + left < p.out_height ? first + left : p.out_height;
      const C b = bias && !p.channels_last ? to_compute<C>(bias[plane % p.channels]) : C(-0.0);
      worker.run(x + plane * x_plane, b, y + plane * y_plane,
                 index ? index + plane * y_plane * p.index_itemsize : nullptr,
                 preactivation ? preactivation + plane * y_plane : nullptr, first, last);
      row += last - first;
    }
  }
  return success;
}

}  // namespace

bool act_pool2d_forward(const ActPool2dProblem& p, const void* x, const void* bias, void* y,
                        void* index, void* preactivation, int threads) {
  char* codes = static_cast<char*>(index);
  switch (static_cast<DType>(p.dtype)) {
#define CMF_CASE(D, T)                                                                      \
  case DType::D:                                                                            \
    return forward(p, static_cast<const T*>(x), static_cast<const T*>(bias), static_cast<T*>(y), \
                   codes, static_cast<T*>(preactivation), threads);
    CMF_CASE(kFloat32, float)
    CMF_CASE(kFloat64, double)
    CMF_CASE(kFloat16, Half)
    CMF_CASE(kBFloat16, BFloat16)
#undef CMF_CASE
  }
  return true;
}

}  // namespace CMF_ISA
}  // namespace cmf
