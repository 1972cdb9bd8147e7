// One problem of a convolution family: exact values, a naive convolution, and act_pool2d behind it,
// whose bits the fused kernel must have. Every array is of its exact size, so that the address
// sanitizer sees what a kernel touches beside it.
#pragma once

#include <vector>

#include "common/conv_act_pool2d_kernels.h"

namespace cmf {

struct KernelTable;

namespace test {

struct ConvShape {
  int64_t batch, channels, height, width, filters, kernel_height, kernel_width;
  int64_t stride, pad;
  int64_t dilation = 1, groups = 1;
};

struct ConvAfter {
  int32_t activation;
  double param;
  Pool pool;
  int64_t size, stride;
};

ConvActPool2dProblem conv_problem(const ConvShape& shape, const ConvAfter& after,
                                  bool x_channels_last, bool y_channels_last);

class ConvCase {
 public:
  ConvCase(const KernelTable& kernels, ConvAlgorithm algorithm, const ConvShape& shape,
           const ConvAfter& after, bool x_channels_last, bool y_channels_last);

  // y and the index with several numbers of threads, without and with a residual.
  void check_forward();

  // dx, dw and dbias without a pooling, of activations whose derivative from y is 1, 0 or a power
  // of two: exact, too.
  void check_backward();

 private:
  void check_forward(const std::vector<float>* residual);
  std::vector<float> output() const;
  int64_t z_at(int64_t n, int64_t k, int64_t h, int64_t w) const;
  double derivative(float y) const;
  // body(index in x, index in w) of each product of one element of the output
  template <class Body>
  void each_product(int64_t n, int64_t k, int64_t h, int64_t w, const Body& body) const;
  double convolve(int64_t n, int64_t k, int64_t h, int64_t w) const;
  int64_t x_at(int64_t n, int64_t c, int64_t h, int64_t w) const;

  const KernelTable& kernels_;
  const ConvKernels& algorithm_;
  ConvActPool2dProblem p_;
  std::vector<float> x_, w_, bias_;
};

}  // namespace test
}  // namespace cmf
