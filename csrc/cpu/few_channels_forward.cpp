// Forward: y = pool(act(x * w + bias)), blocks of the convolution's output in registers.
//
// The maxima of windows of 2 x 2 are taken there too, and stored straight into a channels_last y.
// Other poolings, activations and formats go through rows in scratch and band_epilogue.h.
#include <stdlib.h>

#include "cpu/band_epilogue.h"
#include "cpu/few_channels.h"
#include "cpu/few_channels_block.h"
#include "cpu/few_channels_frame.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kVector = kLanes<float>;
constexpr int64_t kFrameFloats = 24 * 1024;    // of x that an item frames, about
constexpr int64_t kScratchFloats = 48 * 1024;  // of the convolution's output in scratch, about
// y past the caches from this many bytes on: what is smaller may be read from there
constexpr int64_t kStreamBytes = 2 << 20;
// A parallel region costs about as much as this many multiplications take one thread.
constexpr int64_t kProductsPerThread = 1 << 19;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Weights and taps, once a call and for all threads.
class Packed {
 public:
  ~Packed() {
    free(weights_);
    free(taps_);
  }
  bool allocate(const ConvActPool2dProblem& p) {
    count_ = p.in_channels * p.kernel_height * p.kernel_width;
    padded_ = (p.pool.channels + kVector - 1) / kVector * kVector;
    weights_ = static_cast<float*>(malloc(static_cast<size_t>((count_ + 1) * padded_) * 4));
    taps_ = static_cast<int32_t*>(malloc(static_cast<size_t>(count_) * 4));
    return weights_ && taps_;
  }
  // w [K, C, R, S] -> [block of channels][R, S, C][lanes of the block]; the bias behind all.
  void fill(const ConvActPool2dProblem& p, const Frame& frame, const float* w, const float* bias) {
    const int64_t channels = p.in_channels, area = p.kernel_height * p.kernel_width;
    int64_t t = 0;
    for (int64_t r = 0; r < p.kernel_height; ++r) {
      for (int64_t s = 0; s < p.kernel_width; ++s) {
        for (int64_t c = 0; c < channels; ++c, ++t) {
          taps_[t] =
              static_cast<int32_t>(r * frame.row() + s * frame.column() + c * frame.channel());
          const float* source = w + c * area + r * p.kernel_width + s;
          for (int64_t k = 0; k < padded_; ++k) {
            const int64_t first = k / kBlockLanes * kBlockLanes;
            const int64_t lanes = least(padded_ - first, kBlockLanes);
            weights_[first * count_ + t * lanes + (k - first)] =
                k < p.pool.channels ? source[k * count_] : 0.0f;
          }
        }
      }
    }
    float* target = weights_ + count_ * padded_;
    for (int64_t k = 0; k < padded_; ++k) {
      target[k] = bias && k < p.pool.channels ? bias[k] : 0.0f;
    }
  }
  int64_t count() const { return count_; }
  int64_t padded() const { return padded_; }
  const int32_t* taps() const { return taps_; }
  const float* weights(int64_t k_first) const { return weights_ + k_first * count_; }
  const float* bias(int64_t k_first) const { return weights_ + padded_ * count_ + k_first; }

 private:
  int64_t count_ = 0;   // taps
  int64_t padded_ = 0;  // K in whole vectors
  float* weights_ = nullptr;
  int32_t* taps_ = nullptr;
};

// How a problem is run.
struct Plan {
  bool windows;  // maxima of 2 x 2 in registers
  bool direct;   // stores from registers into y
  bool stream;
  int64_t rows;  // of y in an item

  int64_t z_rows(const ActPool2dProblem& p, int64_t y_rows) const {
    return (y_rows - 1) * p.pool_stride_height + p.pool_height;
  }
};

Plan make_plan(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
               int threads) {
  const ActPool2dProblem& p = problem.pool;
  const Activation activation = static_cast<Activation>(p.activation);
  const bool quick = activation == Activation::kIdentity || activation == Activation::kRelu ||
                     (activation == Activation::kLeakyRelu && p.activation_param > 0);
  Plan plan;
  plan.windows = p.pool == Pool::kMax && p.monotone && p.pool_height == 2 && p.pool_width == 2 &&
                 p.pool_stride_height == 2 && p.pool_stride_width == 2 && p.pool_pad_height == 0 &&
                 p.pool_pad_width == 0 && 2 * p.out_height <= p.height &&
                 2 * p.out_width <= p.width && !tensors.preactivation;
  plan.direct = p.channels_last && quick && (plan.windows || p.pool == Pool::kNone);
  const int64_t y_bytes = p.batch * p.channels * p.out_height * p.out_width * 4;
  const bool aligned =
      p.channels % kVector == 0 && reinterpret_cast<uintptr_t>(tensors.y) % CMF_VECTOR_BYTES == 0;
  plan.stream = plan.direct && aligned && y_bytes >= kStreamBytes;
  const int64_t frame_row = (problem.width + 2 * problem.pad_width) * problem.in_channels;
  const int64_t x_rows = p.pool_stride_height * problem.stride_height;
  int64_t rows = kFrameFloats / (frame_row * x_rows);
  if (!plan.direct) {
    const int64_t z_row = plan.windows ? p.out_width : p.width * p.pool_stride_height;
    rows = least(rows, kScratchFloats / (z_row * kBlockLanes));
  }
  rows = most(1, least(rows, p.out_height));
  // small batches: rows for every thread
  while (rows > 4 && p.batch * ((p.out_height + rows - 1) / rows) < 4 * threads) rows /= 2;
  const int64_t bands = (p.out_height + rows - 1) / rows;
  plan.rows = (p.out_height + bands - 1) / bands;
  return plan;
}

class ForwardItem {
 public:
  ForwardItem(const ConvActPool2dProblem& problem, const Plan& plan, const Packed& packed,
              const ConvForwardTensors& tensors)
      : problem_(problem),
        p_(problem.pool),
        plan_(plan),
        packed_(packed),
        tensors_(tensors),
        frame_(problem, most(problem.pool.width, kBlockOutputs)),
        whole_(problem.pool, kBlockLanes, plan.rows),
        rest_(problem.pool, kVector, plan.rows) {}
  ~ForwardItem() { free(scratch_); }
  ForwardItem(const ForwardItem&) = delete;
  ForwardItem& operator=(const ForwardItem&) = delete;

  bool prepare() {
    const int64_t z_rows = plan_.z_rows(p_, plan_.rows);
    const int64_t x_rows = (z_rows - 1) * problem_.stride_height + problem_.kernel_height;
    if (!frame_.allocate(x_rows, 0)) return false;
    if (plan_.direct) return true;
    const int64_t outputs = plan_.windows ? plan_.rows * p_.out_width : z_rows * p_.width;
    const int64_t floats = (outputs + kBlockOutputs) * kBlockLanes;
    scratch_ = static_cast<float*>(malloc(static_cast<size_t>(floats) * 5));
    if (!scratch_) return false;
    codes_ = reinterpret_cast<uint8_t*>(scratch_ + floats);
    return whole_.prepare() && rest_.prepare();
  }

  // Rows p_first .. p_last - 1 of y in image n.
  void run(int64_t n, int64_t p_first, int64_t p_last) {
    const int64_t start = p_first * p_.pool_stride_height - p_.pool_pad_height;
    const int64_t z_first = most(start, 0);
    const int64_t z_last = least(start + plan_.z_rows(p_, p_last - p_first), p_.height);
    const int64_t x_image = problem_.in_channels * problem_.height * problem_.width;
    frame_.fill(static_cast<const float*>(tensors_.x) + n * x_image,
                z_first * problem_.stride_height - problem_.pad_height,
                (z_last - z_first - 1) * problem_.stride_height + problem_.kernel_height);
    for (int64_t k = 0; k < p_.channels; k += kBlockLanes) {
      const int count = static_cast<int>(least(p_.channels - k, kBlockLanes));
      const Band band = {n, p_first, p_last, k, count};
      if (count > kVector) {
        run_block<kBlockVectors>(band, z_first, z_last, whole_);
      } else {
        run_block<1>(band, z_first, z_last, rest_);
      }
    }
  }

 private:
  template <int kVectors>
  void run_block(const Band& band, int64_t z_first, int64_t z_last, BandEpilogue& epilogue) {
    constexpr int kWidth = kVectors * kVector;
    const int64_t first = (band.n * p_.out_height + band.p_first) * p_.out_width;
    BlockOutput out = {scratch_, codes_, kWidth, 0, kVector, Activation::kIdentity, 0, false};
    if (plan_.direct) {
      out.pixel = p_.channels;
      out.y = static_cast<float*>(tensors_.y) + first * out.pixel + band.k_first;
      if (tensors_.index) {
        out.codes = static_cast<uint8_t*>(tensors_.index) + first * out.pixel + band.k_first;
      }
      out.last_lanes = band.k_count - (kVectors - 1) * kVector;
      out.activation = static_cast<Activation>(p_.activation);
      out.param = static_cast<float>(p_.activation_param);
      out.stream = plan_.stream;
    }
    BlockInput in;
    in.column = frame_.column() * problem_.stride_width;
    in.taps = packed_.taps();
    in.count = packed_.count();
    in.weights = packed_.weights(band.k_first);
    in.bias = packed_.bias(band.k_first);
    const int64_t z_row = problem_.stride_height * frame_.row();
    if (plan_.windows) {
      in.row = z_row;
      for (int64_t p = band.p_first; p < band.p_last; ++p) {
        const float* row = frame_.data() + 2 * (p - band.p_first) * z_row;
        tensors_.index ? window_row<kVectors, true>(in, out, row)
                       : window_row<kVectors, false>(in, out, row);
        out.y += p_.out_width * out.pixel;
        if (tensors_.index) out.codes += p_.out_width * out.pixel;
      }
      if (!plan_.direct)
        epilogue.finish(scratch_, tensors_.index ? codes_ : nullptr, band, tensors_);
      return;
    }
    in.row = kBlockColumns * in.column;
    for (int64_t z = z_first; z < z_last; ++z) {
      line<kVectors>(in, out, frame_.data() + (z - z_first) * z_row);
      out.y += p_.width * out.pixel;
    }
    if (!plan_.direct) epilogue.pool(scratch_, z_first, band, tensors_);
  }

  // Rows longer than a block end in one that covers some outputs again; the values are the same.
  template <int kVectors, bool kTrack>
  void window_row(BlockInput in, const BlockOutput& row, const float* x) const {
    const int64_t count = p_.out_width;
    BlockOutput out = row;
    out.count = static_cast<int>(least(count, kBlockWindows));
    for (int64_t q = 0; q < count; q += kBlockWindows) {
      const int64_t at = q > 0 ? least(q, count - kBlockWindows) : 0;
      in.x = x + 2 * at * in.column;
      out.y = row.y + at * row.pixel;
      if (kTrack) out.codes = row.codes + at * row.pixel;
      window_block<kVectors, kTrack>(in, out);
    }
  }

  template <int kVectors>
  void line(BlockInput in, const BlockOutput& row, const float* x) const {
    const int64_t count = p_.width;
    BlockOutput out = row;
    out.count = static_cast<int>(least(count, kBlockOutputs));
    for (int64_t w = 0; w < count; w += kBlockOutputs) {
      const int64_t at = w > 0 ? least(w, count - kBlockOutputs) : 0;
      in.x = x + at * in.column;
      out.y = row.y + at * row.pixel;
      line_block<kVectors>(in, out);
    }
  }

  const ConvActPool2dProblem& problem_;
  const ActPool2dProblem& p_;
  const Plan& plan_;
  const Packed& packed_;
  const ConvForwardTensors& tensors_;
  Frame frame_;
  BandEpilogue whole_;  // of kBlockVectors vectors of channels
  BandEpilogue rest_;   // of one
  float* scratch_ = nullptr;
  uint8_t* codes_ = nullptr;
};

}  // namespace

const char* few_channels_refusal(const ConvActPool2dProblem& problem, bool backward) {
  const ActPool2dProblem& p = problem.pool;
  if (static_cast<DType>(p.dtype) != DType::kFloat32) return "takes float32 alone";
  if (problem.groups != 1) return "takes one group alone";
  if (problem.dilation_height != 1 || problem.dilation_width != 1) return "takes dilation 1 alone";
  if (problem.in_channels > 8) return "takes up to 8 input channels";
  if (problem.kernel_height > 16 || problem.kernel_width > 16) return "takes kernels up to 16x16";
  if (problem.width > (1 << 20) || p.width > (1 << 20)) return "takes rows up to 2**20 columns";
  if (p.index_itemsize > 1) return "takes pooling windows of up to 255 elements";
  if (backward && p.saved == Saved::kInput) {
    return "keeps no input of the activation, which this backward needs";
  }
  return nullptr;
}

bool few_channels_forward(const ConvActPool2dProblem& problem, const ConvForwardTensors& tensors,
                          int threads) {
  const ActPool2dProblem& p = problem.pool;
  const int64_t products = p.batch * p.channels * p.height * p.width * problem.in_channels *
                           problem.kernel_height * problem.kernel_width;
  const int parts = static_cast<int>(most(1, least(threads, products / kProductsPerThread)));
  const Plan plan = make_plan(problem, tensors, parts);
  Packed packed;
  if (!packed.allocate(problem)) return false;
  packed.fill(problem, Frame(problem, most(p.width, kBlockOutputs)),
              static_cast<const float*>(tensors.w), static_cast<const float*>(tensors.bias));
  const int64_t bands = (p.out_height + plan.rows - 1) / plan.rows;
  const int64_t items = p.batch * bands;
  bool success = true;
#if defined(_OPENMP)
#pragma omp parallel num_threads(parts) if (parts > 1)
#endif
  {
    ForwardItem item(problem, plan, packed, tensors);
    const bool ready = item.prepare();
    if (!ready) {
#if defined(_OPENMP)
#pragma omp atomic write
#endif
      success = false;
    }
#if defined(_OPENMP)
#pragma omp for schedule(static)
#endif
    for (int64_t i = 0; i < items; ++i) {
      if (!ready) continue;
      const int64_t p_first = i % bands * plan.rows;
      item.run(i / bands, p_first, least(p_first + plan.rows, p.out_height));
    }
    finish_streams();
  }
  return success;
}

}  // namespace CMF_ISA
}  // namespace cmf
