// Matrices of 16-bit numbers as shared memory and wgmma want them: packed once, in tiles, so that a
// stage of a ring is one contiguous copy, and bulk copies need no map of a tensor.
#pragma once

#include "ptx.cuh"

// [n, width], n a multiple of TILE, width of SLICE: [n/TILE][width/SLICE] blocks of TILE lines of
// SLICE numbers. A line is 128 bytes, all banks once; its 16-byte chunk c lies at c ^ (line mod 8),
// so that the chunks c of eight lines, which ldmatrix and wgmma read at once, lie in eight groups
// of four banks.
inline constexpr int TILE = 128, SLICE = 64;
inline constexpr int LINE = SLICE * 2;          // bytes
inline constexpr int TILE_SLICE = TILE * LINE;  // bytes

__device__ __forceinline__ int swizzled(int line, int chunk) {
  return line * LINE + ((chunk ^ (line & 7)) << 4);
}

// Kernels with wgmma are empty for other cards: they have no such instructions.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(ROBUSTFT_EMULATED)
#define ROBUSTFT_WGMMA
// So many blocks along x run together, on multiprocessors that reach each other's shared memory.
#define CLUSTERS_OF(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define CLUSTERS_OF(blocks)
#endif

// What wgmma calls such lines: eight of them (1,024 bytes, so aligned) a swizzled pattern, K-major
// with 128-byte swizzle, 1,024 bytes from pattern to pattern. The leading offset (1) is not used.
__device__ __forceinline__ u64 lines(const unsigned char* at) {
  const u64 start = (shared_address(at) & 0x3ffff) >> 4, pattern = 1024 >> 4;
  return u64(1) << 62 | pattern << 32 | u64(1) << 16 | start;
}
