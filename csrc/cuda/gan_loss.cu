#include "cuda/block_sum.h"
#include "cuda/gan_loss.h"
#include "cuda/gan_loss_run.h"
#include "cuda/launch.h"
#include "cuda/vector_io.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kThreads = 256;
constexpr int kTermsAtOnce = 16;         // a launch: what kernel arguments have room for
constexpr int64_t kOneBlock = 8192;      // elements that one block takes, the sum and all
constexpr int64_t kEnoughBlocks = 1024;  // for any GPU to be busy; and few to add up afterwards
constexpr int kMostOperands = 3;
constexpr int kBlocksAtOnce = 4;  // that a multiprocessor has registers for

// Elements that a thread takes at once: what it holds of each is seven values.
template <class T>
constexpr int kRun = sizeof(T) == 8 ? 1 : 4;

struct LossTerm {
  const void* operand[kMostOperands];
  void* gradient[2];  // or null
  int64_t count;
  int64_t first_block;
  int64_t chunk;  // elements of a block
  double parameter;
  double scale;  // of the value and its gradient: divided by the count for a mean
};

struct LossTerms {
  LossTerm term[kTermsAtOnce];
  int terms;
  int operands;
  GanLossFunction function;
};

// Up to N elements from `at` on; what is behind `count` is 0.
template <class T, class C, int N>
__device__ __forceinline__ void load_part(const T* at, int64_t count, C (&values)[N]) {
  if (count >= N) {
    load_run(at, values);
    return;
  }
  CMF_UNROLL(N)
  for (int v = 0; v < N; ++v) values[v] = v < count ? to_compute<C>(at[v]) : C(0);
}

template <class T, class C, int N>
__device__ __forceinline__ void store_part(T* at, int64_t count, const C (&values)[N]) {
  if (count >= N) {
    store_run(at, values);
    return;
  }
  CMF_UNROLL(N)
  for (int v = 0; v < N; ++v) {
    if (v < count) at[v] = from_compute<T>(values[v]);
  }
}

// The run of elements at i of a term: operands in, gradients out.
template <class T, class C, int N>
__device__ __forceinline__ void run_elements(const LossTerms& terms, const LossTerm& term,
                                             int64_t i, LossRun<C, N>* run) {
  const int64_t left = term.count - i;
  load_part(static_cast<const T*>(term.operand[0]) + i, left, run->x);
  if (terms.operands > 1) load_part(static_cast<const T*>(term.operand[1]) + i, left, run->y);
  if (terms.operands > 2) load_part(static_cast<const T*>(term.operand[2]) + i, left, run->weight);
  evaluate(terms.function, static_cast<C>(term.parameter), run);
  if (term.gradient[0]) store_part(static_cast<T*>(term.gradient[0]) + i, left, run->dx);
  if (term.gradient[1]) store_part(static_cast<T*>(term.gradient[1]) + i, left, run->dy);
}

template <class T>
__device__ __forceinline__ void store_loss(void* loss, bool single, double value) {
  if (single) {  // float32 over half types
    *static_cast<float*>(loss) = static_cast<float>(value);
  } else {
    *static_cast<T*>(loss) = from_compute<T>(static_cast<ComputeType<T>>(value));
  }
}

// `grad`: [], the incoming gradient, or null for 1. `partial`: [blocks], what each adds to the
// loss, or null. `loss`: where there is one block alone, the loss, or null.
template <class T, int N>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce)
    gan_loss_reduced(const LossTerms terms, const void* grad, bool single, bool skip_one,
                     double* partial, void* loss) {
  typedef ComputeType<T> C;
  double incoming = 1;
  if (grad) {
    incoming = single ? static_cast<double>(*static_cast<const float*>(grad))
                      : static_cast<double>(to_compute<C>(*static_cast<const T*>(grad)));
    if (skip_one && incoming == 1) return;
  }
  const int64_t block = blockIdx.x;
  double total = 0;
  for (int t = 0; t < terms.terms; ++t) {
    const LossTerm& term = terms.term[t];
    const int64_t begin = (block - term.first_block) * term.chunk;
    // an empty term has a block too: its mean is NaN
    if (begin < 0 || (begin >= term.count && begin > 0)) continue;
    const int64_t end = begin + term.chunk < term.count ? begin + term.chunk : term.count;
    const C factor = static_cast<C>(term.scale * incoming);
    double sum = 0;
    for (int64_t i = begin + threadIdx.x * N; i < end; i += kThreads * N) {
      LossRun<C, N> run;
      CMF_UNROLL(N)
      for (int v = 0; v < N; ++v) run.grad[v] = factor;
      run_elements<T>(terms, term, i, &run);
      C values = C(0);
      CMF_UNROLL(N)
      for (int v = 0; v < N; ++v) values += i + v < term.count ? run.value[v] : C(0);
      sum += static_cast<double>(values);
    }
    total += sum * term.scale;
  }
  if (!partial && !loss) return;
  total = block_sum<kThreads>(total);
  if (threadIdx.x != 0) return;
  if (loss) {
    store_loss<T>(loss, single, total);
  } else {
    partial[block] = total;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    gan_loss_sum(const double* partial, int64_t count, bool single, void* loss) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) total += partial[i];
  total = block_sum<kThreads>(total);
  if (threadIdx.x == 0) store_loss<T>(loss, single, total);
}

// The loss of each element, summed over the terms; or the gradients. `grad`: [*], or null: the loss
// is wanted. `add`: to what is there.
template <class T, int N>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce)
    gan_loss_elements(const LossTerms terms, const void* grad, bool single, bool add, void* loss) {
  typedef ComputeType<T> C;
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N;
  const int64_t left = terms.term[0].count - i;
  if (left <= 0) return;
  C incoming[N], total[N];
  CMF_UNROLL(N)
  for (int v = 0; v < N; ++v) incoming[v] = C(1), total[v] = C(0);
  if (grad && single) load_part(static_cast<const float*>(grad) + i, left, incoming);
  if (grad && !single) load_part(static_cast<const T*>(grad) + i, left, incoming);
  if (loss && add && single) load_part(static_cast<const float*>(loss) + i, left, total);
  if (loss && add && !single) load_part(static_cast<const T*>(loss) + i, left, total);
  for (int t = 0; t < terms.terms; ++t) {
    const LossTerm& term = terms.term[t];
    const C scale = static_cast<C>(term.scale);
    LossRun<C, N> run;
    CMF_UNROLL(N)
    for (int v = 0; v < N; ++v) run.grad[v] = incoming[v] * scale;
    run_elements<T>(terms, term, i, &run);
    CMF_UNROLL(N)
    for (int v = 0; v < N; ++v) total[v] += run.value[v] * scale;
  }
  if (loss && single) store_part(static_cast<float*>(loss) + i, left, total);
  if (loss && !single) store_part(static_cast<T*>(loss) + i, left, total);
}

// What a call is about, whichever way.
struct Call {
  const GanLossProblem& problem;
  const void* const* operands;
  void* const* gradients;  // or null
  const void* grad;        // or null
  bool skip_one;
  void* loss;  // or null
  double* partial;
  cudaStream_t stream;
};

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Elements of a block of a reduced loss. Whole runs, so that each block's begin is aligned.
int64_t chunk_of(const GanLossProblem& p, int64_t* blocks) {
  int64_t elements = 0;
  for (int t = 0; t < p.term_count; ++t) elements += p.terms[t].count;
  if (elements <= kOneBlock && p.term_count <= kTermsAtOnce) {
    *blocks = 1;
    return kOneBlock;
  }
  constexpr int64_t kStep = kThreads * 8;
  const int64_t chunk = (elements / kEnoughBlocks / kStep + 1) * kStep;
  *blocks = 0;
  for (int t = 0; t < p.term_count; ++t) {
    const int64_t own = ceil_divide(p.terms[t].count, chunk);
    *blocks += own ? own : 1;
  }
  return chunk;
}

bool all_aligned(const Call& call) {
  bool aligned = true;
  for (int i = 0; i < call.problem.term_count * call.problem.operands; ++i) {
    aligned = aligned && is_aligned(call.operands[i], 16);
    if (call.gradients) aligned = aligned && is_aligned(call.gradients[i], 16);
  }
  if (call.problem.reduction == GanLossReduction::kNone) {
    aligned = aligned && is_aligned(call.loss, 16) && is_aligned(call.grad, 16);
  }
  return aligned;
}

// Terms `first` and behind, as many as a launch takes.
LossTerms terms_from(const Call& call, int first) {
  const GanLossProblem& p = call.problem;
  LossTerms terms = {};
  terms.function = p.function;
  terms.operands = p.operands;
  const int left = p.term_count - first;
  terms.terms = left < kTermsAtOnce ? left : kTermsAtOnce;
  for (int t = 0; t < terms.terms; ++t) {
    LossTerm& term = terms.term[t];
    const GanLossTerm& given = p.terms[first + t];
    for (int k = 0; k < p.operands; ++k) {
      const int at = (first + t) * p.operands + k;
      term.operand[k] = call.operands[at];
      if (k < 2 && call.gradients) term.gradient[k] = call.gradients[at];
    }
    term.count = given.count;
    term.parameter = given.parameter;
    term.scale = given.scale;
    // an empty mean is 0 · inf
    if (p.reduction == GanLossReduction::kMean) term.scale /= static_cast<double>(given.count);
  }
  return terms;
}

Grid grid_of(const char* name, int64_t blocks, cudaStream_t stream) {
  Grid grid = {dim3(1), dim3(kThreads), 0, stream};
  if (blocks > INT32_MAX) throw_launch_error(name, grid, "more than 2**31 blocks");
  grid.blocks = dim3(static_cast<unsigned>(blocks));
  return grid;
}

template <class T>
void reduced(const Call& call, bool single) {
  const GanLossProblem& p = call.problem;
  int64_t blocks = 0;
  const int64_t chunk = chunk_of(p, &blocks);
  const bool one = blocks == 1;
  const char* const name = "gan_loss_reduced";
  const auto kernel = all_aligned(call) ? gan_loss_reduced<T, kRun<T>> : gan_loss_reduced<T, 1>;
  int64_t done = 0;
  for (int first = 0; first < p.term_count; first += kTermsAtOnce) {
    LossTerms terms = terms_from(call, first);
    int64_t here = 0;
    for (int t = 0; t < terms.terms; ++t) {
      terms.term[t].chunk = chunk;
      terms.term[t].first_block = one ? 0 : here;
      const int64_t own = ceil_divide(terms.term[t].count, chunk);
      here += own ? own : 1;
    }
    if (one) here = 1;
    launch(name, kernel, grid_of(name, here, call.stream), terms, call.grad, single, call.skip_one,
           call.loss && !one ? call.partial + done : nullptr, one ? call.loss : nullptr);
    done += here;
  }
  if (call.loss && !one) {
    launch("gan_loss_sum", gan_loss_sum<T>, grid_of("gan_loss_sum", 1, call.stream), call.partial,
           done, single, call.loss);
  }
}

template <class T>
void elements(const Call& call, bool single) {
  const GanLossProblem& p = call.problem;
  if (p.terms[0].count == 0) return;
  const char* const name = "gan_loss_elements";
  const bool aligned = all_aligned(call);
  const auto kernel = aligned ? gan_loss_elements<T, kRun<T>> : gan_loss_elements<T, 1>;
  const int64_t blocks = ceil_divide(p.terms[0].count, int64_t{kThreads} * (aligned ? kRun<T> : 1));
  for (int first = 0; first < p.term_count; first += kTermsAtOnce) {
    launch(name, kernel, grid_of(name, blocks, call.stream), terms_from(call, first), call.grad,
           single, first > 0, call.loss);
  }
}

void run(const Call& call) {
  const GanLossProblem& p = call.problem;
  const bool half = p.dtype == static_cast<int32_t>(DType::kFloat16) ||
                    p.dtype == static_cast<int32_t>(DType::kBFloat16);
  const bool single = half && p.loss_dtype == static_cast<int32_t>(DType::kFloat32);
  const bool each = p.reduction == GanLossReduction::kNone;
  switch (static_cast<DType>(p.dtype)) {
#define CMF_CASE(D, T) \
  case DType::D:       \
    return each ? elements<T>(call, single) : reduced<T>(call, single);
    CMF_CASE(kFloat32, float)
    CMF_CASE(kFloat64, double)
    CMF_CASE(kFloat16, Half)
    CMF_CASE(kBFloat16, BFloat16)
#undef CMF_CASE
  }
}

}  // namespace

int64_t gan_loss_scratch(const GanLossProblem& p) {
  if (p.reduction == GanLossReduction::kNone) return 0;
  int64_t blocks = 0;
  chunk_of(p, &blocks);
  return blocks == 1 ? 0 : blocks * static_cast<int64_t>(sizeof(double));
}

void gan_loss_forward(const GanLossProblem& p, const void* const* operands, void* const* gradients,
                      void* loss, void* scratch, void* stream) {
  // the gradients of an unreduced loss need one that comes in
  void* const* const wanted = p.reduction == GanLossReduction::kNone ? nullptr : gradients;
  run(Call{p, operands, wanted, nullptr, false, loss, static_cast<double*>(scratch),
           static_cast<cudaStream_t>(stream)});
}

void gan_loss_backward(const GanLossProblem& p, const void* grad, const void* const* operands,
                       void* const* gradients, bool skip_one, void* stream) {
  run(Call{p, operands, gradients, grad, skip_one, nullptr, nullptr,
           static_cast<cudaStream_t>(stream)});
}

}  // namespace CMF_ISA
}  // namespace cmf
