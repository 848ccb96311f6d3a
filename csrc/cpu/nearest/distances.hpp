// Distances of a query and rows of the bank: in float32, and exactly.
#pragma once

#include "tile.hpp"

namespace robustft {
namespace {

typedef float Vec8 __attribute__((vector_size(32)));
typedef float Vec4 __attribute__((vector_size(16)));

template <class Half, class Whole>
inline Half add_halves(Whole x) {
  Half half[2];
  std::memcpy(half, &x, sizeof x);
  return half[0] + half[1];
}
inline float add_lanes(Vec x) {
#if defined(__AVX512F__)
  const Vec4 four = add_halves<Vec4>(add_halves<Vec8>(x));
#elif defined(__AVX2__)
  const Vec4 four = add_halves<Vec4>(x);
#else
  const Vec4 four = x;
#endif
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// Σ(q − v)² of R rows in float32: two sums a lane, so D/(2·W) + 8 roundings at most.
template <int R>
inline void approximate(const float* q, const float* const* v, int64_t dim, float* out) {
  Vec sums[R][2] = {};
  int64_t i = 0;
  for (; i + 2 * W <= dim; i += 2 * W) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const Vec x = load(q + i + h * W);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Vec d = x - load(v[r] + i + h * W);
        sums[r][h] = fma(d, d, sums[r][h]);
      }
    }
  }
  sweep(i, dim, [&](int64_t j, auto part) {
    for (int r = 0; r < R; ++r) {
      const Vec d = load(q + j, part) - load(v[r] + j, part);
      sums[r][0] = fma(d, d, sums[r][0]);
    }
  });
  for (int r = 0; r < R; ++r) out[r] = add_lanes(sums[r][0] + sums[r][1]);
}

// Σ(q − v)² in double, rounded once.
inline float exact(const float* q, const float* v, int64_t dim) {
  DVec sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * W <= dim; i += 2 * W) {
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      const DVec d = widen(load(q + i + k * W)) - widen(load(v + i + k * W));
      sums[k] += d * d;
    }
  }
  sweep(i, dim, [&](int64_t j, auto part) {
    const DVec d = widen(load(q + j, part)) - widen(load(v + j, part));
    sums[0] += d * d;
  });
  return static_cast<float>(sum(sums[0] + sums[1]));
}

inline uint64_t key(float distance, int64_t row) {
  uint32_t bits;
  std::memcpy(&bits, &distance, sizeof bits);
  return static_cast<uint64_t>(bits) << 32 | static_cast<uint64_t>(row);
}

}  // namespace
}  // namespace robustft
