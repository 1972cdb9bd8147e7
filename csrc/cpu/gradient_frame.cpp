#include "cpu/gradient_frame.h"

#include <string.h>

#include "cpu/expand_pooled.h"
#include "cpu/gradient_rows.h"
#include "cpu/integers.h"

namespace cmf {
namespace CMF_ISA {
namespace {

typedef Vec<float> V;
constexpr int kV = kLanes<float>;

ActPool2dProblem band_of(const ActPool2dProblem& whole, int lanes) {
  ActPool2dProblem p = whole;
  p.batch = 1;
  p.channels = p.image_channels = lanes;
  p.channels_last = true;
  return p;
}

bool is_linear_by_parts(const ActPool2dProblem& p) {
  const Activation activation = static_cast<Activation>(p.activation);
  return activation == Activation::kIdentity || activation == Activation::kRelu ||
         activation == Activation::kLeakyRelu;
}

bool has_pairs(const ActPool2dProblem& p) {
  return p.pool_height == 2 && p.pool_width == 2 && p.pool_stride_height == 2 &&
         p.pool_stride_width == 2 && p.pool_pad_height == 0 && p.pool_pad_width == 0 &&
         2 * p.out_height <= p.height && 2 * p.out_width <= p.width && p.index_itemsize <= 1;
}

// Maxima of windows of 3 columns at stride 2.
bool has_threes(const ActPool2dProblem& p) {
  return p.pool == Pool::kMax && p.pool_width == 3 && p.pool_stride_width == 2 &&
         p.index_itemsize <= 1;
}

}  // namespace

GradientFrame::GradientFrame(const ConvActPool2dProblem& problem,
                             const ConvBackwardTensors& tensors, int64_t rows, int64_t columns,
                             int64_t first_column, int lanes)
    : p_(problem.pool),
      t_(tensors),
      band_problem_(band_of(problem.pool, lanes)),
      worker_(band_problem_, nullptr, nullptr, nullptr, nullptr, nullptr),
      vertical_(vertical_axis(problem.pool)),
      rows_(rows),
      columns_(columns),
      first_column_(first_column),
      lanes_(lanes),
      expansion_(p_.pool == Pool::kNone ? Expansion::kPlain
                 : has_pairs(p_)        ? Expansion::kPairs
                 : has_threes(p_)       ? Expansion::kThrees
                                        : Expansion::kGeneral),
      in_registers_(p_.saved != Saved::kOutput || is_linear_by_parts(p_)),
      direct_((expansion_ == Expansion::kPlain || expansion_ == Expansion::kPairs) &&
              p_.channels_last && in_registers_ && p_.saved != Saved::kPreactivation) {}

bool GradientFrame::prepare() {
  const int64_t count = rows_ * columns_ * lanes_;
  if (!frame_.allocate(count)) return false;
  memset(frame_.data, 0, static_cast<size_t>(count) * sizeof(float));
  if (!direct_) {
    // pooled rows that `rows_` rows of z can lie in
    int64_t rows = (rows_ + p_.pool_height - 2) / p_.pool_stride_height + 2;
    if (rows > p_.out_height) rows = p_.out_height;
    const int64_t band = rows * p_.out_width * lanes_;
    if (!dy_.allocate(band)) return false;
    if (t_.saved && !saved_.allocate(band)) return false;
    if (p_.index_itemsize && !codes_.allocate(band)) return false;
  }
  if (expansion_ == Expansion::kGeneral) {
    return dense_.allocate(rows_ * p_.width * lanes_) && worker_.prepare();
  }
  return true;
}

GradientFrame::View GradientFrame::read(int64_t n, int64_t p_first, int64_t p_last, int64_t k_first,
                                        int k_count) {
  const float* dy = static_cast<const float*>(t_.dy);
  const float* saved = static_cast<const float*>(t_.saved);
  const uint8_t* codes = static_cast<const uint8_t*>(t_.index);
  const int64_t plane = p_.out_height * p_.out_width;
  const int64_t pixels = (p_last - p_first) * p_.out_width;
  const int64_t skipped = p_first * p_.out_width;
  const int64_t pixel = p_.channels_last ? p_.image_channels : 0;
  const int64_t offset = p_.channels_last ? (n * plane + skipped) * pixel + k_first
                                          : (n * p_.image_channels + k_first) * plane + skipped;
  dy += offset;
  if (saved) saved += offset;
  if (codes) codes += offset;
  if (direct_) return View{dy, saved, codes, pixel};
  if (codes && pixel) load_pixels(codes, pixel, pixels, k_count, lanes_, codes_.data);
  if (codes && !pixel) load_planes(codes, plane, pixels, k_count, lanes_, codes_.data);
  if (derives()) {
    const float param = static_cast<float>(p_.activation_param);
    if (static_cast<Activation>(p_.activation) == Activation::kRelu) {
      derive_all<Activation::kRelu>(dy, saved, pixel, plane, pixels, k_count, lanes_, param,
                                    dy_.data);
    } else {
      derive_all<Activation::kLeakyRelu>(dy, saved, pixel, plane, pixels, k_count, lanes_, param,
                                         dy_.data);
    }
    return View{dy_.data, nullptr, codes ? codes_.data : nullptr, lanes_};
  }
  if (pixel) {
    load_pixels(dy, pixel, pixels, k_count, lanes_, dy_.data);
    if (saved) load_pixels(saved, pixel, pixels, k_count, lanes_, saved_.data);
  } else {
    load_planes(dy, plane, pixels, k_count, lanes_, dy_.data);
    if (saved) load_planes(saved, plane, pixels, k_count, lanes_, saved_.data);
  }
  // each gradient of a pooled row goes to several rows: it is derived before
  const bool before =
      expansion_ == Expansion::kThrees || !in_registers_ || p_.saved == Saved::kPreactivation;
  if (expansion_ != Expansion::kGeneral && before) {
    backward_row(p_, dy_.data, saved_.data, RowBias<float>{-0.0f, nullptr}, dy_.data,
                 pixels * lanes_);
  }
  return View{dy_.data, saved ? saved_.data : nullptr, codes ? codes_.data : nullptr, lanes_};
}

void GradientFrame::fill(int64_t n, int64_t first, int64_t rows, int64_t k_first, int k_count) {
  first_ = first;
  end_ = first + rows;
  const int64_t h_first = first > 0 ? first : 0;
  const int64_t h_last = end_ < p_.height ? end_ : p_.height;
  const auto clear = [&](int64_t from, int64_t to) {
    if (to <= from) return;
    memset(frame_.data + (from - first_) * row_step(), 0,
           static_cast<size_t>((to - from) * row_step()) * sizeof(float));
  };
  if (h_first >= h_last) return clear(first, end_);
  clear(first, h_first);
  clear(h_last, end_);
  int64_t p_first = h_first, p_last = h_last;
  if (expansion_ != Expansion::kPlain) {
    p_first = pool_cover(vertical_, h_first).first;
    p_last = pool_cover(vertical_, h_last - 1).last;
    // rows that no window covers
    if (p_first >= p_last) return clear(h_first, h_last);
  }
  const View view = read(n, p_first, p_last, k_first, k_count);
  if (expansion_ == Expansion::kPlain) {
    fill_plain(view, p_first, p_last, k_count);
  } else if (expansion_ == Expansion::kPairs) {
    if (h_last > 2 * p_.out_height) clear(2 * p_.out_height, h_last);
    fill_pairs(view, p_first, p_last, k_count);
  } else if (expansion_ == Expansion::kThrees) {
    fill_threes(view, p_first, p_last, h_first, h_last, k_count);
  } else {
    fill_general(view, p_first, h_first, h_last);
  }
}

void GradientFrame::fill_plain(const View& view, int64_t p_first, int64_t p_last, int k_count) {
  const float param = static_cast<float>(p_.activation_param);
  const Activation activation = view.saved && p_.saved == Saved::kOutput && in_registers_
                                    ? static_cast<Activation>(p_.activation)
                                    : Activation::kIdentity;
  for (int64_t p = p_first; p < p_last; ++p) {
    const int64_t offset = (p - p_first) * p_.out_width * view.pixel;
    const float* dy = view.dy + offset;
    const float* saved = view.saved ? view.saved + offset : nullptr;
    float* row = row_of(p);
    if (activation == Activation::kRelu) {
      expand_plain<Activation::kRelu>(dy, saved, view.pixel, p_.out_width, k_count, lanes_, param,
                                      row);
    } else if (activation == Activation::kLeakyRelu) {
      expand_plain<Activation::kLeakyRelu>(dy, saved, view.pixel, p_.out_width, k_count, lanes_,
                                           param, row);
    } else {
      expand_plain<Activation::kIdentity>(dy, saved, view.pixel, p_.out_width, k_count, lanes_,
                                          param, row);
    }
  }
}

void GradientFrame::fill_pairs(const View& view, int64_t p_first, int64_t p_last, int k_count) {
  const float param = static_cast<float>(p_.activation_param);
  const Activation activation = static_cast<Activation>(p_.activation);
  const bool derives = view.saved && p_.saved == Saved::kOutput && in_registers_;
  for (int64_t p = p_first; p < p_last; ++p) {
    const int64_t offset = (p - p_first) * p_.out_width * view.pixel;
    const float* saved = view.saved ? view.saved + offset : nullptr;
    const uint8_t* codes = view.codes ? view.codes + offset : nullptr;
    float* even = 2 * p >= first_ ? row_of(2 * p) : nullptr;
    float* odd = 2 * p + 1 < end_ ? row_of(2 * p + 1) : nullptr;
    const auto expand = [&](auto activation_constant, const auto& rule, float scale)
                            __attribute__((always_inline)) {
                              expand_pairs<decltype(activation_constant)::value>(
                                  view.dy + offset, saved, codes, view.pixel, p_.out_width, k_count,
                                  lanes_, rule, scale, param, even, odd);
                            };
    constexpr ActivationConstant<Activation::kIdentity> kNone = {};
    if (p_.pool == Pool::kMax) {
      if (derives && activation == Activation::kRelu) {
        expand(ActivationConstant<Activation::kRelu>{}, MaxRule{}, 1.0f);
      } else if (derives && activation == Activation::kLeakyRelu) {
        expand(ActivationConstant<Activation::kLeakyRelu>{}, MaxRule{}, 1.0f);
      } else {
        expand(kNone, MaxRule{}, 1.0f);
      }
    } else if (p_.saved != Saved::kMask) {
      expand(kNone, AverageRule{}, 0.25f);
    } else if (activation == Activation::kLeakyRelu) {
      expand(kNone, MaskedRule<float, true>{param}, 0.25f);
    } else {
      expand(kNone, MaskedRule<float, false>{0.0f}, 0.25f);
    }
  }
}

void GradientFrame::fill_threes(const View& view, int64_t p_first, int64_t p_last, int64_t h_first,
                                int64_t h_last, int k_count) {
  const PooledBlock block = {view.dy, view.pixel, view.codes, view.pixel, false};
  expand_threes(p_, MaxRule{}, block,
                DenseRows{row_of(h_first), h_first, h_last, p_first, p_last, row_step(), lanes_,
                          static_cast<int>(divide_up(k_count, kV)), lanes_});
}

void GradientFrame::fill_general(const View& view, int64_t p_first, int64_t h_first,
                                 int64_t h_last) {
  // the worker counts rows from the image's first: its bases lie that far before the scratch
  const int64_t skipped = p_first * p_.out_width * lanes_;
  const int64_t row = p_.width * lanes_;
  const char* codes = reinterpret_cast<const char*>(view.codes);
  worker_.rebase(view.dy - skipped, view.saved ? view.saved - skipped : nullptr,
                 codes ? codes - skipped : nullptr, dense_.data - h_first * row);
  worker_.run(0, h_first, h_last, nullptr);
  for (int64_t h = h_first; h < h_last; ++h) {
    memcpy(row_of(h), dense_.data + (h - h_first) * row, static_cast<size_t>(row) * sizeof(float));
  }
}

void GradientFrame::sum_rows(int64_t row_first, int64_t row_last, float* sums) const {
  for (int k = 0; k < lanes_; k += kV) {
    V total = V{};
    for (int64_t row = row_first; row < row_last; ++row) {
      const float* source = at(row, first_column_) + k;
      V parts[4] = {V{}, V{}, V{}, V{}};
      int64_t i = 0;
      for (; i + 4 <= columns_; i += 4) {
        for (int j = 0; j < 4; ++j) parts[j] += load<float>(source + (i + j) * lanes_);
      }
      for (; i < columns_; ++i) parts[0] += load<float>(source + i * lanes_);
      total += (parts[0] + parts[1]) + (parts[2] + parts[3]);
    }
    store<float>(sums + k, total);
  }
}

float gradient_at(const ActPool2dProblem& p, const ConvBackwardTensors& t, int64_t n, int64_t k,
                  int64_t row, int64_t column) {
  const int64_t plane = p.out_height * p.out_width;
  const auto at = [&](int64_t i, int64_t j) {
    const int64_t pixel = i * p.out_width + j;
    return p.channels_last ? (n * plane + pixel) * p.image_channels + k
                           : (n * p.image_channels + k) * plane + pixel;
  };
  const float* dy = static_cast<const float*>(t.dy);
  const float* saved = static_cast<const float*>(t.saved);
  const char* codes = static_cast<const char*>(t.index);
  const auto derive_one = [&](int64_t i) {
    float g = 0;
    backward_row(p, dy + i, saved ? saved + i : nullptr, RowBias<float>{-0.0f, nullptr}, &g, 1);
    return g;
  };
  if (p.pool == Pool::kNone) return derive_one(at(row, column));
  const PoolAxis vertical = vertical_axis(p);
  const PoolAxis horizontal = horizontal_axis(p);
  const PoolCover rows = pool_cover(vertical, row);
  const PoolCover columns = pool_cover(horizontal, column);
  float sum = 0;
  for (int64_t i = rows.first; i < rows.last; ++i) {
    for (int64_t j = columns.first; j < columns.last; ++j) {
      const int64_t place = at(i, j);
      const int64_t position = (row + vertical.pad - i * vertical.stride) * horizontal.size +
                               column + horizontal.pad - j * horizontal.stride;
      const int64_t code = p.index_itemsize ? code_at(codes, p.index_itemsize, place) : 0;
      if (p.pool == Pool::kMax) {
        if (code == position) sum += derive_one(place);
        continue;
      }
      const int64_t divisor =
          pool_extent(vertical, pool_window(vertical, i), p.count_include_pad) *
          pool_extent(horizontal, pool_window(horizontal, j), p.count_include_pad);
      const float g = dy[place] / static_cast<float>(divisor);
      if (p.saved != Saved::kMask || (code >> position & 1) != 0) {
        sum += g;
      } else if (static_cast<Activation>(p.activation) == Activation::kLeakyRelu) {
        sum += g * static_cast<float>(p.activation_param);
      }
    }
  }
  return sum;
}

}  // namespace CMF_ISA
}  // namespace cmf
