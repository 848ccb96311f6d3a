// Barriers of a block, atomics, arithmetic and loads.
#pragma once

// --- barriers ---

inline void __syncthreads(EMULATED_HERE) {
  emulator::block_barrier({"__syncthreads", file, line}, emulator::Reduce::none, false);
}
inline int __syncthreads_count(int x, EMULATED_HERE) {
  return emulator::block_barrier({"__syncthreads_count", file, line}, emulator::Reduce::count, x);
}
inline int __syncthreads_or(int x, EMULATED_HERE) {
  return emulator::block_barrier({"__syncthreads_or", file, line}, emulator::Reduce::any, x);
}
inline int __syncthreads_and(int x, EMULATED_HERE) {
  return emulator::block_barrier({"__syncthreads_and", file, line}, emulator::Reduce::all, x);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// --- atomics: blocks and fibers take turns ---

#define EMULATED_ATOMIC(name, expression)  \
  template <typename T>                    \
  T name(T* at, std::common_type_t<T> x) { \
    const T old = *at;                     \
    *at = (expression);                    \
    return old;                            \
  }
EMULATED_ATOMIC(atomicAdd, old + x)
EMULATED_ATOMIC(atomicSub, old - x)
EMULATED_ATOMIC(atomicMax, old < x ? x : old)
EMULATED_ATOMIC(atomicMin, x < old ? x : old)
EMULATED_ATOMIC(atomicOr, old | x)
EMULATED_ATOMIC(atomicAnd, old& x)
EMULATED_ATOMIC(atomicExch, x)
EMULATED_ATOMIC(atomicInc, old >= x ? T(0) : T(old + 1))
#undef EMULATED_ATOMIC
template <typename T>
T atomicCAS(T* at, std::common_type_t<T> expected, std::common_type_t<T> x) {
  const T old = *at;
  if (old == expected) *at = x;
  return old;
}

// --- arithmetic and loads ---

inline u32 __float_as_uint(float x) {
  u32 y;
  std::memcpy(&y, &x, 4);
  return y;
}
inline int __float_as_int(float x) {
  int y;
  std::memcpy(&y, &x, 4);
  return y;
}
inline float __uint_as_float(u32 x) {
  float y;
  std::memcpy(&y, &x, 4);
  return y;
}
inline float __int_as_float(int x) {
  float y;
  std::memcpy(&y, &x, 4);
  return y;
}
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) {
  volatile float c = a * b;
  return c;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
inline int __popc(u32 x) { return __builtin_popcount(x); }
inline int __popcll(u64 x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(u32(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline u32 __brev(u32 x) {
  u32 y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1) << (31 - i);
  return y;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(b) < T(a) ? T(b) : T(a);
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(a) < T(b) ? T(b) : T(a);
}
// As on the card: of a NaN and a number, the number.
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }

#define EMULATED_LOAD(name) \
  template <typename T>     \
  T name(const T* from) {   \
    return *from;           \
  }
EMULATED_LOAD(__ldg)
EMULATED_LOAD(__ldca)
EMULATED_LOAD(__ldcg)
EMULATED_LOAD(__ldcs)
#undef EMULATED_LOAD
template <typename T>
void __stcs(T* to, std::common_type_t<T> x) {
  *to = x;
}
template <typename T>
void __stcg(T* to, std::common_type_t<T> x) {
  *to = x;
}
