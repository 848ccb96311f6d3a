// exp and log1p on vectors, in additions, multiplications and one division.
#pragma once

#include "simd.hpp"

namespace robustft {
namespace {

// e^x for x ≤ 88, within 2 ulp; gradual underflow to 0; NaN stays NaN.
// x = n·ln 2 + r with |r| ≤ ½ ln 2; e^r = 1 + r + r²·q(r), q of degree 4 with the smallest largest
// error there: 3e-9 of e^r.
inline Vec exp(Vec x) {
  // e^-104 is below half of the smallest subnormal: 0. Set, not computed: a result that underflows
  // costs a hundred cycles. A NaN fails the comparison and passes.
#if defined(__AVX512F__)
  const __mmask16 keep =
      _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), _mm512_set1_ps(-104.0f), _CMP_NLT_UQ);
  const Vec z = reinterpret_cast<Vec>(_mm512_maskz_mov_ps(keep, reinterpret_cast<__m512>(x)));
#else
  const IVec gone = x < -104.0f;
  const Vec z = select(gone, Vec{}, x);
#endif
  // Adding 1.5·2^23 leaves the nearest integer in the low mantissa bits.
  constexpr float kRound = 12582912.0f;
  const Vec shifted = fma(z, splat(1.44269504f), splat(kRound));
  const Vec n = shifted - kRound;
  // ln 2 in two parts, the first with enough trailing zeros that n·ln 2 is exact without fma.
  const Vec r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), z));
  Vec p = fma(splat(1.3814540e-3f), r, splat(8.3687451e-3f));
  p = fma(p, r, splat(4.1668391e-2f));
  p = fma(p, r, splat(1.6666520e-1f));
  p = fma(p, r, splat(0.49999993f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(
      _mm512_maskz_scalef_ps(keep, reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
#else
  // 2^n in two factors, each a normal number even where the result is not.
  const IVec exponent = reinterpret_cast<IVec>(as_bits(shifted)) - 0x4b400000;
  const IVec half = exponent >> 1;
  const Vec low = reinterpret_cast<Vec>((half + 127) << 23);
  const Vec high = reinterpret_cast<Vec>((exponent - half + 127) << 23);
  return select(gone, Vec{}, p * low * high);
#endif
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
