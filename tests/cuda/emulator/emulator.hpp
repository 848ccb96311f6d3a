// A card for tests: CUDA C++ compiled as C++17 for the CPU. The build (build.py) includes this file
// before each .cu file; it stands in for the CUDA built-ins and for csrc/cuda/ptx.cuh.
//
// Threads are fibers on one system thread; those of a cluster's blocks run together, clusters (most
// are one block) one after another. A warp's collective is carried out when its last lane arrives.
// What goes wrong ends the launch with a message: lanes or threads that wait for others that never
// come, threads of a block at different barriers, misaligned or unfinished copies. Shared memory
// starts as NaN, and what cp.async copies is NaN until its wait. The order of threads and blocks
// can be reversed or shuffled: a kernel without a race gives the same bits in every order.
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

// --- what the .cpp files do ---

struct Place {
  uint3 thread, block;
  unsigned rank;          // of the block in its cluster
  unsigned char* shared;  // the block's dynamic shared memory
};
extern const Place* current;  // of the fiber that runs
extern dim3 block_dim, grid_dim;

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
void cluster_barrier(const Site& site);
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
#define DYNAMIC_SHARED(name) unsigned char* const name = ::emulator::current->shared

#define EMULATED_JOIN_(a, b) a##b
#define EMULATED_JOIN(a, b) EMULATED_JOIN_(a, b)
#define INSTANTIATE(...)                                                 \
  static const ::emulator::Kernel EMULATED_JOIN(emulated_, __COUNTER__)( \
      __BASE_FILE__, #__VA_ARGS__, &::emulator::Call<&__VA_ARGS__>::run)

// A place in the source, as a default argument: that of the caller.
#define EMULATED_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

#include "block.hpp"
#include "hopper.hpp"
#include "ptx.hpp"
#include "warp.hpp"
