// What a kernel says to the card that plain C++ cannot: shared memory, 16-bit storage, inline PTX,
// and which instantiations there are. Kernels contain no asm and include no CUDA header, so that
// NVRTC needs none, and so that tests can replace this one file: tests/cuda/emulator defines
// the guard below, the same names by the PTX documentation's fragment layouts, and runs kernels on
// the CPU.
#ifndef ROBUSTFT_PTX
#define ROBUSTFT_PTX

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

// --- shared memory ---

template <typename T>
using Type = T;

// SHARED(sums, float[4][32]): a block's array `sums`.
#define SHARED(name, ...) __shared__ Type<__VA_ARGS__> name
// The block's dynamic shared memory, as bytes.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

// --- instantiations ---

// INSTANTIATE(kernel<float, 4>); one for each that launch() may name, at the end of a .cu file.
// NVRTC is asked for the one that is wanted; nvcc compiles all of them.
#define ROBUSTFT_JOIN_(a, b) a##b
#define ROBUSTFT_JOIN(a, b) ROBUSTFT_JOIN_(a, b)
#ifdef __CUDACC_RTC__
#define INSTANTIATE(...) static_assert(true, "")
#else
#define INSTANTIATE(...) \
  void* ROBUSTFT_JOIN(instantiated_, __COUNTER__) = reinterpret_cast<void*>(&__VA_ARGS__)
#endif

// --- 16-bit storage ---

struct Half {
  u16 bits;
};
struct BFloat16 {
  u16 bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }

__device__ __forceinline__ float to_float(Half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

__device__ __forceinline__ float to_float(BFloat16 x) {
  return __uint_as_float(static_cast<u32>(x.bits) << 16);
}

// Round to nearest, ties to even.
template <typename T>
__device__ __forceinline__ T from_float(float x);

template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}

template <>
__device__ __forceinline__ Half from_float<Half>(float x) {
  Half y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

template <>
__device__ __forceinline__ BFloat16 from_float<BFloat16>(float x) {
  BFloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

// Two numbers as a word, the first in its lower half.
template <typename T>
__device__ __forceinline__ u32 pair_from_floats(float low, float high);

template <>
__device__ __forceinline__ u32 pair_from_floats<Half>(float low, float high) {
  u32 y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

template <>
__device__ __forceinline__ u32 pair_from_floats<BFloat16>(float low, float high) {
  u32 y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

// 1/√x and 1/x, subnormal numbers as 0: one instruction each, some 2^-22 of the result off.
__device__ __forceinline__ float rsqrt_approx(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 2^x and log2(x), subnormal numbers as 0: one instruction each, some 2^-22 of the result off.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The compiler must not keep what it derived from x, nor derive it ahead: registers.
__device__ __forceinline__ void forget(uint4& x) {
  asm volatile("" : "+r"(x.x), "+r"(x.y), "+r"(x.z), "+r"(x.w));
}

// --- asynchronous copies into shared memory ---

__device__ __forceinline__ u32 shared_address(const void* p) {
  return static_cast<u32>(__cvta_generic_to_shared(p));
}

// 16 bytes, both sides aligned to 16; zeros, and no access to `global`, where not `valid`.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until at most N of this thread's groups are under way; other threads see the data after a
// barrier.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// --- tensor cores ---

// Four 8 × 8 matrices of 16-bit numbers: lane l names row l % 8 of matrix l / 8 (16 bytes,
// aligned); of each matrix it gets elements 2·(l % 4) and the next of row l / 4.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same of the transposed matrices.
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// D += A·B, A 16 × 16 and B 16 × 8 in float16, D 16 × 8 in float32. With g = lane / 4, t = lane %
// 4: a[0..3]: rows g, g + 8, g, g + 8, columns 2t and 2t + 1, of the left (a[0], a[1]) and right
// half; b[0..1]: column g, rows 2t and 2t + 1 of the upper and lower half; d[0..3]: row g columns
// 2t, 2t + 1; row g + 8, the same columns.
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif
