// The instructions of sm_90a that the kernels use, by name.
//
// Shared memory that bulk copies write and wgmma reads is never touched by ordinary stores here, so no
// proxy fence is needed but the one after the barriers are made.
#pragma once

namespace ptx {

__device__ __forceinline__ unsigned shared_word(const void *pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// A barrier in shared memory: a phase ends when `arrivals` have arrived and all bytes that were
// announced are there.
using Barrier = unsigned long long;

__device__ __forceinline__ void barrier_init(Barrier *barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_word(barrier)),
                 "r"(arrivals)
                 : "memory");
}

// Makes the barriers known to the copy engine.
__device__ __forceinline__ void barrier_init_done() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(Barrier *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_word(barrier)) : "memory");
}

// Arrives, and announces bytes that bulk copies will bring.
__device__ __forceinline__ void barrier_arrive_expecting(Barrier *barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_word(barrier)),
                 "r"(bytes)
                 : "memory");
}

// Until the phase of this parity is over.
__device__ __forceinline__ void barrier_wait(Barrier *barrier, int parity) {
    asm volatile(
        "{.reg .pred done;"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;"
        "@!done bra again;}" ::"r"(shared_word(barrier)),
        "r"(parity)
        : "memory");
}

// `bytes` (a multiple of 16) from device to shared memory, both aligned to 16; the barrier counts them.
__device__ __forceinline__ void bulk_copy(void *to, const void *from, int bytes, Barrier *barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_word(to)),
        "l"(from), "r"(bytes), "r"(shared_word(barrier))
        : "memory");
}

// What wgmma wants to know of a matrix in shared memory, K-major, in rows of 128 bytes whose eight
// 16-byte chunks are swizzled within each eight rows (1,024 bytes, so aligned): its address, and
// 1,024 bytes from eight rows to the next.
__device__ __forceinline__ unsigned long long matrix_descriptor(const void *matrix) {
    return (1ull << 62) | (1024ull >> 4 << 32) | (1ull << 16) |
           ((shared_word(matrix) & 0x3FFFF) >> 4);
}

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

template <int REGISTERS>
__device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// d (+)= a · bᵀ of a warpgroup: a 64 rows, b N rows of 16 halves each. Entry [n][e] is fragment n of
// m16n8 (see mma) of the warp's 16 rows.
#define ROBUSTFT_D(I) "+f"(d[I][0]), "+f"(d[I][1]), "+f"(d[I][2]), "+f"(d[I][3])

__device__ __forceinline__ void wgmma_f16(float (&d)[16][4], unsigned long long a,
                                          unsigned long long b, bool add) {
    asm volatile(
        "{.reg .pred add; setp.ne.b32 add, %66, 0;"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63},"
        "%64, %65, add, 1, 1, 0, 0;}"
        : ROBUSTFT_D(0), ROBUSTFT_D(1),
          ROBUSTFT_D(2), ROBUSTFT_D(3),
          ROBUSTFT_D(4), ROBUSTFT_D(5),
          ROBUSTFT_D(6), ROBUSTFT_D(7),
          ROBUSTFT_D(8), ROBUSTFT_D(9),
          ROBUSTFT_D(10), ROBUSTFT_D(11),
          ROBUSTFT_D(12), ROBUSTFT_D(13),
          ROBUSTFT_D(14), ROBUSTFT_D(15)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

__device__ __forceinline__ void wgmma_f16(float (&d)[32][4], unsigned long long a,
                                          unsigned long long b, bool add) {
    asm volatile(
        "{.reg .pred add; setp.ne.b32 add, %130, 0;"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63,"
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79,"
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95,"
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111,"
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127},"
        "%128, %129, add, 1, 1, 0, 0;}"
        : ROBUSTFT_D(0), ROBUSTFT_D(1),
          ROBUSTFT_D(2), ROBUSTFT_D(3),
          ROBUSTFT_D(4), ROBUSTFT_D(5),
          ROBUSTFT_D(6), ROBUSTFT_D(7),
          ROBUSTFT_D(8), ROBUSTFT_D(9),
          ROBUSTFT_D(10), ROBUSTFT_D(11),
          ROBUSTFT_D(12), ROBUSTFT_D(13),
          ROBUSTFT_D(14), ROBUSTFT_D(15),
          ROBUSTFT_D(16), ROBUSTFT_D(17),
          ROBUSTFT_D(18), ROBUSTFT_D(19),
          ROBUSTFT_D(20), ROBUSTFT_D(21),
          ROBUSTFT_D(22), ROBUSTFT_D(23),
          ROBUSTFT_D(24), ROBUSTFT_D(25),
          ROBUSTFT_D(26), ROBUSTFT_D(27),
          ROBUSTFT_D(28), ROBUSTFT_D(29),
          ROBUSTFT_D(30), ROBUSTFT_D(31)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

#undef ROBUSTFT_D

}  // namespace ptx
