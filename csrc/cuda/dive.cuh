// What the kernels of dive_loss (DiVE, arXiv 2511.09973) share: n(f) − n(f0) from products of rows.
//
//   u = n(f) − n(f0),  v = n(g) − n(g0),  m = α·m_prev + (1−α)·mean of all u and v
//   AVL = (1/B) Σ (|u − m|² + |v − m|²),  PVL = (1/B) Σ |u − v|²
//
// u is d·p + f0·q with d = f − w·f0: rows of like length have w = 1, p = 1/|f|, q = 1/|f| − 1/|f0|
// from |f|² − |f0|² = |f − f0|² + 2<f − f0, f0>, which keeps the digits that two rounded unit
// vectors lose; others w = 0, q = −1/|f0|. Rows whose squares would leave float32's range, and
// those that fell below half their length, are squared again, over a power of two. float32 within a
// row.
#pragma once

#include "ptx.cuh"

namespace dive {

// Rows shorter are divided by it, as torch does.
inline constexpr float SHORTEST = 1e-12f;
// Squared lengths from which no formula below over- or underflows without scaling.
inline constexpr float SMALL = 1e-16f, LARGE = 1e16f;

// n(x) − n(x0) = (x − w·x0)·p + x0·q. What comes of a row's products is double: rounded, p and q
// would leave errors along n(x), which the sums that would take them out do not know of.
struct Difference {
  float w = 1;
  double p = 1, q = 0;
  bool clamped = false;
};

__device__ __forceinline__ float moved(const Difference& d, float x, float x0, float centre) {
  return fmaf(fmaf(-d.w, x0, x), float(d.p), fmaf(x0, float(d.q), -centre));
}

// Adds to |x0|², |x − x0|², <x − x0, x0>, from which the difference follows; gives x − x0.
__device__ __forceinline__ float add_products(float* s, float x, float x0) {
  const float d = x - x0;
  s[0] = fmaf(x0, x0, s[0]);
  s[1] = fmaf(d, d, s[1]);
  s[2] = fmaf(d, x0, s[2]);
  return d;
}

// 1/√x within 2^-40 of it.
__device__ __forceinline__ double inverse_root(double x) {
  const double y = rsqrt_approx(float(x));
  return fma(0.5 * y, fma(-x * y, y, 1.0), y);
}

// From those products. False, and no difference, where a length is out of range or x is less than
// half as long as x0: the products cancel there (and where one is NaN).
__device__ __forceinline__ bool difference_of(const float* s, Difference& d) {
  const double x0 = s[0], apart = fma(2.0, double(s[2]), double(s[1])), x = x0 + apart;  // |x|², …
  const double p = inverse_root(x), p0 = inverse_root(x0), both = p * p0, sum = p + p0;
  const bool like = x <= 4 * x0;
  // 1/|x| − 1/|x0| = (|x0|² − |x|²)/((|x| + |x0|)·|x|·|x0|)
  double r = reciprocal_approx(float(sum));
  r = fma(r, fma(-sum, r, 1.0), r);
  d.w = like ? 1 : 0;
  d.p = p;
  d.q = like ? -apart * both * (both * r) : -p0;
  return x0 >= SMALL && x <= LARGE && 4 * x >= x0;
}

// The largest power of two that is at most x; it and its inverse are normal numbers.
__device__ __forceinline__ float power_of_two(float x) {
  const float within = fminf(fmaxf(x, 1.17549435e-38f), 8.5070592e37f);
  return __uint_as_float(__float_as_uint(within) & 0x7f800000u);
}

// The same of rows of any length. s: Σx², Σx0², Σ(x − x0)(x + x0), over powers of two: scale, and
// scale0 in the second.
__device__ __forceinline__ Difference difference_of(const float* s, float scale, float scale0) {
  const float length = sqrtf(s[0]), length0 = sqrtf(s[1]);
  float norm = scale * length, norm0 = scale0 * length0;
  const bool clamped = norm < SHORTEST, clamped0 = norm0 < SHORTEST;
  if (clamped) norm = SHORTEST;
  if (clamped0) norm0 = SHORTEST;
  Difference d;
  d.p = 1.0f / norm;
  d.clamped = clamped;
  if (!clamped && !clamped0 && norm <= 2 * norm0 && norm0 <= 2 * norm) {
    const float down = 1.0f / scale, ratio = norm0 * down;
    d.q = -s[2] / ((length + ratio) * length * ratio) * down;
  } else {
    d.w = 0;
    d.q = -1.0f / norm0;
  }
  return d;
}

}  // namespace dive
