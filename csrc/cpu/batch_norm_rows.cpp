#include "cpu/batch_norm_rows.h"

#include <type_traits>

#include "common/activation.h"
#include "cpu/simd.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr int kV = kLanes<float>;
// Terms that a lane adds up in float32 before they go to float64.
constexpr int64_t kTerms = 32;

// Constants of a vector of channels, or of one channel in every lane.
struct Lanes {
  Vec<float> mean, scale, shift;

  static CMF_HOST_DEVICE Lanes one(const BatchNormAffine& a) {
    return {broadcast(*a.mean), broadcast(*a.scale), broadcast(*a.shift)};
  }
  static CMF_HOST_DEVICE Lanes at(const BatchNormAffine& a, int64_t c, int lanes) {
    return {load_lanes<float>(a.mean + c, lanes), load_lanes<float>(a.scale + c, lanes),
            load_lanes<float>(a.shift + c, lanes)};
  }
};

// body(i, lanes) over runs: whole vectors, then one partial.
template <class Body>
CMF_HOST_DEVICE void for_each_vector(PlaneRuns planes, const Body& body) {
  for (int64_t run = 0; run < planes.runs; ++run) {
    int64_t i = run * planes.stride;
    const int64_t end = i + planes.count;
    for (; i + kV <= end; i += kV) body(i, kV);
    if (i < end) body(i, static_cast<int>(end - i));
  }
}

// tile(vectors, first pixel, end, first channel, lanes) over blocks of pixels: `kMost` vectors of
// channels at once, or one, which may be partial.
template <int kMost, class Tile>
CMF_HOST_DEVICE void for_each_tile(int64_t pixels, int64_t first, int64_t last, const Tile& tile) {
  for (int64_t i = 0; i < pixels; i += kTerms) {
    const int64_t end = pixels - i < kTerms ? pixels : i + kTerms;
    int64_t c = first;
    for (; c + kMost * kV <= last; c += kMost * kV) {
      tile(std::integral_constant<int, kMost>(), i, end, c, kV);
    }
    for (; c + kV <= last; c += kV) tile(std::integral_constant<int, 1>(), i, end, c, kV);
    if (c < last) {
      tile(std::integral_constant<int, 1>(), i, end, c, static_cast<int>(last - c));
    }
  }
}

template <Activation A>
struct Rows {
  static CMF_HOST_DEVICE Vec<float> gradient(const Lanes& k, Vec<float> deviation, Vec<float> dy,
                                             float param) {
    return backward_from_input<A>(dy, deviation * k.scale + k.shift, param);
  }

  static void plane_forward(const BatchNormAffine& affine, const float* x, float* y,
                            PlaneRuns planes) {
    const Lanes k = Lanes::one(affine);
    const float param = affine.param;
    const auto body = [&](int64_t i, int lanes) __attribute__((always_inline)) {
      const Vec<float> deviation = load_lanes<float>(x + i, lanes) - k.mean;
      store_lanes<float>(y + i, activate<A>(deviation * k.scale + k.shift, param), lanes);
    };
    for_each_vector(planes, body);
  }

  static void pixel_forward(const BatchNormAffine& affine, const float* x, float* y, int64_t pixels,
                            int64_t channels, int64_t first, int64_t last) {
    const float param = affine.param;
    for_each_tile<4>(pixels, first, last,
                     [&](auto vectors, int64_t i, int64_t end, int64_t c, int lanes)
                         __attribute__((always_inline)) {
                           constexpr int kCount = decltype(vectors)::value;
                           Lanes k[kCount];
                           for (int j = 0; j < kCount; ++j)
                             k[j] = Lanes::at(affine, c + j * kV, lanes);
                           for (; i < end; ++i) {
                             for (int j = 0; j < kCount; ++j) {
                               const int64_t place = i * channels + c + j * kV;
                               const Vec<float> deviation =
                                   load_lanes<float>(x + place, lanes) - k[j].mean;
                               const Vec<float> z = deviation * k[j].scale + k[j].shift;
                               store_lanes<float>(y + place, activate<A>(z, param), lanes);
                             }
                           }
                         });
  }

  // Short runs together, or a part of one, in float32.
  static CMF_HOST_DEVICE void run_sums(const BatchNormAffine& affine, const float* x,
                                       const float* dy, PlaneRuns planes, double* dz_sum,
                                       double* dot) {
    const Lanes k = Lanes::one(affine);
    const float param = affine.param;
    Vec<float> sum[2] = {};
    Vec<float> product[2] = {};
    const auto add = [&](int j, Vec<float> deviation, Vec<float> dy_lanes)
                         __attribute__((always_inline)) {
                           const Vec<float> dz = gradient(k, deviation, dy_lanes, param);
                           sum[j] += dz;
                           product[j] += dz * deviation;
                         };
    for (int64_t run = 0; run < planes.runs; ++run) {
      int64_t i = run * planes.stride;
      const int64_t end = i + planes.count;
      for (; i + 2 * kV <= end; i += 2 * kV) {
        for (int j = 0; j < 2; ++j) {
          const int64_t place = i + j * kV;
          add(j, load<float>(x + place) - k.mean, load<float>(dy + place));
        }
      }
      if (i + kV <= end) {
        add(0, load<float>(x + i) - k.mean, load<float>(dy + i));
        i += kV;
      }
      if (i < end) {
        // behind the end a gradient of 0, and no value that an activation could make NaN of
        const int lanes = static_cast<int>(end - i);
        add(1, load_partial<float>(x + i, lanes, *affine.mean) - k.mean,
            load_partial<float>(dy + i, lanes));
      }
    }
    *dz_sum += reduce_add<float>(sum[0] + sum[1]);
    *dot += reduce_add<float>(product[0] + product[1]);
  }

  static void plane_sums(const BatchNormAffine& affine, const float* x, const float* dy,
                         PlaneRuns planes, double* dz_sum, double* dot) {
    constexpr int64_t kMost = 2 * kTerms * kV;
    const int64_t group = kTerms / ((planes.count + 2 * kV - 1) / (2 * kV));  // of short runs
    if (group > 1) {
      for (int64_t run = 0; run < planes.runs; run += group) {
        const int64_t runs = planes.runs - run < group ? planes.runs - run : group;
        const int64_t start = run * planes.stride;
        run_sums(affine, x + start, dy + start, {planes.count, runs, planes.stride}, dz_sum, dot);
      }
      return;
    }
    for (int64_t run = 0; run < planes.runs; ++run) {
      for (int64_t i = 0; i < planes.count; i += kMost) {
        const int64_t start = run * planes.stride + i;
        const int64_t count = planes.count - i < kMost ? planes.count - i : kMost;
        run_sums(affine, x + start, dy + start, {count, 1, 0}, dz_sum, dot);
      }
    }
  }

  static void pixel_sums(const BatchNormAffine& affine, const float* x, const float* dy,
                         int64_t pixels, int64_t channels, int64_t first, int64_t last,
                         double* dz_sums, double* dots) {
    const float param = affine.param;
    for_each_tile<2>(
        pixels, first, last,
        [&](auto vectors, int64_t i, int64_t end, int64_t c, int lanes)
            __attribute__((always_inline)) {
              constexpr int kCount = decltype(vectors)::value;
              Lanes k[kCount];
              Vec<float> sum[kCount] = {};
              Vec<float> product[kCount] = {};
              for (int j = 0; j < kCount; ++j) k[j] = Lanes::at(affine, c + j * kV, lanes);
              for (; i < end; ++i) {
                for (int j = 0; j < kCount; ++j) {
                  const int64_t place = i * channels + c + j * kV;
                  const Vec<float> deviation = load_lanes<float>(x + place, lanes) - k[j].mean;
                  const Vec<float> dz =
                      gradient(k[j], deviation, load_lanes<float>(dy + place, lanes), param);
                  sum[j] += dz;
                  product[j] += dz * deviation;
                }
              }
              float sums[2][kCount * kV] = {};
              for (int j = 0; j < kCount; ++j) {
                store<float>(sums[0] + j * kV, sum[j]);
                store<float>(sums[1] + j * kV, product[j]);
              }
              const int64_t width = lanes < kV ? lanes : kCount * kV;  // tiles of several are whole
              for (int64_t j = 0; j < width; ++j) {
                dz_sums[c - first + j] += sums[0][j];
                dots[c - first + j] += sums[1][j];
              }
            });
  }

  static void plane_gradient(const BatchNormAffine& affine, const BatchNormGradient& g,
                             const float* x, const float* dy, float* dx, PlaneRuns planes) {
    const Lanes k = Lanes::one(affine);
    const Vec<float> slope = broadcast(*g.slope);
    const Vec<float> offset = broadcast(*g.offset);
    const float param = affine.param;
    const auto body = [&](int64_t i, int lanes) __attribute__((always_inline)) {
      const Vec<float> deviation = load_lanes<float>(x + i, lanes) - k.mean;
      const Vec<float> dz = gradient(k, deviation, load_lanes<float>(dy + i, lanes), param);
      store_lanes<float>(dx + i, dz * k.scale + (deviation * slope + offset), lanes);
    };
    for_each_vector(planes, body);
  }

  static void pixel_gradient(const BatchNormAffine& affine, const BatchNormGradient& g,
                             const float* x, const float* dy, float* dx, int64_t pixels,
                             int64_t channels, int64_t first, int64_t last) {
    const float param = affine.param;
    for_each_tile<2>(
        pixels, first, last,
        [&](auto vectors, int64_t i, int64_t end, int64_t c, int lanes)
            __attribute__((always_inline)) {
              constexpr int kCount = decltype(vectors)::value;
              Lanes k[kCount];
              Vec<float> slope[kCount], offset[kCount];
              for (int j = 0; j < kCount; ++j) {
                k[j] = Lanes::at(affine, c + j * kV, lanes);
                slope[j] = load_lanes<float>(g.slope + c + j * kV, lanes);
                offset[j] = load_lanes<float>(g.offset + c + j * kV, lanes);
              }
              for (; i < end; ++i) {
                for (int j = 0; j < kCount; ++j) {
                  const int64_t place = i * channels + c + j * kV;
                  const Vec<float> deviation = load_lanes<float>(x + place, lanes) - k[j].mean;
                  const Vec<float> dz =
                      gradient(k[j], deviation, load_lanes<float>(dy + place, lanes), param);
                  store_lanes<float>(dx + place,
                                     dz * k[j].scale + (deviation * slope[j] + offset[j]), lanes);
                }
              }
            });
  }
};

template <Activation A>
constexpr BatchNormRows rows_of() {
  return {Rows<A>::plane_forward, Rows<A>::pixel_forward,  Rows<A>::plane_sums,
          Rows<A>::pixel_sums,    Rows<A>::plane_gradient, Rows<A>::pixel_gradient};
}

}  // namespace

const BatchNormRows& batch_norm_rows(int32_t activation) {
  // the order of Activation
  static const BatchNormRows rows[kActivations] = {
      rows_of<Activation::kIdentity>(),  rows_of<Activation::kRelu>(),
      rows_of<Activation::kLeakyRelu>(), rows_of<Activation::kRelu6>(),
      rows_of<Activation::kElu>(),       rows_of<Activation::kSilu>(),
      rows_of<Activation::kGelu>(),      rows_of<Activation::kGeluTanh>(),
      rows_of<Activation::kTanh>(),      rows_of<Activation::kSigmoid>(),
      rows_of<Activation::kSoftplus>(),  rows_of<Activation::kHardswish>(),
  };
  return rows[activation];
}

}  // namespace CMF_ISA
}  // namespace cmf
