// y = pool(act(x + bias)): x is read once, y is written once, and between them rows stay in cache.
#include "cpu/act_pool2d.h"
#include "cpu/act_pool2d_worker.h"
#include "cpu/global_average.h"

namespace cmf {
namespace CMF_ISA {
namespace {

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
#if defined(_OPENMP)
#pragma omp parallel for num_threads(parts) schedule(static) if (parts > 1)
#endif
  for (int part = 0; part < parts; ++part) {
    ForwardWorker<T> worker(p);
    if (!worker.prepare(bias)) {
#if defined(_OPENMP)
#pragma omp atomic write
#endif
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
                 preactivation ? preactivation + plane * y_plane : nullptr, first, last,
                 (planes - plane) * x_plane, left);
      row += last - first;
    }
  }
  return success;
}

}  // namespace

bool act_pool2d_forward(const ActPool2dProblem& p, const void* x, const void* bias, void* y,
                        void* index, void* preactivation, int threads) {
  char* codes = static_cast<char*>(index);
  if (!bias && !index && is_global_average(p)) {
    return global_average(p, static_cast<const float*>(x), static_cast<float*>(y), threads);
  }
  switch (static_cast<DType>(p.dtype)) {
#define CMF_CASE(D, T)                                                                           \
  case DType::D:                                                                                 \
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
