// dx and dbias of y = pool(act(x + bias)) from the pooled gradient: the dense gradient is written
// once, and whatever else backward needs is read once.
#include <stdlib.h>

#include "cpu/act_pool2d.h"
#include "cpu/act_pool2d_backward_worker.h"

namespace cmf {
namespace CMF_ISA {
namespace {

// Bias gradients are summed over this many runs of rows at most, each in double: which rows a run
// has depends on the problem alone, so the bits don't depend on the number of threads.
constexpr int64_t kMostRuns = 64;

template <class T>
bool backward(const ActPool2dProblem& p, const T* dy, const T* saved, const T* bias,
              const char* index, T* dx, T* dbias, int threads) {
  typedef ComputeType<T> C;
  const int64_t planes = p.channels_last ? p.batch : p.batch * p.channels;
  const int64_t sums_per_run = p.channels_last ? p.channels : 1;
  const int64_t rows = planes * p.height;
  // contiguous: a run is a plane, whose sum belongs to one channel; channels_last: some rows of
  // images
  const int64_t runs = !p.channels_last ? planes : (rows < kMostRuns ? rows : kMostRuns);
  double* sums = nullptr;
  if (dbias) {
    sums = static_cast<double*>(calloc(static_cast<size_t>(runs * sums_per_run), sizeof(double)));
    if (!sums) return false;
  }
  const int parts = useful_threads(p, threads);
  (void)parts;  // unused where there is no OpenMP
  bool success = true;
#if defined(_OPENMP)
#pragma omp parallel num_threads(parts) if (parts > 1)
#endif
  {
    BackwardWorker<T> worker(p, dy, saved, bias, index, dx);
    const bool ready = worker.prepare();
    if (!ready) {
#if defined(_OPENMP)
#pragma omp atomic write
#endif
      success = false;
    }
#if defined(_OPENMP)
#pragma omp for schedule(static)
#endif
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
#define CMF_CASE(D, T)                                                          \
  case DType::D:                                                                \
    return backward(p, static_cast<const T*>(dy), static_cast<const T*>(saved), \
                    static_cast<const T*>(bias), codes, static_cast<T*>(dx),    \
                    static_cast<T*>(dbias), threads);
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
