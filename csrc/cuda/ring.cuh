// The products of kernels with wgmma (sm_90a): a block's own tile of 128 rows against a range of
// other rows, which flow past.
//
// A block keeps its own tile in shared memory (RESIDENT) and walks steps of PARTS tiles of the
// others. One of three warpgroups, one thread of it, fills a ring of stages by bulk copies: 64
// numbers of a step's rows, and as many of its own: into their place while the first step passes
// (RESIDENT), otherwise into each stage. full[s] counts the bytes of stage s, empty[s] the warps
// that are done with it. The two warpgroups that multiply meet nowhere else: while one does what
// follows its products, the other's keep the tensor cores busy.
//
// Shared memory: [own tile: slices × 16 KB] [ring: stages × (PARTS × 16 KB, and 16 KB if the own
// tile flows)] [what the kernel keeps beside] [barriers: 2 × stages + 1].
#pragma once

#include "hopper.cuh"
#include "tiles.cuh"

inline constexpr int RING_THREADS = 384, RING_WARPS = 8;  // all; that multiply

// Whose rows are those of a product, 64 a warpgroup; the other's are its columns.
enum Rows { OWN, FLOWING };

template <int PARTS, bool RESIDENT>
struct Ring {
  static constexpr int STAGE = (PARTS + !RESIDENT) * TILE_SLICE;
  unsigned char *own, *stages_at, *kept;
  Barrier *full, *empty, *done;  // done: for the kernel, of all warps that multiply
  int slices, stages;
  int stage = 0, parity = 0;  // of the next item, for those who multiply

  __device__ Ring(unsigned char* shared, int slices, int stages, int kept_bytes)
      : own(shared),
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
        barrier_init(empty + s, RING_WARPS);
      }
      barrier_init(done, RING_WARPS);
      barriers_made();
    }
    __syncthreads();
  }

  // By one thread. mine: the block's own tile; others: of `tiles` tiles those of the steps from
  // `begin` to `end`, the last of which may lack parts.
  __device__ __forceinline__ void fetch(const unsigned char* mine, const unsigned char* others,
                                        int tiles, int begin, int end) {
    int at = 0, phase = 1;  // of a new ring the phase before the first is over
    for (int step = begin; step < end; ++step)
      for (int slice = 0; slice < slices; ++slice) {
        unsigned char* const to = stages_at + at * STAGE;
        const bool with_own = !RESIDENT || step == begin;
        const int parts = PARTS == 1 ? 1 : min(tiles - step * PARTS, PARTS);
        barrier_wait(empty + at, phase);
        barrier_arrive_for(full + at, (parts + with_own) * TILE_SLICE);
        if (with_own)
          bulk_copy(RESIDENT ? own + slice * TILE_SLICE : to + PARTS * TILE_SLICE,
                    mine + slice * TILE_SLICE, TILE_SLICE, full + at);
        for (int part = 0; part < parts; ++part) {
          const i64 tile = static_cast<i64>(step) * PARTS + part;
          bulk_copy(to + part * TILE_SLICE, others + (tile * slices + slice) * TILE_SLICE,
                    TILE_SLICE, full + at);
        }
        if (++at == stages) at = 0, phase ^= 1;
      }
  }

  // The next step's products of a warpgroup (0 or 1).
  template <typename T, Rows ROWS, int N>
  __device__ __forceinline__ void multiply(float (&products)[N][4], int warpgroup) {
    int before = 0;
    for (int slice = 0; slice < slices; ++slice) {
      barrier_wait(full + stage, parity);
      const unsigned char* const others = stages_at + stage * STAGE;
      const unsigned char* const mine =
          RESIDENT ? own + slice * TILE_SLICE : others + PARTS * TILE_SLICE;
      const unsigned char* const a = (ROWS == OWN ? mine : others) + warpgroup * 64 * LINE;
      const unsigned char* const b = ROWS == OWN ? others : mine;
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < SLICE / 16; ++k)
        wgmma_64x16<T>(products, lines(a + k * 32), lines(b + k * 32), slice + k > 0);
      wgmma_commit();
      // One slice's products stay under way; those before are done with their stage.
      wgmma_wait<1>();
      if (slice > 0) release(before);
      before = stage;
      if (++stage == stages) stage = 0, parity ^= 1;
    }
    wgmma_finish(products);
    release(before);
  }

 private:
  __device__ __forceinline__ void release(int at) {
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + at);
  }
};
