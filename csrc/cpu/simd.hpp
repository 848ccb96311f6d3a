// Vectors of one register's width, by the compiler's vector extension: one source serves SSE2,
// AVX2, AVX-512 and NEON. Only fma and conversions from and to float16 name instructions.
// Everything here has internal linkage, so that each instruction set keeps its own copy.
#pragma once

#include <cstdint>
#include <cstring>

#include "dtypes.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace robustft {
namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * W)));
typedef int32_t IVec __attribute__((vector_size(4 * W)));
typedef uint32_t UVec __attribute__((vector_size(4 * W)));
typedef uint16_t HVec __attribute__((vector_size(2 * W)));
typedef double DVec __attribute__((vector_size(8 * W)));

inline Vec splat(float x) { return x - Vec{}; }  // not Vec{} + x, which makes -0 into 0
inline Vec as_float(UVec x) { return reinterpret_cast<Vec>(x); }
inline UVec as_bits(Vec x) { return reinterpret_cast<UVec>(x); }
inline Vec select(IVec mask, Vec yes, Vec no) { return mask ? yes : no; }
inline Vec abs(Vec x) { return as_float(as_bits(x) & 0x7fffffffu); }
inline Vec max(Vec x, Vec y) { return select(x > y, x, y); }

// 0, 1, 2, ...
inline IVec lanes() {
  IVec x{};
  for (int i = 0; i < W; ++i) x[i] = i;
  return x;
}

// Whether a lane of a mask is set.
inline bool any(IVec x) {
#if defined(__AVX512F__)
  const __m512i bits = reinterpret_cast<__m512i>(x);
  return _mm512_test_epi32_mask(bits, bits) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(x)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps(reinterpret_cast<__m128>(x)) != 0;
#else
  int32_t bits = 0;
  for (int i = 0; i < W; ++i) bits |= x[i];
  return bits != 0;
#endif
}

// x·y + sum, rounded once where the processor does it at once. By name: the compilers may not
// contract the operators (-std=c++17).
inline Vec fma(Vec x, Vec y, Vec sum) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_fmadd_ps(
      reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(y), reinterpret_cast<__m512>(sum)));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec>(_mm256_fmadd_ps(
      reinterpret_cast<__m256>(x), reinterpret_cast<__m256>(y), reinterpret_cast<__m256>(sum)));
#elif defined(__aarch64__)
  return reinterpret_cast<Vec>(vfmaq_f32(reinterpret_cast<float32x4_t>(sum),
                                         reinterpret_cast<float32x4_t>(x),
                                         reinterpret_cast<float32x4_t>(y)));
#else
  return x * y + sum;
#endif
}
inline DVec widen(Vec x) { return __builtin_convertvector(x, DVec); }

// Lanes meet by halves: a fixed order, and few steps that wait for each other.
inline double sum(DVec x) {
  double lanes[W];
  std::memcpy(lanes, &x, sizeof x);
#pragma GCC unroll 8
  for (int half = W / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}
inline double sum(Vec x) { return sum(widen(x)); }
inline float max(Vec x) {
  float lanes[W];
  std::memcpy(lanes, &x, sizeof x);
#pragma GCC unroll 8
  for (int half = W / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int lane = 0; lane < half; ++lane) {
      lanes[lane] = lanes[lane] > lanes[lane + half] ? lanes[lane] : lanes[lane + half];
    }
  }
  return lanes[0];
}

// Memory → float32.
inline Vec load(const float* p) {
  Vec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

inline UVec load_bits(const void* p) {
  HVec x;
  std::memcpy(&x, p, sizeof x);
  return __builtin_convertvector(x, UVec);
}

inline Vec load(const bf16* p) { return as_float(load_bits(p) << 16); }

inline Vec load(const fp16* p) {
#if defined(__AVX512F__)
  // Masked by all lanes: the plain forms warn of an undefined source in gcc 12.
  return reinterpret_cast<Vec>(
      _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__) && defined(__AVX2__)
  return reinterpret_cast<Vec>(
      _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  // Moved into a float's fields, the value is 2^112 too small, subnormals too; Inf and NaN then
  // lack the upper exponent bits.
  const UVec bits = load_bits(p);
  const Vec magnitude = as_float((bits & 0x7fffu) << 13) * 0x1p112f;
  const UVec special = reinterpret_cast<UVec>(magnitude >= 65536.0f) & 0x7f800000u;
  return as_float(as_bits(magnitude) | special | ((bits & 0x8000u) << 16));
#endif
}

// float32 → memory, to nearest, ties to even.
inline void store(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }

inline void store_bits(void* p, UVec x) {
  const HVec narrow = __builtin_convertvector(x, HVec);
  std::memcpy(p, &narrow, sizeof narrow);
}

inline void store(bf16* p, Vec x) {
  const UVec bits = as_bits(x);
  const UVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const UVec is_nan = reinterpret_cast<UVec>(x != x);
  store_bits(p, (is_nan & 0x7fc0u) | (~is_nan & rounded));
}

inline void store(fp16* p, Vec x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(
      reinterpret_cast<__m256i*>(p),
      _mm512_maskz_cvtps_ph(0xffff, reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__) && defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
#else
  const UVec bits = as_bits(x);
  const UVec magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the result is subnormal: adding ½ rounds at 2^-24, a subnormal's unit.
  const UVec subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  // Otherwise drop 13 mantissa bits, to even, and re-bias the exponent from 127 to 15.
  const UVec normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  UVec half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x47800000u ? UVec{} + 0x7c00u : half;
  half = magnitude > 0x7f800000u ? UVec{} + 0x7e00u : half;
  store_bits(p, half | ((bits >> 16) & 0x8000u));
#endif
}

// A row is swept in whole vectors and one partial one, whose missing lanes read as 0.
struct Full {};
struct Part {
  int lanes;
};

template <class Body>
inline void sweep(int64_t begin, int64_t end, Body body) {
  int64_t i = begin;
  for (; i + W <= end; i += W) body(i, Full{});
  if (i < end) body(i, Part{static_cast<int>(end - i)});
}

template <class T>
inline Vec load(const T* p, Full) {
  return load(p);
}
template <class T>
inline Vec load(const T* p, Part part) {
  T lanes[W] = {};
#if defined(__AVX512F__)
  // A masked load touches no lane beyond, and does not wait for a copy through memory.
  const unsigned mask = (1u << part.lanes) - 1;
  if (sizeof(T) == 4) {
    return reinterpret_cast<Vec>(_mm512_maskz_loadu_ps(mask, p));
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), _mm256_maskz_loadu_epi16(mask, p));
#else
  std::memcpy(lanes, p, part.lanes * sizeof(T));
#endif
  return load(lanes);
}
template <class T>
inline void store(T* p, Vec x, Full) {
  store(p, x);
}
template <class T>
inline void store(T* p, Vec x, Part part) {
  T lanes[W];
  store(lanes, x);
#if defined(__AVX512F__)
  const unsigned mask = (1u << part.lanes) - 1;
  if (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, mask, reinterpret_cast<__m512>(x));
  } else {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes));
    _mm256_mask_storeu_epi16(p, mask, halves);
  }
#else
  std::memcpy(p, lanes, part.lanes * sizeof(T));
#endif
}

// Put `fill` into the missing lanes.
inline Vec fill_rest(Vec x, float, Full) { return x; }
inline Vec fill_rest(Vec x, float fill, Part part) {
  return select(lanes() < part.lanes, x, splat(fill));
}

// One element as a float, for paths that are rare.
template <class T>
inline float scalar(const T* p) {
  return load(p, Part{1})[0];
}

}  // namespace
}  // namespace robustft
