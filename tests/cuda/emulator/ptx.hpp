// What stands in for csrc/cuda/ptx.cuh.
#pragma once

#include "block.hpp"

struct Half {
  u16 bits;
};
struct BFloat16 {
  u16 bits;
};
inline float to_float(float x) { return x; }
inline float to_float(Half x) { return emulator::half_to_float(x.bits); }
inline float to_float(BFloat16 x) { return __uint_as_float(u32(x.bits) << 16); }
template <typename T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline Half from_float<Half>(float x) {
  return {emulator::float_to_half(x)};
}
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  return {emulator::float_to_bfloat16(x)};
}

template <typename T>
u32 pair_from_floats(float low, float high) {
  return from_float<T>(low).bits | u32(from_float<T>(high).bits) << 16;
}

// Two bits too short, as the card's may be.
inline float rough(float x) { return __uint_as_float(__float_as_uint(x) & ~3u); }
inline float rsqrt_approx(float x) { return rough(1 / std::sqrt(x)); }
inline float reciprocal_approx(float x) { return rough(1 / x); }

// Subnormal arguments and results are 0.
inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0 : y;
}
inline float log2_approx(float x) { return std::log2(std::fabs(x) < 0x1p-126f ? 0 : x); }

inline void forget(uint4&) {}

inline void cp_async_16(void* shared, const void* global, bool valid = true) {
  emulator::copy_async(shared, global, valid);
}
inline void cp_async_commit() { emulator::copy_commit(); }
template <int N>
void cp_async_wait() {
  emulator::copy_wait(N);
}
inline void ldmatrix_x4(u32 (&r)[4], const void* row, EMULATED_HERE) {
  emulator::load_matrices(r, row, false, {"ldmatrix_x4", file, line});
}
inline void ldmatrix_x4_trans(u32 (&r)[4], const void* row, EMULATED_HERE) {
  emulator::load_matrices(r, row, true, {"ldmatrix_x4_trans", file, line});
}
inline void mma_16x8x16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], EMULATED_HERE) {
  emulator::multiply(d, a, b, {"mma_16x8x16", file, line});
}
