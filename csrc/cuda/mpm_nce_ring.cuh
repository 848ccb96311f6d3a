// The products of mpm_nce by wgmma (sm_90a): one block of images against a range of texts.
//
// A block keeps 128 images in shared memory (RESIDENT) and walks tiles of 128 texts, 64 a warpgroup
// that multiplies. A third warpgroup, one thread of it, fills a ring of stages by bulk copies: 64
// numbers of the 128 texts, and as many of the images: into their own place while the first tile
// passes (RESIDENT), otherwise into each stage. full[s] counts the bytes of stage s, empty[s] the
// warps that are done with it. The two warpgroups meet nowhere else: while one takes exponentials
// of its products, the other's keep the tensor cores busy.
//
// Texts are the rows of a product, images its columns: a text's sums over the tile's images are
// then in four neighbouring lanes, and an image's sums stay in the registers of the threads that
// have its column, over the whole range of texts.
//
// Shared memory: [images: slices × 16 KB] [ring: stages × (16 KB, or 32 KB if images flow)] [what
// the kernel keeps of each warp] [barriers: 2 × stages + 1].
#pragma once

#include "mpm_nce.cuh"

namespace mpm_nce {

constexpr int THREADS = 384, WARPS = 8;          // all; that multiply
constexpr int FETCHING = 24, MULTIPLYING = 240;  // registers: 128·(24 + 2·240) of 65,536

using Products = float[TILE / 8][4];  // of 64 texts and 128 images by a warpgroup

template <bool RESIDENT>
struct Ring {
  static constexpr int STAGE = (RESIDENT ? 1 : 2) * TILE_SLICE;
  unsigned char *images, *stages_at, *kept;
  Barrier *full, *empty, *done;
  int slices, stages;
  int stage = 0, parity = 0;  // of the next item, for those who multiply

  __device__ Ring(unsigned char* shared, int slices, int stages, int kept_bytes)
      : images(shared),
        stages_at(shared + (RESIDENT ? slices * TILE_SLICE : 0)),
        kept(stages_at + stages * STAGE),
        full(reinterpret_cast<Barrier*>(kept + kept_bytes)),
        empty(full + stages),
        done(empty + stages),
        slices(slices),
        stages(stages) {
    if (threadIdx.x == 0) {
      for (int s = 0; s < stages; ++s) {
        barrier_init(full + s, 1);
        barrier_init(empty + s, WARPS);
      }
      barrier_init(done, WARPS);
      barriers_made();
    }
    __syncthreads();
  }

  // By one thread. x: the block's images; y: all texts.
  __device__ __forceinline__ void fetch(const unsigned char* x, const unsigned char* y, int begin,
                                        int end) {
    int at = 0, phase = 1;  // of a new ring the phase before the first is over
    for (int tile = begin; tile < end; ++tile)
      for (int slice = 0; slice < slices; ++slice) {
        unsigned char* const to = stages_at + at * STAGE;
        const bool with_images = !RESIDENT || tile == begin;
        barrier_wait(empty + at, phase);
        barrier_arrive_for(full + at, (1 + with_images) * TILE_SLICE);
        if (with_images)
          bulk_copy(RESIDENT ? images + slice * TILE_SLICE : to + TILE_SLICE,
                    x + slice * TILE_SLICE, TILE_SLICE, full + at);
        bulk_copy(to, y + (static_cast<i64>(tile) * slices + slice) * TILE_SLICE, TILE_SLICE,
                  full + at);
        if (++at == stages) at = 0, phase ^= 1;
      }
  }

  // The products of the next tile's texts of a warpgroup (0 or 1).
  template <typename T>
  __device__ __forceinline__ void multiply(Products& products, int warpgroup) {
    int before = 0;
    for (int slice = 0; slice < slices; ++slice) {
      barrier_wait(full + stage, parity);
      const unsigned char* const texts = stages_at + stage * STAGE;
      const unsigned char* const a = texts + warpgroup * 64 * LINE;
      const unsigned char* const b = RESIDENT ? images + slice * TILE_SLICE : texts + TILE_SLICE;
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < SLICE / 16; ++k)
        wgmma_64x16<T>(products, lines(a + k * 32), lines(b + k * 32), slice + k > 0);
      wgmma_commit();
      // One slice's products stay under way; those before are done with their stage.
      wgmma_wait<1>();
      if (slice > 0 && threadIdx.x % 32 == 0) barrier_arrive(empty + before);
      before = stage;
      if (++stage == stages) stage = 0, parity ^= 1;
    }
    wgmma_finish(products);
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + before);
  }
};

}  // namespace mpm_nce
