// What the kernels of `nearest` share; robustft/backends/search/screening.py derives it all. Packed
// halves lie in tiles (tiles.cuh).
#pragma once

#include "tiles.cuh"

namespace nearest {

// Lines of a packed matrix's numbers.
enum { SCALE, RESIDUAL, NORM, SQUARE, NEAR, LEVEL };

inline constexpr float TINY = 0x1p-120f, WIDER = 0x1p-20f, SHARE = 0x1p-14f;

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// The sum over a warp, in an order that does not change.
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) x += __shfl_xor_sync(~0u, x, bit);
  return x;
}

}  // namespace nearest
