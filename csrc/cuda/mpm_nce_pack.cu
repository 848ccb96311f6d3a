// What comes before the products of mpm_nce: features in tiles, and for smoothed targets the sum of
// each anchor's products.
#include "tiles.cuh"

namespace mpm_nce {

// A matrix of 16-bit numbers [count, dim], rows `stride` apart.
struct Rows {
  const u16* at;
  i64 stride;
  int count;
};

// Chunk `number` of a row: eight numbers, 0 beyond the last column and row.
__device__ __forceinline__ uint4 chunk(const Rows& rows, int row, int number, int dim,
                                       bool aligned) {
  uint4 found = {};
  if (row >= rows.count) return found;
  const u16* const from = rows.at + row * rows.stride + number * 8;
  const int left = dim - number * 8;
  if (aligned && left >= 8) return *reinterpret_cast<const uint4*>(from);
  u32 words[4] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < left) words[i / 2] |= u32(from[i]) << i % 2 * 16;
  return {words[0], words[1], words[2], words[3]};
}

// x [count, dim] and y [other_count, dim] to tiles of `slices` slices; a thread takes a chunk. The
// counter of the merge is set to 0. aligned: whether all rows begin at multiples of 16 bytes.
__global__ void __launch_bounds__(256)
    pack(const u16* x, i64 x_stride, int count, const u16* y, i64 y_stride, int other_count,
         int dim, int slices, bool aligned, unsigned char* x_tiles, unsigned char* y_tiles,
         int* counter) {
  const i64 i = static_cast<i64>(blockIdx.x) * 256 + threadIdx.x;
  if (i == 0) *counter = 0;
  const int chunks = slices * 8;
  const i64 x_lines = (count + TILE - 1) / TILE * TILE,
            y_lines = (other_count + TILE - 1) / TILE * TILE;
  const bool second = i >= x_lines * chunks;
  const i64 own = second ? i - x_lines * chunks : i;
  const int row = own / chunks, number = own % chunks;
  if (second && row >= y_lines) return;
  const Rows rows = second ? Rows{y, y_stride, other_count} : Rows{x, x_stride, count};
  unsigned char* const tile = (second ? y_tiles : x_tiles) +
                              (static_cast<i64>(row / TILE) * slices + number / 8) * TILE_SLICE;
  *reinterpret_cast<uint4*>(tile + swizzled(row % TILE, number % 8)) =
      chunk(rows, row, number, dim, aligned);
}

// out[i] = <x_i, sum>, less <x_i, y_i> where own is given: Σ of its products. A warp takes a row.
template <typename T>
__global__ void __launch_bounds__(256)
    products(const T* x, i64 stride, const T* own, i64 own_stride, const float* sum, int count,
             int dim, float* out) {
  const int lane = threadIdx.x % 32, row = blockIdx.x * 8 + threadIdx.x / 32;
  if (row >= count) return;
  float total = 0;
  for (int c = lane; c < dim; c += 32) {
    const float others = own == nullptr ? sum[c] : sum[c] - to_float(own[row * own_stride + c]);
    total = fmaf(to_float(x[row * stride + c]), others, total);
  }
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) total += __shfl_xor_sync(~0u, total, bit);
  if (lane == 0) out[row] = total;
}

}  // namespace mpm_nce

INSTANTIATE(mpm_nce::pack);
INSTANTIATE(mpm_nce::products<BFloat16>);
INSTANTIATE(mpm_nce::products<Half>);
