// What the kernels of `nearest` share; robustft/backends/search/screening.py derives it all.
#pragma once

#include "ptx.cuh"

namespace nearest {

// Packed halves [n, width], n a multiple of TILE, width of SLICE, lie in tiles as shared memory
// wants them: [n/TILE][width/SLICE] blocks of TILE lines of SLICE halves. A line is 128 bytes, all
// banks once; its 16-byte chunk c lies at c ^ (line mod 8), so that the chunks c of eight lines,
// which ldmatrix and wgmma read at once, lie in eight groups of four banks.
inline constexpr int TILE = 128, SLICE = 64;
inline constexpr int LINE = SLICE * 2;          // bytes
inline constexpr int TILE_SLICE = TILE * LINE;  // bytes

__device__ __forceinline__ int swizzled(int line, int chunk) {
  return line * LINE + ((chunk ^ (line & 7)) << 4);
}

// Lines of a packed matrix's numbers.
enum { SCALE, NEAR, RESIDUAL, NORM, SQUARE };

inline constexpr float TINY = 0x1p-120f, WIDER = 0x1p-20f;

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// The sum over a warp, in an order that does not change.
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) x += __shfl_xor_sync(~0u, x, bit);
  return x;
}

}  // namespace nearest
