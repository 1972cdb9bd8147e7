// The GAN losses: one pass over the operands gives the sums and the gradients. Compiled once per
// instruction set.
//
// The elements are cut into chunks whose borders depend on the problem alone. A thread takes whole
// chunks and each chunk's sum has its own place, so the threads' number changes no bit of the
// result. Within a chunk blocks of kBlock elements go through lanes of the compute type, then
// float64.
#include "cpu/gan_loss.h"

#include "cpu/gan_loss_block.h"
#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int64_t kLeastChunk = 4096;  // elements
static_assert(kLeastChunk % kBlock == 0, "only a term's last block may be partial");
constexpr int kMostChunks = 1024;  // beside one a term
constexpr int kTermsAtOnce = 64;
constexpr int64_t kWorthThreads = 32768;  // elements under which starting threads costs more

// Half types pass through buffers of the compute type, a block at a time; the others are used where
// they lie.
template <class T, class C>
struct Staged {
  alignas(CMF_VECTOR_BYTES) C buffer[kBlock];
  const C* read(const T* source, int count) {
    int i = 0;
    for (; i + kLanes<C> <= count; i += kLanes<C>) store<C>(buffer + i, load<C>(source + i));
    if (i < count) store<C>(buffer + i, load_partial<C>(source + i, count - i));
    return buffer;
  }
  C* target(T* where) { return where ? buffer : nullptr; }
  void write(T* where, int count) {
    if (!where) return;
    int i = 0;
    for (; i + kLanes<C> <= count; i += kLanes<C>) store<C>(where + i, load<C>(buffer + i));
    if (i < count) store_partial<C>(where + i, load<C>(buffer + i), count - i);
  }
};

template <class C>
struct Staged<C, C> {
  const C* read(const C* source, int) { return source; }
  C* target(C* where) { return where; }
  void write(C*, int) {}
};

template <class T>
const T* at(const void* base, int64_t index) {
  return static_cast<const T*>(base) + index;
}

template <class T>
T* at(void* base, int64_t index) {
  return base ? static_cast<T*>(base) + index : nullptr;
}

// One pass over a problem: what every chunk needs to know.
struct Pass {
  const GanLossProblem* problem;
  const void* const* operands;
  void* const* gradients;  // null where no gradient is wanted
  Mode mode;
  double grad;              // kGradients: the incoming gradient
  const void* grad_values;  // kElementGradients: [count]
  void* values;             // kElements: [count]
};

double gradient_factor(const GanLossProblem& problem, const GanLossTerm& term) {
  return problem.reduction == GanLossReduction::kMean ? term.scale / static_cast<double>(term.count)
                                                      : term.scale;
}

// Elements [begin, end) of one term. T: operands and gradients; L: the unreduced loss and its
// gradient.
template <class T, class L>
double run_chunk(const Pass& pass, int index, int64_t begin, int64_t end, bool* bad) {
  typedef ComputeType<T> C;
  const GanLossProblem& problem = *pass.problem;
  const GanLossTerm& term = problem.terms[index];
  const void* const* operands = pass.operands + index * problem.operands;
  void* const* gradients = pass.gradients ? pass.gradients + index * problem.operands : nullptr;
  void* const dx_base = gradients ? gradients[0] : nullptr;
  void* const dy_base = gradients && problem.operands > 1 ? gradients[1] : nullptr;

  Staged<T, C> operand[3], dx, dy;
  Staged<L, C> grad, value;
  Block<C> block = {};
  block.parameter = static_cast<C>(term.parameter);
  block.factor = static_cast<C>(
      pass.mode == kElements ? term.scale : gradient_factor(problem, term) * pass.grad);
  block.add = index > 0;
  for (int64_t i = begin; i < end; i += kBlock) {
    const int count = end - i < kBlock ? static_cast<int>(end - i) : kBlock;
    block.count = count;
    for (int k = 0; k < problem.operands; ++k) {
      block.operand[k] = operand[k].read(at<T>(operands[k], i), count);
    }
    T* const dx_here = at<T>(dx_base, i);
    T* const dy_here = at<T>(dy_base, i);
    block.dx = dx.target(dx_here);
    block.dy = dy.target(dy_here);
    if (pass.mode == kElementGradients) {
      block.grad = grad.read(at<L>(pass.grad_values, i), count);
    }
    L* const value_here = pass.mode == kElements ? at<L>(pass.values, i) : nullptr;
    block.value = value.target(value_here);
    if (pass.mode == kElements && block.add) value.read(value_here, count);
    run_function<C>(problem.function, pass.mode, block);
    dx.write(dx_here, count);
    dy.write(dy_here, count);
    value.write(value_here, count);
  }
  *bad = *bad || block.bad;
  double sum = 0;
  for (int lane = 0; lane < kLanes<C>; ++lane) sum += block.sums[lane];
  return sum;
}

typedef double (*ChunkRunner)(const Pass&, int, int64_t, int64_t, bool*);

// The loss has the operands' dtype, or is float32 over half types (autocast).
ChunkRunner chunk_runner(const GanLossProblem& problem) {
  const bool wide = problem.loss_dtype == static_cast<int32_t>(DType::kFloat32);
  switch (static_cast<DType>(problem.dtype)) {
    case DType::kFloat64:
      return run_chunk<double, double>;
    case DType::kFloat16:
      return wide ? run_chunk<Half, float> : run_chunk<Half, Half>;
    case DType::kBFloat16:
      return wide ? run_chunk<BFloat16, float> : run_chunk<BFloat16, BFloat16>;
    case DType::kFloat32:
      break;
  }
  return run_chunk<float, float>;
}

// Runs terms [first, first + terms) and gives each one's sum.
void run_terms(const Pass& pass, int first, int terms, double* sums, bool* bad, int threads) {
  const GanLossProblem& problem = *pass.problem;
  int64_t elements = 0;
  for (int term = 0; term < terms; ++term) elements += problem.terms[first + term].count;
  const int64_t even = (elements / kMostChunks + kBlock) / kBlock * kBlock;
  const int64_t chunk = even > kLeastChunk ? even : kLeastChunk;

  int start[kTermsAtOnce + 1];  // the first chunk of each term
  start[0] = 0;
  for (int term = 0; term < terms; ++term) {
    start[term + 1] =
        start[term] + static_cast<int>((problem.terms[first + term].count + chunk - 1) / chunk);
  }
  const int chunks = start[terms];
  double partial[kMostChunks + kTermsAtOnce];
  bool bad_chunk[kMostChunks + kTermsAtOnce];
  const ChunkRunner runner = chunk_runner(problem);
  const auto run = [&](int index) {
    int term = 0;
    while (index >= start[term + 1]) ++term;
    const int64_t begin = (index - start[term]) * chunk;
    const int64_t count = problem.terms[first + term].count;
    bad_chunk[index] = false;
    partial[index] = runner(pass, first + term, begin,
                            begin + chunk < count ? begin + chunk : count, &bad_chunk[index]);
  };
  if (elements < kWorthThreads || threads == 1) {  // without a call of the OpenMP runtime
    for (int index = 0; index < chunks; ++index) run(index);
  } else {
#if defined(_OPENMP)
#pragma omp parallel for num_threads(threads) schedule(static)
#endif
    for (int index = 0; index < chunks; ++index) run(index);
  }
  for (int term = 0; term < terms; ++term) {
    sums[term] = 0;
    for (int index = start[term]; index < start[term + 1]; ++index) {
      sums[term] += partial[index];
      *bad = *bad || bad_chunk[index];
    }
  }
}

// All terms; the loss where they are reduced.
double run_pass(const Pass& pass, bool* bad, int threads) {
  const GanLossProblem& problem = *pass.problem;
  // Unreduced terms add up in one place, one after the other.
  const int at_once = pass.mode == kElements ? 1 : kTermsAtOnce;
  double loss = 0;
  for (int first = 0; first < problem.term_count; first += at_once) {
    const int left = problem.term_count - first;
    const int terms = left < at_once ? left : at_once;
    double sums[kTermsAtOnce];
    run_terms(pass, first, terms, sums, bad, threads);
    for (int term = 0; term < terms; ++term) {
      const GanLossTerm& here = problem.terms[first + term];
      double reduced = sums[term];
      // an empty mean is 0 / 0, as in PyTorch
      if (problem.reduction == GanLossReduction::kMean) reduced /= static_cast<double>(here.count);
      loss += here.scale * reduced;
    }
  }
  return loss;
}

void store_scalar(int32_t dtype, void* target, double value) {
  switch (static_cast<DType>(dtype)) {
    case DType::kFloat32:
      *static_cast<float*>(target) = static_cast<float>(value);
      return;
    case DType::kFloat64:
      *static_cast<double*>(target) = value;
      return;
    case DType::kFloat16:
      *static_cast<Half*>(target) = from_compute<Half>(static_cast<float>(value));
      return;
    case DType::kBFloat16:
      *static_cast<BFloat16*>(target) = from_compute<BFloat16>(static_cast<float>(value));
      return;
  }
}

double load_scalar(int32_t dtype, const void* source) {
  switch (static_cast<DType>(dtype)) {
    case DType::kFloat32:
      return *static_cast<const float*>(source);
    case DType::kFloat64:
      return *static_cast<const double*>(source);
    case DType::kFloat16:
      return to_compute<float>(*static_cast<const Half*>(source));
    case DType::kBFloat16:
      return to_compute<float>(*static_cast<const BFloat16*>(source));
  }
  return 0;
}

}  // namespace

int gan_loss_forward(const GanLossProblem& problem, const void* const* operands,
                     void* const* gradients, void* loss, int threads) {
  Pass pass = {&problem, operands, nullptr, kSum, 1.0, nullptr, nullptr};
  bool bad = false;
  if (problem.reduction == GanLossReduction::kNone) {
    pass.mode = kElements;
    pass.values = loss;
    run_pass(pass, &bad, threads);
  } else {
    for (int index = 0; index < problem.term_count * problem.operands; ++index) {
      if (gradients[index]) {
        pass.mode = kSumAndGradients;
        pass.gradients = gradients;
      }
    }
    store_scalar(problem.loss_dtype, loss, run_pass(pass, &bad, threads));
  }
  return bad ? kGanLossBadProbability : 0;
}

void gan_loss_backward(const GanLossProblem& problem, const void* grad, const void* const* operands,
                       void* const* gradients, int threads) {
  Pass pass = {&problem, operands, gradients, kGradients, 1.0, nullptr, nullptr};
  bool bad = false;
  if (problem.reduction == GanLossReduction::kNone) {
    pass.mode = kElementGradients;
    pass.grad_values = grad;
  } else {
    pass.grad = load_scalar(problem.loss_dtype, grad);
  }
  run_pass(pass, &bad, threads);
}

}  // namespace CMF_ISA
}  // namespace cmf
