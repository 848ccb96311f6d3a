// Screening for `nearest` on tensor cores by wgmma (sm_90a): the same as nearest_screen.cu, faster.
//
// A block takes 128 queries, 64 a warpgroup that multiplies, against a range of the bank
// (ring.cuh), ROWS rows a step as they lie in the packed bank.
//
// A product of 64 × 256 × 16 takes 128 cycles, in which it reads 10 KB of shared memory and 4 KB
// are written: 112 bytes a cycle of 128. With ROWS = 128 it were all 128.
#include "hopper.cuh"
#include "nearest_screen.cuh"
#include "ring.cuh"

namespace nearest {

// As nearest::screen, with a whole tile of queries a block.
template <int ROWS, bool RESIDENT, int CLUSTER>
__global__ void __launch_bounds__(RING_THREADS, 1) CLUSTERS_OF(CLUSTER)
    screen_wgmma(const unsigned char* q, const float* q_scale, const float* aims, int queries,
                 int padded_queries, const unsigned char* v, const float* numbers, i64 line,
                 int tiles, int first_row, int slices, int* rows, float* values, int* counts,
                 int capacity, int stages) {
#ifdef ROBUSTFT_WGMMA
  constexpr int FETCHING = 40, MULTIPLYING = 232;  // registers: 128·(40 + 2·232) of 65,536
  constexpr int PARTS = ROWS / TILE, FRAGMENTS = TILE / 8;
  DYNAMIC_SHARED(shared);
  Ring<PARTS, RESIDENT, false, CLUSTER> ring(shared, slices, stages, 0);
  const int groups = (tiles + PARTS - 1) / PARTS;  // the last one may lack a part
  const int begin = static_cast<i64>(groups) * blockIdx.y / gridDim.y;
  const int end = static_cast<i64>(groups) * (blockIdx.y + 1) / gridDim.y;

  const bool spare = int(blockIdx.x) * TILE >= queries;  // a cluster's last block, without queries
  const int block = blockIdx.x - spare;                  // whose tile it multiplies instead

  if (threadIdx.x < 128) {
    fewer_registers<FETCHING>();
    ring.fetch(q + static_cast<i64>(block) * slices * TILE_SLICE, v, tiles, begin, end);
  } else {
    more_registers<MULTIPLYING>();
    const int lane = threadIdx.x % 32, warpgroup = threadIdx.x / 128 - 1;
    const int first_query = block * TILE + warpgroup * 64 + threadIdx.x / 32 % 4 * 16;
    Query mine[1][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = first_query + half * 8 + lane / 4;
      mine[0][half] = {2 * q_scale[i], aims[padded_queries + i], aims[2 * padded_queries + i]};
    }
    ring.begin(warpgroup);
    for (int group = begin; group < end; ++group) {
      float scales[PARTS], levels[PARTS];  // they come in while the products run
#pragma unroll
      for (int part = 0; part < PARTS; ++part) {
        const float* const of_tile =
            numbers + static_cast<i64>(min(group * PARTS + part, tiles - 1)) * TILE;
        scales[part] = of_tile[SCALE * line];
        levels[part] = of_tile[LEVEL * line];
      }
      float products[PARTS * FRAGMENTS][4];
      ring.template multiply<Half, OWN>(products, warpgroup);
      if (spare) continue;
      auto& tested = reinterpret_cast<float (&)[PARTS][1][FRAGMENTS][4]>(products);
      u32 passed[PARTS][2] = {};
#pragma unroll
      for (int part = 0; part < PARTS; ++part) {
        const i64 tile = static_cast<i64>(group) * PARTS + part;
        if (tile < tiles)
          screen_tile(tested[part], mine, scales[part], levels[part],
                      numbers + NEAR * line + tile * TILE, passed[part]);
      }
      append(tested, passed, first_query, queries, first_row + group * PARTS * TILE,
             {rows, values, counts, capacity});
    }
  }
#endif
}

}  // namespace nearest

INSTANTIATE(nearest::screen_wgmma<256, true, 1>);
INSTANTIATE(nearest::screen_wgmma<256, true, 2>);
INSTANTIATE(nearest::screen_wgmma<128, true, 1>);
INSTANTIATE(nearest::screen_wgmma<128, true, 2>);
INSTANTIATE(nearest::screen_wgmma<256, false, 1>);
INSTANTIATE(nearest::screen_wgmma<256, false, 2>);
