// The end of the screening kernels: the test on a tile of products, and the lists.
#pragma once

#include "nearest.cuh"

namespace nearest {

// What the test knows of a query. A row of a tile of scale s and level λ is kept where
//     (scale·s)·P − near ≥ floor − reach·λ
// (scale = 2·s_q, reach = 2t), and where either side is NaN.
struct Query {
  float scale, reach, floor;
};

// The lists of a block of queries.
struct Lists {
  int* rows;
  float* values;
  int* counts;
  int capacity;
};

// x[half] of the fragments' entries 2·half + e, counted as (m·N + n)·2 + e: entry FIRST + `index`,
// by halving, since registers have no index. `index` < COUNT, a power of two.
template <int FIRST, int COUNT, int M, int N>
__device__ __forceinline__ float entry(const float (&x)[M][N][4], int half, int index) {
  if constexpr (COUNT == 1) {
    constexpr int fragment = FIRST / 2;
    return x[fragment / N][fragment % N][2 * half + FIRST % 2];
  } else {
    const float low = entry<FIRST, COUNT / 2>(x, half, index);
    const float high = entry<FIRST + COUNT / 2, COUNT / 2>(x, half, index);
    return index & (COUNT / 2) ? high : low;
  }
}

// What passes of a warp's part of a tile, of scale s and level λ: bit (m·N + n)·2 + e of
// passed[half]. products[m][n] is a fragment of the tensor cores (see mma_16x8x16): queries 16·m …,
// rows 8·n …; `near` starts at row 0. Padding does not pass but for NaN.
template <int M, int N>
__device__ __forceinline__ void screen_tile(const float (&products)[M][N][4],
                                            const Query (&queries)[M][2], float scale, float level,
                                            const float* near, u32 (&passed)[2]) {
  static_assert(M * N * 2 <= 32, "a bit for each of a lane's entries of one half");
  const int column = threadIdx.x % 4 * 2;
  float factors[M][2], floors[M][2];
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Query& q = queries[m][half];
      factors[m][half] = q.scale * scale;
      floors[m][half] = fmaf(-q.reach, level, q.floor);
    }
  passed[0] = passed[1] = 0;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const float2 d = *reinterpret_cast<const float2*>(near + n * 8 + column);
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float factor = factors[m][half], floor = floors[m][half];
        const float* p = products[m][n] + 2 * half;
        if (!(fmaf(p[0], factor, -d.x) < floor)) passed[half] |= 1u << (m * N + n) * 2;
        if (!(fmaf(p[1], factor, -d.y) < floor)) passed[half] |= 2u << (m * N + n) * 2;
      }
  }
}

// Appends what has passed of PARTS tiles. Queries start at first_query, rows at first_row; queries
// from query_count on are never listed. The slots of all that a lane has of a query come from one
// atomic addition, and all of these are under way at once, since an answer takes some hundred
// cycles. Counts go on beyond the capacity: that is how an overflow is seen.
template <int PARTS, int M, int N>
__device__ __forceinline__ void append(const float (&products)[PARTS][M][N][4],
                                       const u32 (&passed)[PARTS][2], int first_query,
                                       int query_count, int first_row, const Lists& lists) {
  u32 some = 0;
#pragma unroll
  for (int part = 0; part < PARTS; ++part) some |= passed[part][0] | passed[part][1];
  if (!__any_sync(~0u, some)) return;
  const int lane = threadIdx.x % 32;
  const int query = first_query + lane / 4, row = first_row + lane % 4 * 2;
  int slots[2][M];
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const u32 mask = M == 1 ? ~0u : ((1u << N * 2 % 32) - 1) << m * N * 2;
      int found = 0;
#pragma unroll
      for (int part = 0; part < PARTS; ++part) found += __popc(passed[part][half] & mask);
      const int q = query + m * 16 + half * 8;
      slots[half][m] = lists.capacity;  // beyond it nothing is stored
      if (found > 0 && q < query_count) slots[half][m] = atomicAdd(lists.counts + q, found);
    }
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int part = 0; part < PARTS; ++part)
      for (u32 rest = passed[part][half]; rest != 0; rest &= rest - 1) {
        const int index = __ffs(rest) - 1, fragment = index / 2, of = fragment / N;
        int slot = 0;
#pragma unroll
        for (int m = 0; m < M; ++m)
          if (m == of) slot = slots[half][m]++;
        if (slot >= lists.capacity) continue;
        const i64 at = static_cast<i64>(query + of * 16 + half * 8) * lists.capacity + slot;
        lists.rows[at] = row + part * TILE + fragment % N * 8 + index % 2;
        lists.values[at] = entry<0, M * N * 2>(products[part], half, index);
      }
  __syncwarp();  // what follows takes whole warps
}

}  // namespace nearest
