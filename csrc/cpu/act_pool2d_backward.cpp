// dx and dbias of y = pool(act(x + bias)) from the pooled gradient: the dense gradient is written once,
// and whatever else backward needs is read once.
#include <stdlib.h>
#include <string.h>

#include "common/activation.h"
#include "cpu/act_pool2d.h"
#include "cpu/act_row.h"
#include "cpu/simd.h"
#include "cpu/unpool_rows.h"

namespace cmf {
namespace CMF_ISA {
namespace {

// Bias gradients are summed over this many runs of rows at most, each in double: which rows a run has
// depends on the problem alone, so the bits don't depend on the number of threads.
constexpr int64_t kMostRuns = 64;

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
        dx_(dx) {}

  ~BackwardWorker() { free(memory_); }
  BackwardWorker(const BackwardWorker&) = delete;
  BackwardWorker& operator=(const BackwardWorker&) = delete;

  bool prepare() {
    // the gradients of the pooled rows that reach one input row, a row of dx, the bias along a row
    window_rows_ = (p_.pool_height + p_.pool_stride_height - 1) / p_.pool_stride_height;
    if (window_rows_ > p_.out_height) window_rows_ = p_.out_height;
    const int64_t bias_row = p_.channels_last ? row_length_ : 0;
    const int64_t count = window_rows_ * out_length_ + row_length_ + bias_row;
    memory_ = static_cast<C*>(malloc(static_cast<size_t>(count) * sizeof(C)));
    if (!memory_) return false;
    ring_ = memory_;
    dx_row_ = ring_ + window_rows_ * out_length_;
    bias_row_ = dx_row_ + row_length_;
    for (int64_t i = 0; i < bias_row; i += channels_) {
      for (int64_t c = 0; c < channels_; ++c) {
        bias_row_[i + c] = bias_ ? to_compute<C>(bias_[c]) : C(-0.0);
      }
    }
    return true;
  }

  // Input rows h_first .. h_last - 1 of image or plane `plane`. Adds their bias gradient to
  // sums [channels] where that is not null.
  void run(int64_t plane, int64_t h_first, int64_t h_last, double* sums) {
    const C b = bias_ && !p_.channels_last ? to_compute<C>(bias_[plane % p_.channels]) : C(-0.0);
    const RowBias<C> bias = {b, p_.channels_last ? bias_row_ : nullptr};
    ready_first_ = ready_last_ = 0;
    for (int64_t h = h_first; h < h_last; ++h) {
      const int64_t x_offset = (plane * p_.height + h) * row_length_;
      C* row = direct_row(x_offset);
      if (p_.pool == Pool::kNone) {
        const T* saved = saved_ ? saved_ + x_offset : nullptr;
        backward_row(p_, dy_ + x_offset, saved, bias, row, row_length_);
      } else {
        const PoolCover cover = pool_cover(vertical_, h);
        memset(row, 0, static_cast<size_t>(row_length_) * sizeof(C));
        for (int64_t p = cover.first; p < cover.last; ++p) {
          const C* g = pooled_gradient(plane, p);
          spread(plane, p, h, g, row);
        }
        if (p_.pool == Pool::kAvg && p_.saved == Saved::kInput) {
          backward_row(p_, static_cast<const C*>(row), saved_ + x_offset, bias, row, row_length_);
        }
      }
      if (sums) add_to_sums(row, sums);
      finish_row(row, x_offset);
    }
  }

 private:
  // float and double rows are built where they end up; a half row in the buffer, rounded once.
  C* direct_row(int64_t offset) {
    if (dx_ && sizeof(C) == sizeof(T)) return reinterpret_cast<C*>(dx_ + offset);
    return dx_row_;
  }
  void finish_row(const C* row, int64_t offset) {
    if (dx_ && sizeof(C) != sizeof(T)) store_row(row, dx_ + offset, row_length_);
  }

  // g = dy * act' (max), dy / divisor (average) of pooled row p, kept while input rows need it.
  const C* pooled_gradient(int64_t plane, int64_t p) {
    C* g = ring_ + (p % window_rows_) * out_length_;
    if (p >= ready_first_ && p < ready_last_) return g;
    if (ready_last_ != p) ready_first_ = p;
    ready_last_ = p + 1;
    if (ready_last_ - ready_first_ > window_rows_) ready_first_ = ready_last_ - window_rows_;
    const int64_t offset = (plane * p_.out_height + p) * out_length_;
    if (p_.pool == Pool::kMax) {
      const T* saved = saved_ ? saved_ + offset : nullptr;
      backward_row(p_, dy_ + offset, saved, RowBias<C>{C(-0.0), nullptr}, g, out_length_);
      return g;
    }
    const PoolWindow window = pool_window(vertical_, p);
    const int64_t rows = pool_extent(vertical_, window, p_.count_include_pad);
    for (int64_t q = 0; q < p_.out_width; ++q) {
      const PoolWindow columns = pool_window(horizontal_, q);
      const int64_t extent = pool_extent(horizontal_, columns, p_.count_include_pad);
      const C divisor = static_cast<C>(rows * extent);
      for (int64_t i = q * channels_; i < (q + 1) * channels_; ++i) {
        g[i] = to_compute<C>(dy_[offset + i]) / divisor;
      }
    }
    return g;
  }

  void spread(int64_t plane, int64_t p, int64_t h, const C* g, C* row) {
    const int64_t r = h - (p * p_.pool_stride_height - p_.pool_pad_height);
    const int64_t offset = (plane * p_.out_height + p) * out_length_;
    const char* codes = index_ ? index_ + offset * p_.index_itemsize : nullptr;
    const UnpoolRow<C> unpool = {g, codes, p_.index_itemsize, r * p_.pool_width, row};
    if (p_.pool == Pool::kMax) {
      unpool_max_row(horizontal_, channels_, unpool);
    } else if (p_.saved == Saved::kMask) {
      const bool leaky = static_cast<Activation>(p_.activation) == Activation::kLeakyRelu;
      unpool_masked_row(horizontal_, channels_, unpool, leaky,
                        static_cast<C>(p_.activation_param));
    } else {
      unpool_average_row(horizontal_, channels_, unpool);
    }
  }

  void add_to_sums(const C* row, double* sums) {
    if (!p_.channels_last) {
      sums[0] += static_cast<double>(sum_row(row, row_length_));
      return;
    }
    for (int64_t i = 0; i < row_length_; i += channels_) {
      for (int64_t c = 0; c < channels_; ++c) sums[c] += static_cast<double>(row[i + c]);
    }
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
  int64_t window_rows_ = 0;  // pooled rows that one input row may need
  int64_t ready_first_ = 0;  // pooled rows whose gradient is in the ring
  int64_t ready_last_ = 0;
  C* memory_ = nullptr;
  C* ring_ = nullptr;      // [window_rows, out_length]
  C* dx_row_ = nullptr;    // [row_length]
  C* bias_row_ = nullptr;  // [row_length], channels_last
};

template <class T>
bool backward(const ActPool2dProblem& p, const T* dy, const T* saved, const T* bias,
              const char* index, T* dx, T* dbias, int threads) {
  typedef ComputeType<T> C;
  const int64_t planes = p.channels_last ? p.batch : p.batch * p.channels;
  const int64_t sums_per_run = p.channels_last ? p.channels : 1;
  const int64_t rows = planes * p.height;
  // contiguous: a run is a plane, whose sum belongs to one channel; channels_last: some rows of images
  const int64_t runs = !p.channels_last ? planes : (rows < kMostRuns ? rows : kMostRuns);
  double* sums = nullptr;
  if (dbias) {
    sums = static_cast<double*>(calloc(static_cast<size_t>(runs * sums_per_run), sizeof(double)));
    if (!sums) return false;
  }
  const int parts = useful_threads(p, threads);
  bool success = true;
#pragma omp parallel num_threads(parts) if (parts > 1)
  {
    BackwardWorker<T> worker(p, dy, saved, bias, index, dx);
    const bool ready = worker.prepare();
    if (!ready) {
#pragma omp atomic write
      success = false;
    }
#pragma omp for schedule(static)
    for (int64_t run = 0; run < runs; ++run) {
      if (!ready) continue;
      const int64_t end = rows / runs * (run + 1) + (run + 1 == runs ? rows % runs : 0);
      for (int64_t row = rows / runs * run; row < end;) {
        const int64_t first = row % p.height;
        const int64_t left = end - row;
        const int64_t last = first + left < p.height ? first + left : p.height;
        worker.run(row / p.height, first, last, sums ? sums + run * sums_per_run : nullptr);
        row += last - first;
      }
    }
  }
  if (sums && success) {
    for (int64_t k = 0; k < p.channels; ++k) {
      double total = 0;
      if (p.channels_last) {
        for (int64_t run = 0; run < runs; ++run) total += sums[run * sums_per_run + k];
      } else {
        for (int64_t n = 0; n < p.batch; ++n) total += sums[n * p.channels + k];
      }
      dbias[k] = from_compute<T>(static_cast<C>(total));
    }
  }
  free(sums);
  return success;
}

}  // namespace

bool act_pool2d_backward(const ActPool2dProblem& p, const void* dy, const void* saved,
                         const void* bias, const void* index, void* dx, void* dbias, int threads) {
  const char* codes = static_cast<const char*>(index);
  switch (static_cast<DType>(p.dtype)) {
#define CMF_CASE(D, T)                                                                          \
  case DType::D:                                                                                \
    return backward(p, static_cast<const T*>(dy), static_cast<const T*>(saved),                 \
                    static_cast<const T*>(bias), codes, static_cast<T*>(dx), static_cast<T*>(dbias), \
                    threads);
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
