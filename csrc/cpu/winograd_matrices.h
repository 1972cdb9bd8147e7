// Winograd's minimal filtering F(m, r) in one dimension, generated from its interpolation points.
//
// m outputs of an r-tap filter from alpha = m + r - 1 inputs with alpha multiplications:
// y = A^T ((G w) * (B^T d)), the transposed form of Toom-Cook multiplication (Lavin and Gray, arXiv
// 1509.09308; Vincent et al. on points, ICLR 2017 workshop). alpha - 1 points are finite, the last
// is infinity. The matrices follow from the points:
//   A^T[i][f] = p_f^i        G[f][j] = p_f^j / prod over g != f of (p_f - p_g)
//   B^T[f]    = the coefficients of prod over g != f of (x - p_g)
// and at infinity the leading coefficients alone.
#pragma once

#include "common/dtype.h"

namespace cmf {
namespace CMF_ISA {

constexpr double kSqrt2 = 1.41421356237309504880;

// The finite points: pairs +p, -p first, then 0 where there is an odd number of them.
template <int kAlpha>
struct WinogradPoints;

template <>
struct WinogradPoints<4> {
  static constexpr double kFinite[3] = {1, -1, 0};
};
template <>
struct WinogradPoints<5> {
  static constexpr double kFinite[4] = {0.4, -0.4, 1.2, -1.2};
};
template <>
struct WinogradPoints<6> {  // 4 times less rounding than 0, ±1, ±2
  static constexpr double kFinite[5] = {kSqrt2 / 2, -kSqrt2 / 2, kSqrt2, -kSqrt2, 0};
};
template <>
struct WinogradPoints<7> {
  static constexpr double kFinite[6] = {0.3, -0.3, 0.9, -0.9, 1.6, -1.6};
};
template <>
struct WinogradPoints<8> {
  static constexpr double kFinite[7] = {1, -1, 2, -2, 0.5, -0.5, 0};
};

template <int kM, int kR>
struct WinogradMatrices {
  static constexpr int kAlpha = kM + kR - 1;
  float a[kM][kAlpha] = {};      // A^T
  float g[kAlpha][kR] = {};      // G
  float b[kAlpha][kAlpha] = {};  // B^T

  constexpr WinogradMatrices() {
    for (int f = 0; f + 1 < kAlpha; ++f) {
      const double p = WinogradPoints<kAlpha>::kFinite[f];
      double scale = 1;
      double product[kAlpha] = {1};  // coefficients, the constant first
      multiply_others(f, product, &scale);
      double power = 1;
      for (int i = 0; i < kAlpha; ++i) {
        if (i < kM) a[i][f] = static_cast<float>(power);
        if (i < kR) g[f][i] = static_cast<float>(power / scale);
        b[f][i] = static_cast<float>(product[i]);
        power *= p;
      }
    }
    double product[kAlpha] = {1};
    double scale = 1;
    multiply_others(-1, product, &scale);
    for (int i = 0; i < kAlpha; ++i) b[kAlpha - 1][i] = static_cast<float>(product[i]);
    a[kM - 1][kAlpha - 1] = 1;
    g[kAlpha - 1][kR - 1] = 1;
  }

 private:
  // product *= x - p_g and scale *= p_f - p_g for every finite g but f
  static constexpr void multiply_others(int f, double* product, double* scale) {
    for (int other = 0; other + 1 < kAlpha; ++other) {
      if (other == f) continue;
      const double q = WinogradPoints<kAlpha>::kFinite[other];
      for (int i = kAlpha - 1; i > 0; --i) product[i] = product[i - 1] - q * product[i];
      product[0] *= -q;
      if (f >= 0) *scale *= WinogradPoints<kAlpha>::kFinite[f] - q;
    }
    // what cancels exactly on paper
    for (int i = 0; i < kAlpha; ++i) {
      if (product[i] < 1e-9 && product[i] > -1e-9) product[i] = 0;
    }
  }
};

template <int kM, int kR>
struct Winograd {
  static constexpr int kOutputs = kM;
  static constexpr int kTaps = kR;
  static constexpr int kAlpha = kM + kR - 1;
  static constexpr int kFrequencies = kAlpha * kAlpha;
  static constexpr WinogradMatrices<kM, kR> kMatrices = WinogradMatrices<kM, kR>();
};

}  // namespace CMF_ISA
}  // namespace cmf
