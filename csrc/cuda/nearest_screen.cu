// Screening for `nearest` on tensor cores by mma.sync (sm_80 and later).
//
// A block takes a tile of QUERIES queries and walks a range of tiles of 128 bank rows; blockIdx.x
// is the tile of queries, blockIdx.y the range. Where shared memory holds them, the queries stay
// there (RESIDENT) and the bank flows past through a ring of stages, each 128 rows × 64 halves (16
// KB), copied asynchronously; otherwise a stage brings 64 halves of the queries along. The ring
// runs on from tile to tile: during a test the next tile is on its way.
//
// Shared memory: [queries: width/64 × QUERIES × 128 bytes] [ring: stages × 16 KB (and the queries'
// 128 bytes a line)] [near of the rows: slots × 512 bytes].
//
// A warp multiplies QUERIES/2 × 32: at 128 queries, 4 × 4 fragments, six ldmatrix for sixteen
// products.
#include "nearest_screen.cuh"

namespace nearest {

constexpr int SCREEN_THREADS = 256;  // 2 × 4 warps over a tile of queries × rows

// All but the newest stages − 2 groups have arrived; to wait for more does no harm.
__device__ __forceinline__ void wait_for_stage(int stages) {
  if (stages <= 2)
    cp_async_wait<0>();
  else if (stages <= 3)
    cp_async_wait<1>();
  else if (stages <= 5)
    cp_async_wait<2>();
  else
    cp_async_wait<4>();
}

template <int BYTES>
__device__ __forceinline__ void copy(unsigned char* to, const unsigned char* from) {
#pragma unroll
  for (int at = 0; at < BYTES; at += SCREEN_THREADS * 16)
    cp_async_16(to + at + threadIdx.x * 16, from + at + threadIdx.x * 16);
}

// q [query tiles·128, width] and v [tiles·128, width], packed; aims [3, query tiles·128]: r, 2t,
// floor; lines of the bank's numbers are `line` apart, and start at this chunk. stages ≥ 2.
template <int QUERIES, bool RESIDENT>
__global__ void __launch_bounds__(SCREEN_THREADS, 1)
    screen(const unsigned char* q, const float* q_scale, const float* aims, int queries,
           int padded_queries, const unsigned char* v, const float* numbers, i64 line, int tiles,
           int first_row, int slices, int* rows, float* values, int* counts, int capacity,
           int stages) {
  constexpr int M = QUERIES / 32, N = TILE / 32;  // fragments of a warp
  constexpr int QUERY_SLICE = QUERIES * LINE;
  constexpr int STAGE = TILE_SLICE + (RESIDENT ? 0 : QUERY_SLICE);
  DYNAMIC_SHARED(shared);

  unsigned char* const ring = shared + (RESIDENT ? slices * QUERY_SLICE : 0);
  float* const nears = reinterpret_cast<float*>(ring + stages * STAGE);
  const int slots = (stages - 2) / slices + 2;  // tiles that may be under way at once

  const int first_query = blockIdx.x * QUERIES;
  const int begin = static_cast<i64>(tiles) * blockIdx.y / gridDim.y;
  const int end = static_cast<i64>(tiles) * (blockIdx.y + 1) / gridDim.y;
  // The block's part of its tile of packed queries: the lines of a slice are TILE_SLICE apart.
  const unsigned char* const q_tile =
      q + static_cast<i64>(first_query / TILE) * slices * TILE_SLICE + first_query % TILE * LINE;

  int next_tile = begin, next_slice = 0, next_stage = 0, next_slot = 0;  // to be fetched
  const auto fetch = [&] {
    if (next_tile < end) {
      unsigned char* const stage = ring + next_stage * STAGE;
      copy<TILE_SLICE>(stage, v + (static_cast<i64>(next_tile) * slices + next_slice) * TILE_SLICE);
      if (!RESIDENT || next_tile == begin)
        copy<QUERY_SLICE>(RESIDENT ? shared + next_slice * QUERY_SLICE : stage + TILE_SLICE,
                          q_tile + static_cast<i64>(next_slice) * TILE_SLICE);
      if (next_slice == 0 && threadIdx.x < TILE / 4)
        cp_async_16(nears + next_slot * TILE + threadIdx.x * 4,
                    numbers + NEAR * line + static_cast<i64>(next_tile) * TILE + threadIdx.x * 4);
      if (++next_stage == stages) next_stage = 0;
      if (++next_slice == slices) {
        next_slice = 0;
        ++next_tile;
        if (++next_slot == slots) next_slot = 0;
      }
    }
    cp_async_commit();  // an empty group at the end: the waits count groups
  };
  for (int s = 0; s < stages - 1; ++s) fetch();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_query = warp / 4 * (QUERIES / 2), warp_row = warp % 4 * (TILE / 4);
  // ldmatrix_x4 reads 16 queries × 2 chunks; and 2 chunks of 8 rows, then of the next 8.
  const int a_at = swizzled(warp_query + lane % 16, lane / 16);
  const int b_at = swizzled(warp_row + lane / 16 * 8 + lane % 8, lane / 8 % 2);
  Query mine[M][2];
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = first_query + warp_query + m * 16 + half * 8 + lane / 4;
      mine[m][half] = {2 * q_scale[i], aims[padded_queries + i], aims[2 * padded_queries + i]};
    }

  int stage = 0, slot = 0;
  for (int tile = begin; tile < end; ++tile) {
    const float* const of_tile = numbers + static_cast<i64>(tile) * TILE;
    const float scale = of_tile[SCALE * line], level = of_tile[LEVEL * line];
    float products[1][M][N][4] = {};
    for (int slice = 0; slice < slices; ++slice) {
      wait_for_stage(stages);
      __syncthreads();  // everyone's copies are there, and everyone is done with the stage before
      fetch();
      const unsigned char* const b_slice = ring + stage * STAGE;
      const unsigned char* const a_slice =
          RESIDENT ? shared + slice * QUERY_SLICE : b_slice + TILE_SLICE;
#pragma unroll
      for (int k = 0; k < SLICE / 16; ++k) {  // two chunks each: bits 5 and 6 of an address
        u32 a[M][4], b[N / 2][4];
#pragma unroll
        for (int m = 0; m < M; ++m) ldmatrix_x4(a[m], a_slice + (a_at ^ (k * 32)) + m * 16 * LINE);
#pragma unroll
        for (int n = 0; n < N / 2; ++n)
          ldmatrix_x4(b[n], b_slice + (b_at ^ (k * 32)) + n * 16 * LINE);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int n = 0; n < N / 2; ++n) {
            mma_16x8x16(products[0][m][2 * n], a[m], {b[n][0], b[n][1]});
            mma_16x8x16(products[0][m][2 * n + 1], a[m], {b[n][2], b[n][3]});
          }
      }
      if (++stage == stages) stage = 0;
    }
    u32 passed[1][2];
    screen_tile(products[0], mine, scale, level, nears + slot * TILE + warp_row, passed[0]);
    append(products, passed, first_query + warp_query, queries, first_row + tile * TILE + warp_row,
           {rows, values, counts, capacity});
    if (++slot == slots) slot = 0;
  }
}

}  // namespace nearest

INSTANTIATE(nearest::screen<128, true>);
INSTANTIATE(nearest::screen<64, true>);
INSTANTIATE(nearest::screen<128, false>);
