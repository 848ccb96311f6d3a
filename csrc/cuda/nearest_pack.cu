// Packing for `nearest`: rows less their mean in float16, and what is known of each row.
//
// A warp takes a row: Σc² and max|c|, then s (or the one that is given), h = c/s in float16, |s·h|²
// and |c − s·h|, all in float64. The row is read twice, the second time from a cache; halves go to
// tiles (tiles.cuh).
#include "nearest.cuh"

namespace nearest {

constexpr int PACK_WARPS = 8;
constexpr double LARGEST = 1e37;

// x [count, dim], rows `stride` apart; halves [padded, 64·slices], numbers [6, padded]; padded is a
// multiple of 8. scaled: s stands in numbers.
__global__ void __launch_bounds__(PACK_WARPS * 32)
    round_rows(const float* x, i64 stride, int count, int dim, const float* mean, int scaled,
               unsigned char* halves, float* numbers, int padded, int slices) {
  const int lane = threadIdx.x % 32, row = blockIdx.x * PACK_WARPS + threadIdx.x / 32;
  const float* const from = x + static_cast<i64>(row) * stride;
  const auto centred = [&](int column) {
    return row < count && column < dim ? double(from[column]) - double(mean[column]) : 0.0;
  };
  double square = 0, largest = 0;
  for (int c = lane; c < dim; c += 32) {
    const double y = centred(c);
    square += y * y;
    largest = fmax(largest, fabs(y));
  }
  square = warp_sum(square);
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) largest = fmax(largest, __shfl_xor_sync(~0u, largest, bit));
  const bool trusted = square <= LARGEST;  // not where NaN
  float* const at = numbers + row;
  const i64 line = padded;
  // 2^e > max|c|, as float32 sees it; e ≥ −60. Where not trusted all halves are 0.
  int exponent = trusted ? max(int(__float_as_uint(float(largest)) >> 23) - 126, -60) : 0;
  if (scaled) exponent = int(__float_as_uint(at[SCALE * line]) >> 23) - 127;
  const double scale = __uint_as_float(u32(exponent + 127) << 23);
  const double inverse = __uint_as_float(u32(127 - exponent) << 23);

  double norm = 0, apart = 0;
  unsigned char* const tile = halves + static_cast<i64>(row / TILE) * slices * TILE_SLICE;
  unsigned char* to = tile + swizzled(row % TILE, lane / 4) + lane % 4 * 4;
  for (int slice = 0; slice < slices; ++slice, to += TILE_SLICE) {
    u32 pair = 0;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const double y = trusted ? centred(slice * SLICE + lane * 2 + e) : 0.0;
      const Half h = from_float<Half>(float(y * inverse));
      const double rounded = to_float(h) * scale;
      norm += rounded * rounded;
      apart += (y - rounded) * (y - rounded);
      pair |= u32(h.bits) << (16 * e);
    }
    *reinterpret_cast<u32*>(to) = pair;
  }
  norm = warp_sum(norm);
  apart = warp_sum(apart);
  if (lane != 0) return;
  const bool there = row < count;
  const double residual = sqrt(apart) * (1 + WIDER) + TINY;
  if (!scaled) at[SCALE * line] = there && trusted ? float(scale) : 0.0f;
  at[RESIDUAL * line] = there && trusted ? float(residual) : 0.0f;
  at[NORM * line] =
      trusted ? float(norm) : float(0 * square + infinity());  // NaN of a row that is not finite
  at[SQUARE * line] = float(square);
}

// out [count, 64·slices]: rows `picked` of packed halves (null: the first ones), chunks in order. A
// thread takes a chunk.
__global__ void __launch_bounds__(PACK_WARPS * 32)
    plain(const uint4* halves, const i64* picked, int count, int slices, uint4* out) {
  const i64 i = static_cast<i64>(blockIdx.x) * (PACK_WARPS * 32) + threadIdx.x;
  const int chunk = i % (slices * 8);
  if (i >= static_cast<i64>(count) * slices * 8) return;
  const i64 number = i / (slices * 8);
  const i64 row = picked == nullptr ? number : picked[number], line = row % TILE;
  const i64 block = row / TILE * slices + chunk / 8;
  out[i] = halves[(block * TILE + line) * 8 + (chunk % 8 ^ line % 8)];
}

}  // namespace nearest

INSTANTIATE(nearest::round_rows);
INSTANTIATE(nearest::plain);
