// How the gradients of a 1x1 convolution are cut into pieces.
#pragma once

#include "common/conv_act_pool2d_problem.h"
#include "cpu/integers.h"
#include "cpu/pointwise_tile.h"

namespace cmf {
namespace CMF_ISA {

// A chunk's x and gradient: beside weights in the second cache.
constexpr int64_t kChunkBytes = INT64_C(3) << 16;
constexpr int64_t kLeastPixels = 112;  // or the weight gradient's sums would be loaded too often
constexpr int64_t kMostPixels = 512;
// A weight gradient that stays in the second cache; larger ones are computed in groups of filters.
constexpr int64_t kSumBytes = INT64_C(1) << 18;
constexpr int64_t kUnits = 16;  // slices · groups, about

// How the pixels of the convolution's output are cut: chunks of rows of an image, or of several
// images where those are small. Slices of chunks have sums of their own, whatever the threads; so
// have groups of filters.
struct Chunks {
  int64_t images;  // in a chunk
  int64_t bands;   // of rows, in an image
  int64_t rows;    // in a band, at most
  int64_t count;
  int64_t slices;
  int64_t groups;

  Chunks(const ConvActPool2dProblem& p, int64_t channels, int64_t filters) {
    const ActPool2dProblem& pool = p.pool;
    const int64_t fitting = kChunkBytes / 4 / (channels + filters);
    const int64_t pixels = fitting < kLeastPixels ? kLeastPixels : least(fitting, kMostPixels);
    const int64_t area = pool.height * pool.width;
    images = area > pixels ? 1 : least(pixels / area, pool.batch);
    const int64_t most = pixels < pool.width ? 1 : least(pixels / pool.width, pool.height);
    bands = divide_up(pool.height, most);
    rows = divide_up(pool.height, bands);
    count = divide_up(pool.batch, images) * bands;
    const int64_t together =
        kSumBytes / 4 / channels < 2 * kTileLanes ? 1 : kSumBytes / 4 / channels / kTileLanes;
    groups = divide_up(filters, together * kTileLanes);
    slices = least(divide_up(kUnits, groups), count);
  }
};

}  // namespace CMF_ISA
}  // namespace cmf
