// dive_loss, forward, first launch: sums of each block's rows.
//
// m is known only at the end, so each block sums about a centre c, the mean of u and v in its first
// row; the second launch (dive_merge.cu) moves the sums to m. Rows are cut by the shape alone. Same
// inputs, same bits.
//
// With a = (u − c) + (v − c) and b = u − v: |u − c|² + |v − c|² = (|a|² + |b|²)/2.
#include "dive_team.cuh"

namespace dive {

// Rows [block·rows_each, …): centres, sums [blocks, dim]: c and Σ(u−c)+(v−c); scalars [blocks, 2]:
// Σ|u−c|²+|v−c|² and Σ|u−v|². Dynamic shared memory where CHUNKS > 0: a row of float for c, and one
// for the sums of each of the 8 / team teams, in whole chunks.
template <typename T, int CHUNKS>
__global__ void __launch_bounds__(THREADS, 2)
    forward_rows(const T* f, const T* f0, const T* g, const T* g0, i64 f_stride, i64 f0_stride,
                 i64 g_stride, i64 g0_stride, bool aligned, float* centres, float* sums,
                 double* scalars, u32* counter, int rows, int dim, int rows_each, int team,
                 bool normalize) {
  SHARED(exchange, float[2][WARPS][PRODUCTS]);
  SHARED(losses, float[WARPS][2]);
  DYNAMIC_SHARED(memory);
  const Inputs<T> inputs = {{f, f0, g, g0}, {f_stride, f0_stride, g_stride, g0_stride}, aligned};
  Team<T, CHUNKS> t(inputs, dim, team, exchange);
  const int teams = WARPS / team, mine = t.warp / team, line = t.line();
  auto* const shared_centre = reinterpret_cast<float4*>(memory);
  float4* const shared_sum = shared_centre + (1 + mine) * line;
  const int begin = blockIdx.x * rows_each, end = min(begin + rows_each, rows);
  float *const centre = centres + i64(blockIdx.x) * dim, *const sum = sums + i64(blockIdx.x) * dim;

  float both = 0, apart = 0;  // Σ|a|², Σ|b|²
  t.point(min(begin + mine, end - 1));
  t.load();
  for (int first = begin; first < end; first += teams) {  // the same for all threads
    Difference of_f, of_g;
    if (normalize) {
      float s[6] = {};
      t.each([&](int, int, int, const Four& f, const Four& f0, const Four& g, const Four& g0) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          add_products(s, f[j], f0[j]);
          add_products(s + 3, g[j], g0[j]);
        }
      });
      t.combine(s);
      const bool usual = difference_of(s, of_f) & difference_of(s + 3, of_g);
      if (t.any(!usual)) t.differences(min(first + mine, end - 1), of_f, of_g);
    }
    if (first == begin) {
      t.each([&](int i, int at, int, const Four& f, const Four& f0, const Four& g, const Four& g0) {
        if constexpr (CHUNKS > 0) shared_sum[i] = {0, 0, 0, 0};
        if (mine != 0) return;
        Four c;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          c[j] = 0.5f * (moved(of_f, f[j], f0[j], 0) + moved(of_g, g[j], g0[j], 0));
          if (CHUNKS == 0 && at + j < dim) {
            centre[at + j] = c[j];
            sum[at + j] = 0;
          }
        }
        if constexpr (CHUNKS > 0) shared_centre[i] = {c[0], c[1], c[2], c[3]};
      });
      __syncthreads();
    }
    // A row's part on its own, then over rows: short sums round less.
    const int row = first + mine;
    float row_both = 0, row_apart = 0;
    const auto add = [&](int i, int at, int, const Four& f, const Four& f0, const Four& g,
                         const Four& g0) {
      float4 c = {0, 0, 0, 0}, s = {0, 0, 0, 0};
      if constexpr (CHUNKS > 0) {
        c = shared_centre[i];
        s = shared_sum[i];
      } else {
        c = four_of(centre, at, dim);
        s = four_of(sum, at, dim);
      }
      const Four cs = {c.x, c.y, c.z, c.w};
      Four ss = {s.x, s.y, s.z, s.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float du = moved(of_f, f[j], f0[j], cs[j]), dv = moved(of_g, g[j], g0[j], cs[j]);
        const float a = du + dv, b = du - dv;
        row_both = fmaf(a, a, row_both);
        row_apart = fmaf(b, b, row_apart);
        ss[j] += a;
        if (CHUNKS == 0 && at + j < dim) sum[at + j] = ss[j];
      }
      if constexpr (CHUNKS > 0) shared_sum[i] = {ss[0], ss[1], ss[2], ss[3]};
    };
    if (row >= end) continue;  // the last row of the block
    t.last(row + teams, row + teams < end, add);
    both += row_both;
    apart += row_apart;
  }

  if constexpr (CHUNKS > 0) {
    __syncthreads();
    const auto* shared = reinterpret_cast<const float*>(memory);
    for (int i = threadIdx.x; i < 4 * line; i += THREADS) {
      float total = 0;
      for (int k = 1; k <= teams; ++k) total += shared[4 * k * line + i];
      const int column = t.column_of(i);
      if (column < dim) {
        centre[column] = shared[i];
        sum[column] = total;
      }
    }
  }
  for (int by = 16; by > 0; by /= 2) {
    both += __shfl_xor_sync(ALL, both, by);
    apart += __shfl_xor_sync(ALL, apart, by);
  }
  if (t.lane == 0) {
    losses[t.warp][0] = both;
    losses[t.warp][1] = apart;
  }
  __syncthreads();
  if (threadIdx.x < 2) {
    double x[2] = {};
    for (int w = 0; w < WARPS; ++w) {
      x[0] += losses[w][0];
      x[1] += losses[w][1];
    }
    scalars[2 * blockIdx.x + threadIdx.x] = threadIdx.x == 0 ? 0.5 * (x[0] + x[1]) : x[1];
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *counter = 0;
}

}  // namespace dive

INSTANTIATE(dive::forward_rows<float, 0>);
INSTANTIATE(dive::forward_rows<float, 1>);
INSTANTIATE(dive::forward_rows<float, 2>);
INSTANTIATE(dive::forward_rows<float, 3>);
INSTANTIATE(dive::forward_rows<float, 4>);
INSTANTIATE(dive::forward_rows<Half, 0>);
INSTANTIATE(dive::forward_rows<Half, 1>);
INSTANTIATE(dive::forward_rows<Half, 2>);
INSTANTIATE(dive::forward_rows<Half, 3>);
INSTANTIATE(dive::forward_rows<Half, 4>);
INSTANTIATE(dive::forward_rows<BFloat16, 0>);
INSTANTIATE(dive::forward_rows<BFloat16, 1>);
INSTANTIATE(dive::forward_rows<BFloat16, 2>);
INSTANTIATE(dive::forward_rows<BFloat16, 3>);
INSTANTIATE(dive::forward_rows<BFloat16, 4>);
