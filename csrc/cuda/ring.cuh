// The products of kernels with wgmma (sm_90a): a block's own tile of 128 rows against a range of
// other rows, which flow past.
//
// A block keeps its own tile in shared memory (RESIDENT) and walks steps of PARTS tiles of the
// others. One of three warpgroups, a thread of it, fills a ring of stages by bulk copies: 64
// numbers of a step's rows, and as many of its own: into their place while the first step passes
// (RESIDENT), otherwise into each stage. full[s] counts the bytes of stage s, empty[s] the warps
// that are done with it. The two warpgroups that multiply meet nowhere else: while one does what
// follows its products, the other's keep the tensor cores busy.
//
// APART: where a warpgroup multiplies 64 of the other rows with the whole of the own tile, it needs
// half of a stage. Then each has a ring of such halves, with a thread that fills it, and one runs
// ahead of the other as far as its own stages go.
//
// Blocks of a cluster take the same range, so each fetches a half of every stage for both, and the
// second-level cache is read once. full[s] counts all that comes to its own block; empty[s] the
// warps of both, for whoever writes to a stage writes to both blocks'. A block stays until its
// stages are free: until then the other copies to it, and arrives at its barriers.
//
// Shared memory: [own tile: slices × 16 KB] [ring: stages × (PARTS × 16 KB, and 16 KB if the own
// tile flows)] [what the kernel keeps beside] [barriers: 4 × stages + 2].
#pragma once

#include "hopper.cuh"
#include "tiles.cuh"

inline constexpr int RING_THREADS = 384, RING_WARPS = 8;  // all; that multiply

// Whose rows are those of a product, 64 a warpgroup; the other's are its columns.
enum Rows { OWN, FLOWING };

template <int PARTS, bool RESIDENT, bool APART, int CLUSTER>
struct Ring {
  static_assert(CLUSTER <= 2 && (!APART || (RESIDENT && PARTS == 1)));
  static constexpr int STAGE = (PARTS + !RESIDENT) * TILE_SLICE, RINGS = APART ? 2 : 1;
  static constexpr int SHARE = TILE_SLICE / (RINGS > CLUSTER ? RINGS : CLUSTER);  // of a copy
  unsigned char *own, *stages_at, *kept;
  Barrier *full, *empty;  // [RINGS][stages], from begin() on those of the thread's ring
  Barrier* own_there;     // counts the own tile, if APART
  Barrier* done;          // for the kernel, of all warps that multiply
  int slices, stages;
  int stage = 0, parity = 0;  // of the next item, for those who multiply
  u32 empty_there;            // empty, in the block of the cluster that a lane arrives at

  __device__ Ring(unsigned char* shared, int slices, int stages, int kept_bytes)
      : own(shared),
        stages_at(shared + (RESIDENT ? slices * TILE_SLICE : 0)),
        kept(stages_at + stages * STAGE),
        full(reinterpret_cast<Barrier*>(kept + kept_bytes)),
        empty(full + RINGS * stages),
        own_there(empty + RINGS * stages),
        done(own_there + 1),
        slices(slices),
        stages(stages) {
    if (threadIdx.x == 0) {
      for (int s = 0; s < RINGS * stages; ++s) {
        barrier_init(full + s, 1);
        barrier_init(empty + s, CLUSTER * RING_WARPS / RINGS);
      }
      barrier_init(own_there, 1);
      barrier_init(done, RING_WARPS);
      barriers_made();
    }
    if (CLUSTER == 1) {
      __syncthreads();
    } else {
      cluster_barrier();
      empty_there = place_in(empty, threadIdx.x % CLUSTER);
    }
  }

  // By the warpgroup that fetches. mine: the block's own tile; others: of `tiles` tiles those of
  // the steps from `begin` to `end`, the last of which may lack parts.
  __device__ __forceinline__ void fetch(const unsigned char* mine, const unsigned char* others,
                                        int tiles, int begin, int end) {
    // A thread each, and code of its own: what it computes stays uniform.
    if (threadIdx.x == 0) fetch_ring<0>(mine, others, tiles, begin, end);
    if (APART && threadIdx.x == 32) fetch_ring<RINGS - 1>(mine, others, tiles, begin, end);
  }

  // By a warpgroup that multiplies (0 or 1), before the first step.
  __device__ __forceinline__ void begin(int warpgroup) {
    if (!APART) return;
    take(warpgroup);
    barrier_wait(own_there, 0);
  }

  // The next step's products of a warpgroup.
  template <typename T, Rows ROWS, int N>
  __device__ __forceinline__ void multiply(float (&products)[N][4], int warpgroup) {
    static_assert(!APART || ROWS == FLOWING);
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
  template <int RING>
  __device__ __forceinline__ void fetch_ring(const unsigned char* mine, const unsigned char* others,
                                             int tiles, int begin, int end) {
    take(RING);
    if (APART && RING == 0) {
      barrier_arrive_for(own_there, slices * TILE_SLICE);
      for (int slice = 0; slice < slices; ++slice)
        bulk_copy(own + slice * TILE_SLICE, mine + slice * TILE_SLICE, TILE_SLICE, own_there);
    }
    const int rank = CLUSTER == 1 ? 0 : block_in_cluster(), share = (APART ? RING : rank) * SHARE;
    int at = 0, phase = 1;  // of a new ring the phase before the first is over
    for (int step = begin; step < end; ++step)
      for (int slice = 0; slice < slices; ++slice) {
        unsigned char* const to = stages_at + at * STAGE;
        const bool with_own = !APART && (!RESIDENT || step == begin);
        const int parts = PARTS == 1 ? 1 : min(tiles - step * PARTS, PARTS);
        barrier_wait(empty + at, phase);
        barrier_arrive_for(full + at, APART ? TILE_SLICE / RINGS : (parts + with_own) * TILE_SLICE);
        if (with_own)
          bulk_copy(RESIDENT ? own + slice * TILE_SLICE : to + PARTS * TILE_SLICE,
                    mine + slice * TILE_SLICE, TILE_SLICE, full + at);
        for (int part = 0; part < parts; ++part) {
          const i64 tile = static_cast<i64>(step) * PARTS + part;
          unsigned char* const there = to + part * TILE_SLICE + share;
          const unsigned char* const from = others + (tile * slices + slice) * TILE_SLICE + share;
          if (CLUSTER == 1)
            bulk_copy(there, from, SHARE, full + at);
          else if (!APART || RING == rank)
            bulk_copy_to_all<CLUSTER>(there, from, SHARE, full + at);
        }
        if (++at == stages) at = 0, phase ^= 1;
      }
    for (int s = 0; CLUSTER > 1 && s < stages; ++s) {
      barrier_wait(empty + at, phase);
      if (++at == stages) at = 0, phase ^= 1;
    }
  }

  __device__ __forceinline__ void take(int ring) {
    full += ring * stages;
    empty += ring * stages;
    if (CLUSTER > 1) empty_there += ring * stages * sizeof(Barrier);
  }

  __device__ __forceinline__ void release(int at) {
    if (threadIdx.x % 32 >= CLUSTER) return;
    if (CLUSTER == 1)
      barrier_arrive(empty + at);
    else
      barrier_arrive_at(empty_there + at * sizeof(Barrier));
  }
};
