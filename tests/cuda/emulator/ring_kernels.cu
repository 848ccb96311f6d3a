// The ring of csrc/cuda/ring.cuh by itself.
#include "hopper.cuh"
#include "ring.cuh"

namespace {

// out [gridDim.x·128, tiles·128]: the products of each block's own tile with all others, packed as
// tiles.cuh says; a range of the others each blockIdx.y.
template <int PARTS, bool RESIDENT, bool APART, int CLUSTER>
__global__ void products(const unsigned char* own, const unsigned char* others, float* out,
                         int tiles, int slices, int stages) {
  DYNAMIC_SHARED(shared);
  Ring<PARTS, RESIDENT, APART, CLUSTER> ring(shared, slices, stages, 0);
  const int steps = (tiles + PARTS - 1) / PARTS;
  const int begin = steps * blockIdx.y / gridDim.y, end = steps * (blockIdx.y + 1) / gridDim.y;
  if (threadIdx.x < 128) {
    ring.fetch(own + i64(blockIdx.x) * slices * TILE_SLICE, others, tiles, begin, end);
    return;
  }
  const int warp = threadIdx.x / 32 - 4, lane = threadIdx.x % 32;
  const i64 width = i64(tiles) * TILE;
  ring.begin(warp / 4);
  for (int step = begin; step < end; ++step) {
    float p[PARTS * TILE / 8][4];
    ring.template multiply<Half, APART ? FLOWING : OWN>(p, warp / 4);
    for (int n = 0; n < PARTS * TILE / 8; ++n)
      for (int e = 0; e < 4; ++e) {
        i64 mine = warp * 16 + lane / 4 + e / 2 * 8, other = n * 8 + lane % 4 * 2 + e % 2;
        if (APART) std::swap(mine, other);
        other += i64(step) * PARTS * TILE;
        if (other < width) out[(blockIdx.x * TILE + mine) * width + other] = p[n][e];
      }
  }
}

INSTANTIATE(products<1, true, true, 1>);
INSTANTIATE(products<1, true, true, 2>);
INSTANTIATE(products<1, true, false, 1>);
INSTANTIATE(products<1, true, false, 2>);
INSTANTIATE(products<2, true, false, 2>);
INSTANTIATE(products<2, false, false, 2>);

}  // namespace
