// Forward: y = pool(act(x * w + bias)), blocks of the convolution's output in registers.
//
// The maxima of windows of 2 x 2 are taken there too; where the filters are 3 x 3 at stride 1 the
// windows are Winograd's tiles. Other maxima are taken of a ring of rows in cache, and whatever
// else follows goes through scratch and band_epilogue.h; planes of a few filters through scratch
// and the epilogue's own worker.
#include "cpu/band_epilogue.h"
#include "cpu/few_channels.h"
#include "cpu/few_channels_block.h"
#include "cpu/few_channels_plan.h"
#include "cpu/few_channels_planes.h"
#include "cpu/few_channels_pool.h"
#include "cpu/few_channels_rows.h"

namespace cmf {
namespace CMF_ISA {
namespace {

// A parallel region costs about as much as this many multiplications take one thread.
constexpr int64_t kProductsPerThread = 1 << 19;

class ForwardItem {
 public:
  ForwardItem(const ConvActPool2dProblem& problem, const Plan& plan, const Packed& packed,
              const ConvForwardTensors& tensors)
      : problem_(problem),
        p_(problem.pool),
        plan_(plan),
        packed_(packed),
        tensors_(tensors),
        frame_(problem, frame_columns(problem, plan), frame_planar(problem, plan)),
        whole_(problem.pool, kBlockLanes, plan.rows),
        rest_lanes_(rest_lanes(problem.pool)),
        rest_(problem.pool, rest_lanes_, plan.rows),
        worker_(problem.pool) {}
  ForwardItem(const ForwardItem&) = delete;
  ForwardItem& operator=(const ForwardItem&) = delete;

  bool prepare() {
    const int64_t rows = z_rows(p_, plan_.rows);
    const int64_t slack = plan_.way == Way::kRows ? kRowLanes : kLanes<float>;
    if (!frame_.allocate((rows - 1) * problem_.stride_height + problem_.kernel_height, slack)) {
      return false;
    }
    if (plan_.way == Way::kRows) {
      plane_ = rows * p_.width + most(kRowLanes, kSlackLanes * kLanes<float>);
      return floats_.allocate(kRowFilters * plane_) && worker_.prepare(nullptr);
    }
    const int64_t ring = plan_.way == Way::kPooled ? p_.pool_height * p_.width : 0;
    const bool lines = plan_.way == Way::kEpilogue || plan_.way == Way::kLines;
    const int64_t kept = lines ? rows * p_.width : plan_.rows * p_.out_width;
    const int64_t outputs = plan_.in_registers() ? 0 : kept;
    const int64_t tiles = plan_.way == Way::kTiles ? plan_.rows * tile_row_floats(problem_) : 0;
    const int64_t flags = plan_.way == Way::kTiles ? plan_.rows * tile_groups(p_) : p_.pool_height;
    if (!rows_.allocate(p_.pool_height) || !special_.allocate(flags) ||
        !floats_.allocate(tiles + (ring + outputs) * kBlockLanes) ||
        !codes_.allocate(outputs * kBlockLanes)) {
      return false;
    }
    tiles_ = floats_.data;
    ring_ = tiles_ + tiles;
    scratch_ = ring_ + ring * kBlockLanes;
    return plan_.in_registers() || plan_.planes || (whole_.prepare() && rest_.prepare());
  }

  // In scratch that is activated and pooled few channels take half a vector, and half the time.
  int rest_lanes(const ActPool2dProblem& p) const {
    const int64_t rest = p.channels % kBlockLanes;
    return plan_.way == Way::kEpilogue && rest > 0 && rest <= kVector / 2 ? kVector / 2 : kVector;
  }

  // Rows p_first .. p_last - 1 of y in image n.
  void run(int64_t n, int64_t p_first, int64_t p_last) {
    const int64_t start = p_first * p_.pool_stride_height - p_.pool_pad_height;
    const int64_t z_first = most(start, 0);
    const int64_t z_last = least(start + z_rows(p_, p_last - p_first), p_.height);
    const int64_t x_image = problem_.in_channels * problem_.height * problem_.width;
    const int64_t x_rows = (z_last - z_first - 1) * problem_.stride_height + problem_.kernel_height;
    frame_.fill(static_cast<const float*>(tensors_.x) + n * x_image,
                z_first * problem_.stride_height - problem_.pad_height, x_rows);
    moderate_ = packed_.moderate() && frame_.is_moderate(x_rows);
    if (plan_.way == Way::kRows) return run_rows(n, p_first, p_last, z_first, z_last);
    if (plan_.way == Way::kTiles) transform_rows(p_last - p_first);
    for (int64_t k = 0; k < p_.channels; k += kBlockLanes) {
      const int count = static_cast<int>(least(p_.channels - k, kBlockLanes));
      const Band band = {n, p_first, p_last, k, count};
      if (count > kVector) {
        run_block<kBlockVectors>(band, z_first, z_last, kBlockLanes, whole_);
      } else {
        run_block<1>(band, z_first, z_last, rest_lanes_, rest_);
      }
    }
  }

 private:
  template <int kVectors>
  void run_block(const Band& band, int64_t z_first, int64_t z_last, int width,
                 BandEpilogue& epilogue) {
    const int64_t first = (band.n * p_.out_height + band.p_first) * p_.out_width;
    const int last_lanes = width - (kVectors - 1) * kVector;
    BlockOutput out = {scratch_,   codes_.data,           width, 0,
                       last_lanes, Activation::kIdentity, 0,     false};
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
    Planes planes = {};
    if (plan_.planes || plan_.way == Way::kRowWindows) {
      planes = planes_of(band);
      prefetch_planes(planes);
    }
    BlockInput in;
    in.column = frame_.column() * problem_.stride_width;
    in.taps = packed_.taps();
    in.count = packed_.count();
    in.weights = packed_.weights(band.k_first);
    in.bias = packed_.bias(band.k_first);
    in.moderate = moderate_;
    const int64_t z_row = problem_.stride_height * frame_.row();
    in.row = z_row;
    const float* x = frame_.data();
    if (plan_.way == Way::kRowWindows) {
      in.x = x;
      tensors_.index ? row_windows<true>(in, kVectors * kVector, p_.out_width, planes)
                     : row_windows<false>(in, kVectors * kVector, p_.out_width, planes);
    } else if (plan_.way == Way::kWindows) {
      for (int64_t p = band.p_first; p < band.p_last; ++p, x += 2 * z_row) {
        tensors_.index ? window_row<kVectors, true>(in, out, x)
                       : window_row<kVectors, false>(in, out, x);
        next_row(out);
      }
    } else if (plan_.way == Way::kTiles) {
      TileInput tiles = {tiles_, packed_.filters(band.k_first), in.bias};
      for (int64_t p = band.p_first; p < band.p_last; ++p, x += 2 * z_row) {
        const uint8_t* special = special_.data + (p - band.p_first) * tile_groups(p_);
        tensors_.index ? tile_row<kVectors, true>(tiles, special, in, out, x)
                       : tile_row<kVectors, false>(tiles, special, in, out, x);
        tiles.x += tile_row_floats(problem_);
        next_row(out);
      }
    } else if (plan_.way == Way::kPooled) {
      pooled_rows<kVectors>(in, out, band, z_first);
    } else {
      for (int64_t z = z_first; z < z_last; ++z, x += z_row) {
        line<kVectors>(in, out, x);
        out.y += p_.width * out.pixel;
      }
    }
    if (plan_.planes) {
      store_planes(scratch_, width, planes);
      if (tensors_.index && p_.pool == Pool::kMax) store_planes(codes_.data, width, planes);
    } else if (plan_.way == Way::kEpilogue) {
      epilogue.pool(scratch_, z_first, band, tensors_);
    } else if (!plan_.in_registers()) {
      epilogue.finish(scratch_, tensors_.index ? codes_.data : nullptr, band, tensors_);
    }
  }

  Planes planes_of(const Band& band) const {
    const int64_t plane = p_.out_height * p_.out_width;
    const int64_t at = (band.n * p_.channels + band.k_first) * plane + band.p_first * p_.out_width;
    return {static_cast<float*>(tensors_.y) + at,
            tensors_.index ? static_cast<uint8_t*>(tensors_.index) + at : nullptr,
            plane,
            (band.p_last - band.p_first) * p_.out_width,
            band.k_count,
            static_cast<Activation>(p_.activation),
            static_cast<float>(p_.activation_param),
            plan_.stream};
  }

  // All filters' rows z_first .. z_last - 1, and what follows them plane by plane.
  void run_rows(int64_t n, int64_t p_first, int64_t p_last, int64_t z_first, int64_t z_last) {
    BlockInput in;
    in.taps = packed_.taps();
    in.count = packed_.count();
    in.weights = packed_.weights(0);
    in.bias = packed_.bias(0);
    for (int64_t z = z_first; z < z_last; ++z) {
      in.x = frame_.data() + (z - z_first) * problem_.stride_height * frame_.row();
      row_of_filters(in, static_cast<int>(p_.channels), p_.width,
                     floats_.data + (z - z_first) * p_.width, plane_);
    }
    const int64_t size = p_.out_height * p_.out_width;
    const int64_t skipped = z_first * p_.width;  // the worker counts rows from the image's first
    for (int64_t k = 0; k < p_.channels; ++k) {
      const int64_t at = (n * p_.channels + k) * size;
      float* y = static_cast<float*>(tensors_.y) + at;
      char* index = tensors_.index ? static_cast<char*>(tensors_.index) + at : nullptr;
      float* preactivation =
          tensors_.preactivation ? static_cast<float*>(tensors_.preactivation) + at : nullptr;
      worker_.run(floats_.data + k * plane_ - skipped, -0.0f, y, index, preactivation, p_first,
                  p_last, skipped + plane_, p_last - p_first);
    }
  }

  void next_row(BlockOutput& out) const {
    out.y += p_.out_width * out.pixel;
    if (tensors_.index) out.codes += p_.out_width * out.pixel;
  }

  // The convolution's rows go through a ring of as many as a window has.
  template <int kVectors>
  void pooled_rows(const BlockInput& in, BlockOutput& out, const Band& band, int64_t z_first) {
    const int64_t row = p_.width * kVectors * kVector;
    const PoolAxis vertical = vertical_axis(p_);
    const BlockOutput to_ring = {
        ring_, nullptr, kVectors * kVector, 0, kVector, Activation::kIdentity, 0, false};
    int64_t next = z_first;
    for (int64_t p = band.p_first; p < band.p_last; ++p) {
      const PoolWindow window = pool_window(vertical, p);
      bool nan = false;
      for (int64_t r = window.first; r < window.last; ++r) {
        const int64_t z = window.start + r;
        const int64_t slot = z % p_.pool_height;
        if (z >= next) {
          BlockOutput target = to_ring;
          target.y = ring_ + slot * row;
          special_.data[slot] = line<kVectors>(in, target, frame_.data() + (z - z_first) * in.row);
          next = z + 1;
        }
        rows_.data[r - window.first] = ring_ + slot * row;
        nan |= special_.data[slot] != 0;
      }
      const LineWindows windows = {rows_.data, window, horizontal_axis(p_)};
      tensors_.index ? pool_line_max<kVectors, true>(windows, nan, out)
                     : pool_line_max<kVectors, false>(windows, nan, out);
      next_row(out);
    }
  }

  // Rows longer than a block end in one that covers some outputs again; the values are the same.
  template <int kVectors, bool kTrack>
  void window_row(BlockInput in, const BlockOutput& row, const float* x) const {
    const int64_t count = p_.out_width;
    BlockOutput out = row;
    constexpr int64_t kWindows = kBlockWindows<kVectors>;
    out.count = static_cast<int>(least(count, kWindows));
    for (int64_t q = 0; q < count; q += kWindows) {
      const int64_t at = q > 0 ? least(q, count - kWindows) : 0;
      in.x = x + 2 * at * in.column;
      out.y = row.y + at * row.pixel;
      if (kTrack) out.codes = row.codes + at * row.pixel;
      window_block<kVectors, kTrack>(in, out);
    }
  }

  void transform_rows(int64_t rows) {
    const int64_t channels = problem_.in_channels, step = channels * kTilesTogether;
    float* target = tiles_;
    for (int64_t i = 0; i < rows * tile_groups(p_); ++i) {
      const int64_t row = i / tile_groups(p_), group = i % tile_groups(p_);
      const float* x = frame_.data() + 2 * row * frame_.row() + 2 * group * kTilesTogether;
      bool finite = true;
      for (int64_t c = 0; c < channels; ++c) {
        finite &= transform_tiles(x + c * frame_.channel(), frame_.row(),
                                  target + c * kTilesTogether, step);
      }
      special_.data[i] = !finite;
      target += kFrequencies * step;
    }
  }

  // Tiles with values that are not finite go the plain way: transforms spread those.
  template <int kVectors, bool kTrack>
  void tile_row(const TileInput& tiles, const uint8_t* special, BlockInput in,
                const BlockOutput& row, const float* x) const {
    BlockOutput out = row;
    for (int64_t q = 0; q < p_.out_width;) {
      const int64_t group = q / kTilesTogether, tile = q % kTilesTogether;
      const int64_t left = least(kTilesTogether - tile, p_.out_width - q);
      const int together = special[group] ? kBlockWindows<kVectors> : kTilesOf<kVectors>;
      out.count = static_cast<int>(least(left, together));
      out.y = row.y + q * row.pixel;
      if (kTrack) out.codes = row.codes + q * row.pixel;
      if (special[group]) {
        in.x = x + 2 * q * in.column;
        window_block<kVectors, kTrack>(in, out);
      } else {
        TileInput input = tiles;
        input.x += group * kFrequencies * problem_.in_channels * kTilesTogether + tile;
        tile_block_of<kVectors, kTrack>(problem_.in_channels, input, out);
      }
      q += out.count;
    }
  }

  // Whether any output is NaN.
  template <int kVectors>
  bool line(BlockInput in, const BlockOutput& row, const float* x) const {
    const int64_t count = p_.width;
    BlockOutput out = row;
    out.count = static_cast<int>(least(count, plan_.columns));
    bool nan = false;
    for (int64_t w = 0; w < count; w += plan_.columns) {
      const int64_t at = w > 0 ? least(w, count - plan_.columns) : 0;
      in.x = x + at * in.column;
      out.y = row.y + at * row.pixel;
      nan |= line_block_of<kVectors>(plan_.columns, in, out);
    }
    return nan;
  }

  const ConvActPool2dProblem& problem_;
  const ActPool2dProblem& p_;
  const Plan& plan_;
  const Packed& packed_;
  const ConvForwardTensors& tensors_;
  Frame frame_;
  BandEpilogue whole_;           // of kBlockVectors vectors of channels
  const int rest_lanes_;         // of the scratch, for a last vector of channels
  BandEpilogue rest_;            // of one vector or less
  ForwardWorker<float> worker_;  // of planes
  bool moderate_ = false;        // the frame, the weights and the bias
  int64_t plane_ = 0;            // floats of a filter's rows in scratch
  Scratch<const float*> rows_;   // [pool_height]: a window's
  Scratch<float> floats_;
  float* tiles_ = nullptr;    // [rows][groups][frequency][C][kTilesTogether]
  float* ring_ = nullptr;     // [pool_height][W][kBlockLanes]
  float* scratch_ = nullptr;  // what is still to be stored
  Scratch<uint8_t> codes_;    // its positions
  Scratch<uint8_t> special_;  // [pool_height]: whether a row of the ring has NaN; or
                              // [rows][groups]: whether tiles have values that are not finite
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
  if (!packed.allocate(problem, plan.way == Way::kTiles)) return false;
  packed.fill(problem, Frame(problem, frame_columns(problem, plan), frame_planar(problem, plan)),
              static_cast<const float*>(tensors.w), static_cast<const float*>(tensors.bias));
  if (plan.way == Way::kTiles) packed.transform(problem, static_cast<const float*>(tensors.w));
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
    fence_streams();
  }
  return success;
}

}  // namespace CMF_ISA
}  // namespace cmf
