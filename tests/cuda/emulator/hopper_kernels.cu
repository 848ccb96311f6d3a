// Kernels that the tests of the emulated sm_90a run.
#include "hopper.cuh"

namespace {

// D [64, N] = A [64, 64]·B [N, 64]ᵀ of one warpgroup; a and b swizzled as shared memory wants them.
// What may be left out: 0 nothing; 1 the wait for the copies; 2 the bytes that a barrier should
// expect; 3 that the second copy waits until the products are done; 4 the wait for the products; 5
// as 3, and the wait for that copy.
template <int N>
__global__ void product(const u16* a, const u16* b, float* d, int without) {
  DYNAMIC_SHARED(memory);
  unsigned char *const left = memory, *const right = memory + 64 * 128;
  auto* const there = reinterpret_cast<Barrier*>(right + N * 128);
  if (threadIdx.x == 0) {
    barrier_init(there, 1);
    barriers_made();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_arrive_for(there, (without == 2 ? 32 : 64 + N) * 128);
    bulk_copy(left, a, 64 * 128, there);
    bulk_copy(right, b, N * 128, there);
  }
  if (without != 1) barrier_wait(there, 0);
  const auto lines = [](const unsigned char* at) {
    return u64(1) << 62 | u64(1024 >> 4) << 32 | u64(1) << 16 | shared_address(at) >> 4;
  };
  float fragments[N / 8][4];
  wgmma_fence();
  for (int k = 0; k < 4; ++k)
    wgmma_64x16(fragments, lines(left + 32 * k), lines(right + 32 * k), k > 0);
  wgmma_commit();
  if ((without == 3 || without == 5) && threadIdx.x == 0) {
    barrier_arrive_for(there, 64 * 128);
    bulk_copy(left, a, 64 * 128, there);
  }
  if (without == 4)
    wgmma_wait<1>();
  else
    wgmma_finish(fragments);
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
  for (int n = 0; n < N / 8; ++n) {
    for (int e = 0; e < 4; ++e)
      d[(row + e / 2 * 8) * N + n * 8 + lane % 4 * 2 + e % 2] = fragments[n][e];
  }
  __syncthreads();
  if (without == 1) barrier_wait(there, 0);
  if (without == 3) barrier_wait(there, 1);
}

INSTANTIATE(product<128>);
INSTANTIATE(product<256>);

}  // namespace
