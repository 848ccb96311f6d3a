// What sm_90a has beyond ptx.cuh: barriers that count bytes, bulk copies, clusters of blocks,
// warpgroup products.
//
// What wgmma reads is written by bulk copies alone, so that no fence between proxies is needed but
// the one after the barriers are made. As ptx.cuh, this file is replaced in tests.
#ifndef ROBUSTFT_HOPPER
#define ROBUSTFT_HOPPER

#include "ptx.cuh"

// In shared memory. A phase ends when as many threads as it was made for have arrived, and all
// bytes that they announced are there.
using Barrier = u64;

__device__ __forceinline__ void barrier_init(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

// By the thread that made them, before the block's next __syncthreads.
__device__ __forceinline__ void barriers_made() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// Arrives, and announces bytes that bulk copies bring.
__device__ __forceinline__ void barrier_arrive_for(Barrier* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// Until the phase of this parity has ended: 0 the first, 1 the second (and the one before the
// first).
__device__ __forceinline__ void barrier_wait(Barrier* barrier, int parity) {
  asm volatile(
      "{ .reg .pred done; "
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; "
      "@!done bra again; }" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// `bytes`, a multiple of 16, from global memory, both sides aligned to 16.
__device__ __forceinline__ void bulk_copy(void* shared, const void* global, int bytes,
                                          Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// The number of this block in its cluster.
__device__ __forceinline__ int block_in_cluster() {
  int number;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(number));
  return number;
}

// Until all threads of the cluster that have not ended are here; by whole warps.
__device__ __forceinline__ void cluster_barrier() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Where in the shared memory of a block of the cluster that is which this block has there.
__device__ __forceinline__ u32 place_in(const void* shared, int block) {
  u32 place;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(place)
      : "r"(shared_address(shared)), "r"(block));
  return place;
}

// At a barrier of any block of the cluster. Nothing that this thread wrote is seen there: a release
// in the cluster takes a fence of the whole card.
__device__ __forceinline__ void barrier_arrive_at(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// As bulk_copy, to the same place of the first BLOCKS blocks of the cluster; each one's barrier
// counts the bytes.
template <int BLOCKS>
__device__ __forceinline__ void bulk_copy_to_all(void* shared, const void* global, int bytes,
                                                 Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier)),
      "h"(static_cast<u16>((1 << BLOCKS) - 1))
      : "memory");
}

// Registers a thread of this warpgroup, from here on.
template <int REGISTERS>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// Before the first product of a sequence into registers that were touched.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most PENDING committed groups are under way; of the others the operands are free.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Until all are over; only then may the compiler touch their registers.
template <int N>
__device__ __forceinline__ void wgmma_finish(float (&d)[N][4]) {
  wgmma_wait<0>();
#pragma unroll
  for (int n = 0; n < N; ++n)
    asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}

// D (+)= A·Bᵀ in float32 by a warpgroup: A 64 × 16 and B N × 16 in shared memory, float16 (or with
// N = 128 bfloat16), named by descriptors. d[n] of warp w is fragment n of rows 16·w … 16·w + 15,
// as of mma_16x8x16.
#define ROBUSTFT_FRAGMENT(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])

#define ROBUSTFT_WGMMA_128(type)                                                                   \
  asm volatile(                                                                                    \
      "{ .reg .pred add; setp.ne.b32 add, %66, 0; "                                                \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                 \
      " {"                                                                                         \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                     \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "           \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "           \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "          \
      "%64, %65, add, 1, 1, 0, 0; }"                                                               \
      : ROBUSTFT_FRAGMENT(0), ROBUSTFT_FRAGMENT(1), ROBUSTFT_FRAGMENT(2), ROBUSTFT_FRAGMENT(3),    \
        ROBUSTFT_FRAGMENT(4), ROBUSTFT_FRAGMENT(5), ROBUSTFT_FRAGMENT(6), ROBUSTFT_FRAGMENT(7),    \
        ROBUSTFT_FRAGMENT(8), ROBUSTFT_FRAGMENT(9), ROBUSTFT_FRAGMENT(10), ROBUSTFT_FRAGMENT(11),  \
        ROBUSTFT_FRAGMENT(12), ROBUSTFT_FRAGMENT(13), ROBUSTFT_FRAGMENT(14), ROBUSTFT_FRAGMENT(15) \
      : "l"(a), "l"(b), "r"(static_cast<int>(add))                                                 \
      : "memory")

template <typename T = Half>
__device__ __forceinline__ void wgmma_64x16(float (&d)[16][4], u64 a, u64 b, bool add);
template <>
__device__ __forceinline__ void wgmma_64x16<Half>(float (&d)[16][4], u64 a, u64 b, bool add) {
  ROBUSTFT_WGMMA_128("f16");
}
template <>
__device__ __forceinline__ void wgmma_64x16<BFloat16>(float (&d)[16][4], u64 a, u64 b, bool add) {
  ROBUSTFT_WGMMA_128("bf16");
}

template <typename T = Half>
__device__ __forceinline__ void wgmma_64x16(float (&d)[32][4], u64 a, u64 b, bool add);
template <>
__device__ __forceinline__ void wgmma_64x16<Half>(float (&d)[32][4], u64 a, u64 b, bool add) {
  asm volatile(
      "{ .reg .pred add; setp.ne.b32 add, %130, 0; "
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127}, "
      "%128, %129, add, 1, 1, 0, 0; }"
      : ROBUSTFT_FRAGMENT(0), ROBUSTFT_FRAGMENT(1), ROBUSTFT_FRAGMENT(2), ROBUSTFT_FRAGMENT(3),
        ROBUSTFT_FRAGMENT(4), ROBUSTFT_FRAGMENT(5), ROBUSTFT_FRAGMENT(6), ROBUSTFT_FRAGMENT(7),
        ROBUSTFT_FRAGMENT(8), ROBUSTFT_FRAGMENT(9), ROBUSTFT_FRAGMENT(10), ROBUSTFT_FRAGMENT(11),
        ROBUSTFT_FRAGMENT(12), ROBUSTFT_FRAGMENT(13), ROBUSTFT_FRAGMENT(14), ROBUSTFT_FRAGMENT(15),
        ROBUSTFT_FRAGMENT(16), ROBUSTFT_FRAGMENT(17), ROBUSTFT_FRAGMENT(18), ROBUSTFT_FRAGMENT(19),
        ROBUSTFT_FRAGMENT(20), ROBUSTFT_FRAGMENT(21), ROBUSTFT_FRAGMENT(22), ROBUSTFT_FRAGMENT(23),
        ROBUSTFT_FRAGMENT(24), ROBUSTFT_FRAGMENT(25), ROBUSTFT_FRAGMENT(26), ROBUSTFT_FRAGMENT(27),
        ROBUSTFT_FRAGMENT(28), ROBUSTFT_FRAGMENT(29), ROBUSTFT_FRAGMENT(30), ROBUSTFT_FRAGMENT(31)
      : "l"(a), "l"(b), "r"(static_cast<int>(add))
      : "memory");
}

#undef ROBUSTFT_WGMMA_128
#undef ROBUSTFT_FRAGMENT

#endif
