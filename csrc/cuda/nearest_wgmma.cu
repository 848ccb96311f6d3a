// Screening for `nearest` on tensor cores by wgmma (sm_90a): the same as nearest_screen.cu, faster.
//
// A block takes 128 queries, 64 a warpgroup that multiplies, and walks a range of tiles of ROWS
// bank rows. A third warpgroup, one thread of it, fills a ring of stages by bulk copies, each PARTS
// blocks of 16 KB as they lie in the packed bank (ROWS × 64 halves), and 64 halves of the queries:
// into their own place while the first tile passes (RESIDENT), otherwise into each stage. full[s]
// counts the bytes of stage s, empty[s] the warps that are done with it. The two warpgroups meet
// nowhere else: while one tests its products, the other's keep the tensor cores busy.
//
// Shared memory: [queries: width/64 × 16 KB] [ring: stages × (PARTS·16 KB, and 16 KB if the queries
// flow)] [barriers: 2 × stages × 8 bytes].
//
// A product of 64 × 256 × 16 takes 128 cycles, in which it reads 10 KB of shared memory and 4 KB
// are written: 112 bytes a cycle of 128. With ROWS = 128 it were all 128.
#include "hopper.cuh"
#include "nearest_screen.cuh"

namespace nearest {

constexpr int WGMMA_THREADS = 384;

// As nearest::screen, with a whole tile of queries a block.
template <int ROWS, bool RESIDENT>
__global__ void __launch_bounds__(WGMMA_THREADS, 1)
    screen_wgmma(const unsigned char* q, const float* q_scale, const float* aims, int queries,
                 int padded_queries, const unsigned char* v, const float* numbers, i64 line,
                 int tiles, int first_row, int slices, int* rows, float* values, int* counts,
                 int capacity, int stages) {
#ifdef ROBUSTFT_WGMMA
  constexpr int FETCHING = 40, MULTIPLYING = 232;  // registers: 128·(40 + 2·232) of 65,536
  constexpr int PARTS = ROWS / TILE, FRAGMENTS = TILE / 8;
  constexpr int STAGE = (PARTS + !RESIDENT) * TILE_SLICE;
  DYNAMIC_SHARED(shared);
  unsigned char* const ring = shared + (RESIDENT ? slices * TILE_SLICE : 0);
  Barrier* const full = reinterpret_cast<Barrier*>(ring + stages * STAGE);
  Barrier* const empty = full + stages;

  const int groups = (tiles + PARTS - 1) / PARTS;  // the last one may lack a part
  const int begin = static_cast<i64>(groups) * blockIdx.y / gridDim.y;
  const int end = static_cast<i64>(groups) * (blockIdx.y + 1) / gridDim.y;

  if (threadIdx.x == 0) {
    for (int s = 0; s < stages; ++s) {
      barrier_init(full + s, 1);
      barrier_init(empty + s, 2 * 4);
    }
    barriers_made();
  }
  __syncthreads();

  if (threadIdx.x < 128) {
    fewer_registers<FETCHING>();
    if (threadIdx.x == 0) {
      const unsigned char* const q_tile = q + static_cast<i64>(blockIdx.x) * slices * TILE_SLICE;
      int stage = 0, parity = 1;  // of a new ring the phase before the first is over
      for (int group = begin; group < end; ++group)
        for (int slice = 0; slice < slices; ++slice) {
          unsigned char* const to = ring + stage * STAGE;
          const bool with_queries = !RESIDENT || group == begin;
          const int parts = min(tiles - group * PARTS, PARTS);
          barrier_wait(empty + stage, parity);
          barrier_arrive_for(full + stage, (parts + with_queries) * TILE_SLICE);
          if (with_queries)
            bulk_copy(RESIDENT ? shared + slice * TILE_SLICE : to + PARTS * TILE_SLICE,
                      q_tile + slice * TILE_SLICE, TILE_SLICE, full + stage);
          for (int part = 0; part < parts; ++part) {
            const i64 tile = static_cast<i64>(group) * PARTS + part;
            bulk_copy(to + part * TILE_SLICE, v + (tile * slices + slice) * TILE_SLICE, TILE_SLICE,
                      full + stage);
          }
          if (++stage == stages) stage = 0, parity ^= 1;
        }
    }
  } else {
    more_registers<MULTIPLYING>();
    const int lane = threadIdx.x % 32, warpgroup = threadIdx.x / 128 - 1;
    const int first_query = blockIdx.x * TILE + warpgroup * 64 + threadIdx.x / 32 % 4 * 16;
    Query mine[1][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = first_query + half * 8 + lane / 4;
      mine[0][half] = {2 * q_scale[i], aims[padded_queries + i], aims[2 * padded_queries + i]};
    }
    Appender appender(rows, values, counts, capacity);
    int stage = 0, parity = 0;
    for (int group = begin; group < end; ++group) {
      float products[PARTS * FRAGMENTS][4];
      int before = 0;
      for (int slice = 0; slice < slices; ++slice) {
        barrier_wait(full + stage, parity);
        const unsigned char* const b = ring + stage * STAGE;
        const unsigned char* const a =
            (RESIDENT ? shared + slice * TILE_SLICE : b + PARTS * TILE_SLICE) +
            warpgroup * 64 * LINE;
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < SLICE / 16; ++k)
          wgmma_64x16(products, lines(a + k * 32), lines(b + k * 32), slice + k > 0);
        wgmma_commit();
        // One slice's products stay under way; those before are done with their stage.
        wgmma_wait<1>();
        if (slice > 0 && lane == 0) barrier_arrive(empty + before);
        before = stage;
        if (++stage == stages) stage = 0, parity ^= 1;
      }
      wgmma_finish(products);
      if (lane == 0) barrier_arrive(empty + before);
#pragma unroll
      for (int part = 0; part < PARTS; ++part) {
        const int tile = group * PARTS + part;
        if (tile >= tiles) break;
        const float* const at = numbers + static_cast<i64>(tile) * TILE;
        append_near(reinterpret_cast<float (&)[1][FRAGMENTS][4]>(products[part * FRAGMENTS]), mine,
                    at + SCALE * line, at + NEAR * line, at + RESIDUAL * line, first_query, queries,
                    first_row + tile * TILE, appender);
      }
    }
    appender.flush();
  }
#endif
}

}  // namespace nearest

INSTANTIATE(nearest::screen_wgmma<256, true>);
INSTANTIATE(nearest::screen_wgmma<128, true>);
INSTANTIATE(nearest::screen_wgmma<256, false>);
