// The end of the screening kernels: the test on a tile of products, and the lists.
#pragma once

#include "nearest.cuh"

namespace nearest {

// What the test knows of a query. A row is kept where
//     scale·s_v·P + reach·ρ_v − near_v ≥ floor
// (scale = 2·s_q), and where the left side is NaN.
struct Query {
  float scale, reach, floor;
};

// Appends to the lists of queries. A slot comes from an atomic addition, whose answer takes some
// hundred cycles: the entry waits for it in registers until the next one comes, or the end.
class Appender {
 public:
  __device__ Appender(int* rows, float* values, int* counts, int capacity)
      : rows_(rows), values_(values), counts_(counts), capacity_(capacity) {}

  __device__ __forceinline__ void append(int query, int row, float value) {
    flush();
    query_ = query;
    row_ = row;
    value_ = value;
    slot_ = atomicAdd(counts_ + query, 1);
  }

  // Counts go on beyond the capacity: that is how an overflow is seen.
  __device__ __forceinline__ void flush() {
    if (query_ >= 0 && slot_ < capacity_) {
      const i64 at = static_cast<i64>(query_) * capacity_ + slot_;
      rows_[at] = row_;
      values_[at] = value_;
    }
    query_ = -1;
  }

 private:
  int* rows_;
  float* values_;
  int* counts_;
  int capacity_, query_ = -1, row_ = 0, slot_ = 0;
  float value_ = 0;
};

__device__ __forceinline__ bool passes(float product, const Query& q, float scale, float near,
                                       float residual) {
  return !(fmaf(product, q.scale * scale, fmaf(q.reach, residual, -near)) < q.floor);
}

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

// Appends what passes of a warp's tile. products[m][n] is a fragment of the tensor cores (see
// mma_16x8x16): 16 queries from first_query + 16·m, 8 rows from column 8·n. `scale`, `near` and
// `residual` start at column 0, which is bank row first_row. Padding does not pass but for NaN, and
// queries from query_count on are never listed.
template <int M, int N>
__device__ __forceinline__ void append_near(const float (&products)[M][N][4],
                                            const Query (&queries)[M][2], const float* scale,
                                            const float* near, const float* residual,
                                            int first_query, int query_count, int first_row,
                                            Appender& lists) {
  static_assert(M * N * 2 <= 32, "a bit for each of a lane's entries of one half");
  const int lane = threadIdx.x % 32, column = lane % 4 * 2;
  u32 passed[2] = {};
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int c = n * 8 + column;
    const float2 s = *reinterpret_cast<const float2*>(scale + c);
    const float2 d = *reinterpret_cast<const float2*>(near + c);
    const float2 r = *reinterpret_cast<const float2*>(residual + c);
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Query& q = queries[m][half];
        const float* p = products[m][n] + 2 * half;
        if (passes(p[0], q, s.x, d.x, r.x)) passed[half] |= 1u << (m * N + n) * 2;
        if (passes(p[1], q, s.y, d.y, r.y)) passed[half] |= 2u << (m * N + n) * 2;
      }
  }
  if (!__any_sync(~0u, passed[0] | passed[1])) return;
#pragma unroll
  for (int half = 0; half < 2; ++half)
    for (u32 rest = passed[half]; rest != 0; rest &= rest - 1) {
      const int index = __ffs(rest) - 1, fragment = index / 2;
      const int query = first_query + fragment / N * 16 + half * 8 + lane / 4;
      if (query >= query_count) continue;
      lists.append(query, first_row + fragment % N * 8 + column + index % 2,
                   entry<0, M * N * 2>(products, half, index));
    }
  __syncwarp();  // what follows takes whole warps
}

}  // namespace nearest
