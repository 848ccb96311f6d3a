// exp and log1p on vectors, in additions, multiplications and one division.
#pragma once

#include "simd.hpp"

namespace robustft {
namespace {

// e^x for x ≤ 88, within 2 ulp; gradual underflow to 0; NaN stays NaN.
// x = n·ln 2 + r with |r| ≤ ½ ln 2; the Taylor series of e^r to r^7 leaves r^8/8! < 6e-9.
inline Vec exp(Vec x) {
  // e^-104 is below half of the smallest subnormal. A NaN fails the comparison and passes.
  const Vec z = select(x < -104.0f, splat(-104.0f), x);
  // Adding 1.5·2^23 leaves the nearest integer in the low mantissa bits.
  constexpr float kRound = 12582912.0f;
  const Vec shifted = z * 1.44269504f + kRound;
  const Vec n = shifted - kRound;
  // ln 2 in two parts, the first with enough trailing zeros that n·ln 2 is exact.
  const Vec r = (z - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = r * (1.0f / 5040.0f) + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // 2^n in two factors, each a normal number even where the result is not.
  const IVec exponent = reinterpret_cast<IVec>(as_bits(shifted)) - 0x4b400000;
  const IVec half = exponent >> 1;
  const Vec low = reinterpret_cast<Vec>((half + 127) << 23);
  const Vec high = reinterpret_cast<Vec>((exponent - half + 127) << 23);
  return select(x == x, p * low * high, x);
}

// ln(1 + y) for y in [0, 1] = 2·artanh(s), s = y/(2 + y) ≤ 1/3. The series to s^15 leaves less than
// 2e-9 of the result.
inline Vec log1p(Vec y) {
  const Vec s = y / (y + 2.0f);
  const Vec q = s * s;
  Vec p = q * (1.0f / 15.0f) + 1.0f / 13.0f;
  p = p * q + 1.0f / 11.0f;
  p = p * q + 1.0f / 9.0f;
  p = p * q + 1.0f / 7.0f;
  p = p * q + 1.0f / 5.0f;
  p = p * q + 1.0f / 3.0f;
  p = p * q + 1.0f;
  return 2.0f * s * p;
}

}  // namespace
}  // namespace robustft
