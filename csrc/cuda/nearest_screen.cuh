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

// Appends what passes of a warp's tile. products[m][n] is a fragment of the tensor cores (see
// mma_16x8x16): 16 queries from first_query + 16·m, 8 rows from column 8·n. `scale`, `near` and
// `residual` start at column 0, which is bank row first_row. Padding never passes.
template <int M, int N>
__device__ __forceinline__ void append_near(const float (&products)[M][N][4],
                                            const Query (&queries)[M][2], const float* scale,
                                            const float* near, const float* residual,
                                            int first_query, int first_row, Appender& lists) {
  const int lane = threadIdx.x % 32, column = lane % 4 * 2;
  bool some[M][2] = {};
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
        const float* p = products[m][n] + 2 * half;
        some[m][half] |= passes(p[0], queries[m][half], s.x, d.x, r.x);
        some[m][half] |= passes(p[1], queries[m][half], s.y, d.y, r.y);
      }
  }
  bool any = false;
#pragma unroll
  for (int m = 0; m < M; ++m) any |= some[m][0] | some[m][1];
  if (!__any_sync(~0u, any)) return;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!some[m][half]) continue;
      const int query = first_query + m * 16 + half * 8 + lane / 4;
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int c = n * 8 + column + e;
          const float product = products[m][n][2 * half + e];
          if (passes(product, queries[m][half], scale[c], near[c], residual[c]))
            lists.append(query, first_row + c, product);
        }
    }
}

}  // namespace nearest
