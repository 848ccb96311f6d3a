// Screening for `nearest` by wgmma and bulk copies (sm_90a).
#include <cuda_fp16.h>

#include "hopper.cuh"
#include "nearest.cuh"

namespace nearest {

constexpr int QUERIES = 128;  // of a block: 64 a warpgroup
constexpr int THREADS = 384;  // a warpgroup that fetches, two that multiply
constexpr int QUERY_SLICE = QUERIES * SLICE * 2;

template <int ROWS, bool RESIDENT>
__device__ __forceinline__ void screen_wgmma(const __half* q, const float* q_scale,
                                             const float* q_reach, const float* q_floor,
                                             const __half* v, const float* v_scale,
                                             const float* v_near, const float* v_residual,
                                             int* lists, int* counts, int queries, int rows,
                                             int width, int capacity, int stages) {
  constexpr int PARTS = ROWS / TILE;
  constexpr int ROW_SLICE = TILE * SLICE * 2;
  constexpr int STAGE = PARTS * ROW_SLICE + (RESIDENT ? 0 : QUERY_SLICE);
  extern __shared__ __align__(1024) unsigned char shared[];

  const int slices = width / SLICE;
  unsigned char* const resident = shared;
  unsigned char* const ring = shared + (RESIDENT ? slices * QUERY_SLICE : 0);
  ptx::Barrier* const full = reinterpret_cast<ptx::Barrier*>(ring + stages * STAGE);
  ptx::Barrier* const empty = full + stages;

  const int first_query = blockIdx.x * QUERIES;
  const int tiles = (rows + ROWS - 1) / ROWS;
  const int begin = static_cast<long long>(tiles) * blockIdx.y / gridDim.y;
  const int end = static_cast<long long>(tiles) * (blockIdx.y + 1) / gridDim.y;

  if (threadIdx.x == 0) {
    for (int s = 0; s < stages; ++s) {
      ptx::barrier_init(full + s, 1);
      ptx::barrier_init(empty + s, 8);  // the warps that multiply
    }
    ptx::barrier_init_done();
  }
  __syncthreads();

  if (threadIdx.x < 128) {
    ptx::fewer_registers<40>();
    if (threadIdx.x == 0) {
      const unsigned char* const from_q = reinterpret_cast<const unsigned char*>(q) +
                                          static_cast<long long>(blockIdx.x) * slices * QUERY_SLICE;
      const unsigned char* from_v = reinterpret_cast<const unsigned char*>(v);
      int stage = 0, parity = 1;  // an empty ring: the phase before the first is over
      for (int tile = begin; tile < end; ++tile)
        for (int slice = 0; slice < slices; ++slice) {
          ptx::barrier_wait(empty + stage, parity);
          const bool with_queries = !RESIDENT || tile == begin;
          unsigned char* const to = ring + stage * STAGE;
          ptx::barrier_arrive_expecting(full + stage,
                                        PARTS * ROW_SLICE + (with_queries ? QUERY_SLICE : 0));
          if (with_queries)
            ptx::bulk_copy(RESIDENT ? resident + slice * QUERY_SLICE : to + PARTS * ROW_SLICE,
                           from_q + slice * QUERY_SLICE, QUERY_SLICE, full + stage);
#pragma unroll
          for (int part = 0; part < PARTS; ++part)
            ptx::bulk_copy(
                to + part * ROW_SLICE,
                from_v +
                    ((static_cast<long long>(tile) * PARTS + part) * slices + slice) * ROW_SLICE,
                ROW_SLICE, full + stage);
          if (++stage == stages) stage = 0, parity ^= 1;
        }
    }
  } else {
    ptx::more_registers<232>();
    const int group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int my_query = first_query + group * 64 + warp * 16;
    Query mine[1][2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      mine[0][half] = query(q_scale, q_reach, q_floor, my_query + half * 8 + lane / 4, queries);
    Appender appender(lists, counts, capacity);
    int stage = 0, parity = 0;
    for (int tile = begin; tile < end; ++tile) {
      float products[1][ROWS / 8][4];
      int before = -1;
      for (int slice = 0; slice < slices; ++slice) {
        ptx::barrier_wait(full + stage, parity);
        const unsigned char* const b = ring + stage * STAGE;
        const unsigned char* const a =
            (RESIDENT ? resident + slice * QUERY_SLICE : b + PARTS * ROW_SLICE) +
            group * (QUERY_SLICE / 2);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < SLICE / 16; ++k)
          ptx::wgmma_f16(products[0], ptx::matrix_descriptor(a + k * 32),
                         ptx::matrix_descriptor(b + k * 32), slice + k > 0);
        ptx::wgmma_commit();
        // The products of the slice before are done: its stage may be filled.
        ptx::wgmma_wait<1>();
        if (before >= 0 && lane == 0) ptx::barrier_arrive(empty + before);
        before = stage;
        if (++stage == stages) stage = 0, parity ^= 1;
      }
      ptx::wgmma_wait<0>();
      if (lane == 0) ptx::barrier_arrive(empty + before);
      const long long at = static_cast<long long>(tile) * ROWS;
      append_near(products, mine, v_scale + at, v_near + at, v_residual + at, my_query, tile * ROWS,
                  queries, rows, appender);
    }
    appender.flush();
  }
}

}  // namespace nearest

#define SCREEN(NAME, ROWS, RESIDENT)                                                              \
  extern "C" __global__ void __launch_bounds__(nearest::THREADS, 1)                               \
      NAME(const __half* q, const float* q_scale, const float* q_reach, const float* q_floor,     \
           const __half* v, const float* v_scale, const float* v_near, const float* v_residual,   \
           int* lists, int* counts, int queries, int rows, int width, int capacity, int stages) { \
    nearest::screen_wgmma<ROWS, RESIDENT>(q, q_scale, q_reach, q_floor, v, v_scale, v_near,       \
                                          v_residual, lists, counts, queries, rows, width,        \
                                          capacity, stages);                                      \
  }

SCREEN(nearest_wgmma_256, 256, true)
SCREEN(nearest_wgmma_128, 128, true)
SCREEN(nearest_wgmma_any, 256, false)
