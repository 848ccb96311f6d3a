// A card for tests: CUDA C++ compiled as C++17 for the CPU. The build (build.py) includes this file
// before each .cu file; it stands in for the CUDA built-ins and for csrc/cuda/ptx.cuh.
//
// Threads of a block are fibers on one system thread; blocks run one after another. A warp's
// collective is carried out when its last lane arrives. What goes wrong ends the launch with a
// message: lanes or threads that wait for others that never come, threads of a block at different
// barriers, misaligned or unfinished copies. Shared memory starts as NaN, and what cp.async copies
// is NaN until its wait. The order of threads and blocks can be reversed or shuffled: a kernel
// without a race gives the same bits in every order.
//
// Not modelled: the caches, weak memory order, tensor cores' rounding inside a sum (float32 here),
// registers and time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define ROBUSTFT_EMULATED
#define ROBUSTFT_PTX

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

template <typename T>
using Type = T;

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

#define EMULATED_VECTOR(name, T, n) struct alignas(sizeof(T) * (n)) name
EMULATED_VECTOR(float2, float, 2) { float x, y; };
EMULATED_VECTOR(float4, float, 4) { float x, y, z, w; };
EMULATED_VECTOR(int2, int, 2) { int x, y; };
EMULATED_VECTOR(int4, int, 4) { int x, y, z, w; };
EMULATED_VECTOR(uint2, unsigned, 2) { unsigned x, y; };
EMULATED_VECTOR(uint4, unsigned, 4) { unsigned x, y, z, w; };
#undef EMULATED_VECTOR
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulator {

// --- what emulator.cpp does ---

struct Place {
  uint3 thread, block;
};
extern const Place* current;  // of the fiber that runs
extern dim3 block_dim, grid_dim;
extern unsigned char* dynamic_shared;

// Where in the source a thread waits; barriers at two places are two barriers.
struct Site {
  const char *what, *file;
  int line;
};

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
// The block's memory for a SHARED array, named by the address of a static of its own.
void* shared(const void* name, std::size_t bytes, std::size_t alignment);
// Waits for the lanes of `mask`; the last one runs `finish` over all their payloads [32].
using Finish = void (*)(void** payloads, u32 mask);
void collective(u32 mask, const Site& site, void* payload, Finish finish);
int lane();
enum class Reduce { none, count, any, all };
int block_barrier(const Site& site, Reduce reduce, bool predicate);
void copy_async(void* shared, const void* global, bool valid);
void copy_commit();
void copy_wait(int under_way);
// Until `event` is woken; the condition is to be looked at again.
void sleep(const void* event, const Site& site);
void wake(const void* event);
void load_matrices(u32 (&r)[4], const void* row, bool transposed, const Site& site);
void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const Site& site);
float half_to_float(u16 bits);
u16 float_to_half(float x);
u16 float_to_bfloat16(float x);

// --- kernels by name ---

struct Kernel {
  const char *source, *name;
  void (*run)(void** arguments);
  Kernel* next;
  Kernel(const char* source, const char* name, void (*run)(void**));
};

template <auto function>
struct Call;
template <typename... A, void (*function)(A...)>
struct Call<function> {
  // As cuLaunchKernel reads them: each pointer leads to a value of the parameter's type.
  template <std::size_t... i>
  static void with(void** arguments, std::index_sequence<i...>) {
    function(read<A>(arguments[i])...);
  }
  static void run(void** arguments) { with(arguments, std::index_sequence_for<A...>()); }
  template <typename T>
  static T read(const void* from) {
    T value;
    std::memcpy(&value, from, sizeof(T));
    return value;
  }
};

// --- warp collectives ---

template <typename T>
struct Exchange {
  T value;
  int from;
  T result;
};

template <typename T>
T exchange(u32 mask, T value, int from, const Site& site) {
  Exchange<T> mine{value, from, value};
  collective(mask, site, &mine, [](void** all, u32 mask) {
    for (int i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      auto* to = static_cast<Exchange<T>*>(all[i]);
      if (!(mask >> to->from & 1)) {
        fail("lane %d reads lane %d, which is not in mask %08x", i, to->from, mask);
      }
      to->result = static_cast<Exchange<T>*>(all[to->from])->value;
    }
  });
  return mine.result;
}

template <typename T, typename F>
T reduce(u32 mask, T value, F, const Site& site) {
  Exchange<T> mine{value, 0, value};
  collective(mask, site, &mine, [](void** all, u32 mask) {
    bool first = true;
    T total{};
    for (int i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      const T x = static_cast<Exchange<T>*>(all[i])->value;
      total = first ? x : F::of(total, x);
      first = false;
    }
    for (int i = 0; i < 32; ++i) {
      if (mask >> i & 1) static_cast<Exchange<T>*>(all[i])->result = total;
    }
  });
  return mine.result;
}

struct Add {
  template <typename T>
  static T of(T a, T b) {
    return a + b;
  }
};
struct Min {
  template <typename T>
  static T of(T a, T b) {
    return b < a ? b : a;
  }
};
struct Max {
  template <typename T>
  static T of(T a, T b) {
    return a < b ? b : a;
  }
};
struct Or {
  template <typename T>
  static T of(T a, T b) {
    return a | b;
  }
};
struct And {
  template <typename T>
  static T of(T a, T b) {
    return a & b;
  }
};

}  // namespace emulator

#define threadIdx (::emulator::current->thread)
#define blockIdx (::emulator::current->block)
#define blockDim (::emulator::block_dim)
#define gridDim (::emulator::grid_dim)
constexpr int warpSize = 32;

#define SHARED(name, ...)                                     \
  static const char name##_is_here = 0;                       \
  Type<__VA_ARGS__>& name = *static_cast<Type<__VA_ARGS__>*>( \
      ::emulator::shared(&name##_is_here, sizeof(Type<__VA_ARGS__>), alignof(Type<__VA_ARGS__>)))
#define DYNAMIC_SHARED(name) unsigned char* const name = ::emulator::dynamic_shared

#define EMULATED_JOIN_(a, b) a##b
#define EMULATED_JOIN(a, b) EMULATED_JOIN_(a, b)
#define INSTANTIATE(...)                                                 \
  static const ::emulator::Kernel EMULATED_JOIN(emulated_, __COUNTER__)( \
      __BASE_FILE__, #__VA_ARGS__, &::emulator::Call<&__VA_ARGS__>::run)

// A place in the source, as a default argument: that of the caller.
#define EMULATED_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncwarp(u32 mask = 0xffffffffu, EMULATED_HERE) {
  emulator::collective(mask, {"__syncwarp", file, line}, nullptr, [](void**, u32) {});
}

template <typename T>
T __shfl_sync(u32 mask, T x, int from, int width = 32, EMULATED_HERE) {
  const int base = emulator::lane() & ~(width - 1);
  return emulator::exchange(mask, x, base + (from & (width - 1)), {"__shfl_sync", file, line});
}

template <typename T>
T __shfl_xor_sync(u32 mask, T x, int bits, int width = 32, EMULATED_HERE) {
  const int me = emulator::lane(), from = me ^ bits;
  // Lanes of a later segment are not read.
  return emulator::exchange(mask, x, from < (me & ~(width - 1)) + width ? from : me,
                            {"__shfl_xor_sync", file, line});
}

template <typename T>
T __shfl_down_sync(u32 mask, T x, unsigned by, int width = 32, EMULATED_HERE) {
  const int me = emulator::lane(), last = me | (width - 1);
  return emulator::exchange(mask, x, me + int(by) <= last ? me + int(by) : me,
                            {"__shfl_down_sync", file, line});
}

template <typename T>
T __shfl_up_sync(u32 mask, T x, unsigned by, int width = 32, EMULATED_HERE) {
  const int me = emulator::lane(), first = me & ~(width - 1);
  return emulator::exchange(mask, x, me - int(by) >= first ? me - int(by) : me,
                            {"__shfl_up_sync", file, line});
}

inline u32 __ballot_sync(u32 mask, int predicate, EMULATED_HERE) {
  const u32 mine = predicate ? 1u << emulator::lane() : 0;
  return emulator::reduce(mask, mine, emulator::Or(), {"__ballot_sync", file, line});
}

inline int __any_sync(u32 mask, int predicate, EMULATED_HERE) {
  return emulator::reduce(mask, int(predicate != 0), emulator::Or(), {"__any_sync", file, line});
}

inline int __all_sync(u32 mask, int predicate, EMULATED_HERE) {
  return emulator::reduce(mask, int(predicate != 0), emulator::And(), {"__all_sync", file, line});
}

#define EMULATED_REDUCE(name, op)                                          \
  inline u32 name(u32 mask, u32 x, EMULATED_HERE) {                        \
    return emulator::reduce(mask, x, emulator::op(), {#name, file, line}); \
  }                                                                        \
  inline int name(u32 mask, int x, EMULATED_HERE) {                        \
    return emulator::reduce(mask, x, emulator::op(), {#name, file, line}); \
  }
EMULATED_REDUCE(__reduce_add_sync, Add)
EMULATED_REDUCE(__reduce_min_sync, Min)
EMULATED_REDUCE(__reduce_max_sync, Max)
#undef EMULATED_REDUCE
inline u32 __reduce_or_sync(u32 mask, u32 x, EMULATED_HERE) {
  return emulator::reduce(mask, x, emulator::Or(), {"__reduce_or_sync", file, line});
}
inline u32 __reduce_and_sync(u32 mask, u32 x, EMULATED_HERE) {
  return emulator::reduce(mask, x, emulator::And(), {"__reduce_and_sync", file, line});
}

// --- the block ---

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

// --- ptx.cuh ---

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

#include "hopper.hpp"
