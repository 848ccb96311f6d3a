// dive_loss, backward: the gradients to f and g, one launch.
//
// With n = n(f), a = 2·∂avl/B and b = 2·∂pvl/B, for f (g has u and v exchanged):
//   ∂u = (a + b)·u − b·v − a·m,  ∂f = p·(∂u − n·<n, ∂u>)
//   <n, ∂u> = (a + b)·<n, u> − b·<n, v> − a·<n, m>
// Products of whole rows are all that these take: <n, v> = p·(p'·<f, g − g0> + q'·<f, g0>), and
// <n, u> = |u|²/2 where u is a difference of unit vectors. Then ∂f is a sum of f − f0, f0, g − g0,
// g0 and −a·m with factors of its row.
#include "dive_team.cuh"

namespace dive {

// What a row's numbers are summed with for one of its gradients: x − w·x0, x0, those of the other
// pair; times `outer`.
struct Factors {
  float own, own0, other, other0, outer;
};

// along: <n, ∂u>.
__device__ __forceinline__ Factors factors_of(const Difference& of, const Difference& other,
                                              float a, float b, double along) {
  const double both = double(a) + b;
  return {float(of.p * (both - along)), float(both * of.q - along * of.p * of.w),
          float(-b * other.p), float(-b * other.q), float(of.p)};
}

// s: add_products() of x and x0; of the other pair y, y0: <x, y − y0> and <x, y0>; −a·<x, m>.
__device__ __forceinline__ double along_of(const float* s, double apart, double before, double mean,
                                           const Difference& of, const Difference& other, float a,
                                           float b) {
  // <n, u> of unit vectors; of unlike rows 1 − <n(x), n(x0)>, with <x, x0> = <x − x0, x0> + |x0|².
  const double same = of.w == 1
                          ? 0.5 * (of.p * (of.p * s[1] + 2 * of.q * s[2]) + of.q * of.q * s[0])
                          : 1 + of.p * of.q * (double(s[2]) + s[0]);
  const double from = apart + (1 - other.w) * before;  // <x, y − w·y0>
  const double cross = of.p * (other.p * from + other.q * before);
  return (double(a) + b) * same - b * cross + of.p * mean;
}

// Four numbers as stored: the words of a chunk that are theirs.
template <typename T>
__device__ __forceinline__ void pack(const Four& x, int part, u32 (&words)[4]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int j = 0; j < 4; ++j) words[j] = __float_as_uint(x[j]);
  } else {
    words[2 * part] = pair_from_floats<T>(x[0], x[1]);
    words[2 * part + 1] = pair_from_floats<T>(x[2], x[3]);
  }
}

// Rows [block·rows_each, …) of the gradients, [rows, dim] contiguous. Dynamic shared memory where
// CHUNKS > 0: a row of float for −a·m, in whole chunks.
template <typename T, int CHUNKS>
__global__ void __launch_bounds__(THREADS, 2)
    backward_rows(const T* f, const T* f0, const T* g, const T* g0, i64 f_stride, i64 f0_stride,
                  i64 g_stride, i64 g0_stride, bool aligned, const float* mean,
                  const float* grad_avl, const float* grad_pvl, T* grad_f, T* grad_g, int rows,
                  int dim, int rows_each, int team, bool normalize) {
  SHARED(exchange, float[2][WARPS][PRODUCTS]);
  SHARED(weights, float[2]);  // a and b, read anew for each row: registers are scarce
  DYNAMIC_SHARED(memory);
  constexpr int L = LANES<T>;
  const Inputs<T> inputs = {{f, f0, g, g0}, {f_stride, f0_stride, g_stride, g0_stride}, aligned};
  Team<T, CHUNKS> t(inputs, dim, team, exchange);
  const int teams = WARPS / team, mine = t.warp / team;
  const int begin = blockIdx.x * rows_each, end = min(begin + rows_each, rows);

  t.point(min(begin + mine, end - 1));
  t.load();
  if (threadIdx.x == 0) {
    weights[0] = 2 * *grad_avl / rows;
    weights[1] = 2 * *grad_pvl / rows;
  }
  __syncthreads();
  if constexpr (CHUNKS > 0) {
    auto* const shared = reinterpret_cast<float*>(memory);
    for (int i = threadIdx.x; i < 4 * t.line(); i += THREADS)
      shared[i] = t.column_of(i) < dim ? -weights[0] * mean[t.column_of(i)] : 0;
    __syncthreads();
  }
  const auto pull = [&](int i, int at) -> float4 {  // −a·m
    if constexpr (CHUNKS > 0) return reinterpret_cast<const float4*>(memory)[i];
    const float4 m = four_of(mean, at, dim);
    const float a = weights[0];
    return {-a * m.x, -a * m.y, -a * m.z, -a * m.w};
  };

  for (int first = begin; first < end; first += teams) {  // the same for all threads
    const float a = static_cast<const volatile float*>(weights)[0];
    const float b = static_cast<const volatile float*>(weights)[1];
    Difference of_f, of_g;
    double along[2] = {};
    if (normalize) {
      float s[PRODUCTS] = {};
      t.each([&](int i, int at, int, const Four& f, const Four& f0, const Four& g, const Four& g0) {
        const float4 m4 = pull(i, at);
        const Four m = {m4.x, m4.y, m4.z, m4.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float df = add_products(s, f[j], f0[j]), dg = add_products(s + 3, g[j], g0[j]);
          s[6] = fmaf(f[j], dg, s[6]);
          s[7] = fmaf(f[j], g0[j], s[7]);
          s[8] = fmaf(g[j], df, s[8]);
          s[9] = fmaf(g[j], f0[j], s[9]);
          s[10] = fmaf(f[j], m[j], s[10]);
          s[11] = fmaf(g[j], m[j], s[11]);
        }
      });
      t.combine(s);
      const bool usual = difference_of(s, of_f) & difference_of(s + 3, of_g);
      if (!t.any(!usual)) {
        along[0] = along_of(s, s[6], s[7], s[10], of_f, of_g, a, b);
        along[1] = along_of(s + 3, s[8], s[9], s[11], of_g, of_f, a, b);
      } else {
        t.differences(min(first + mine, end - 1), of_f, of_g);
        const float p = float(of_f.p), p_g = float(of_g.p);
        float sums[2] = {};
        t.read(
            [&](int i, int at, int, const Four& f, const Four& f0, const Four& g, const Four& g0) {
              const float4 m4 = pull(i, at);
              const Four m = {m4.x, m4.y, m4.z, m4.w};
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                const float u = moved(of_f, f[j], f0[j], 0), v = moved(of_g, g[j], g0[j], 0);
                sums[0] += f[j] * p * (a * u + b * (u - v) + m[j]);
                sums[1] += g[j] * p_g * (a * v - b * (u - v) + m[j]);
              }
            });
        t.combine(sums);
        along[0] = of_f.clamped ? 0 : sums[0];
        along[1] = of_g.clamped ? 0 : sums[1];
      }
    }
    const Factors to_f = factors_of(of_f, of_g, a, b, along[0]);
    const Factors to_g = factors_of(of_g, of_f, a, b, along[1]);
    const int row = first + mine;
    if (row >= end) continue;  // the last of the block
    const i64 out = i64(row) * dim;
    u32 chunk_f[4], chunk_g[4];
    t.last(
        row + teams, row + teams < end,
        [&](int i, int at, int part, const Four& f, const Four& f0, const Four& g, const Four& g0) {
          const float4 m4 = pull(i, at);
          const Four m = {m4.x, m4.y, m4.z, m4.w};
          Four x, y;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float df = fmaf(-of_f.w, f0[j], f[j]), dg = fmaf(-of_g.w, g0[j], g[j]);
            float sum_f = fmaf(to_f.other, dg, fmaf(to_f.other0, g0[j], m[j]));
            float sum_g = fmaf(to_g.other, df, fmaf(to_g.other0, f0[j], m[j]));
            sum_f = fmaf(to_f.own, df, fmaf(to_f.own0, f0[j], sum_f));
            sum_g = fmaf(to_g.own, dg, fmaf(to_g.own0, g0[j], sum_g));
            x[j] = to_f.outer * sum_f;
            y[j] = to_g.outer * sum_g;
          }
          if (aligned) {
            pack<T>(x, part, chunk_f);
            pack<T>(y, part, chunk_g);
            if (part == L / 4 - 1 && at < dim) {
              *reinterpret_cast<uint4*>(grad_f + out + at - 4 * part) = {chunk_f[0], chunk_f[1],
                                                                         chunk_f[2], chunk_f[3]};
              *reinterpret_cast<uint4*>(grad_g + out + at - 4 * part) = {chunk_g[0], chunk_g[1],
                                                                         chunk_g[2], chunk_g[3]};
            }
            return;
          }
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (at + j < dim) {
              grad_f[out + at + j] = from_float<T>(x[j]);
              grad_g[out + at + j] = from_float<T>(y[j]);
            }
          }
        });
  }
}

}  // namespace dive

INSTANTIATE(dive::backward_rows<float, 0>);
INSTANTIATE(dive::backward_rows<float, 1>);
INSTANTIATE(dive::backward_rows<float, 2>);
INSTANTIATE(dive::backward_rows<float, 3>);
INSTANTIATE(dive::backward_rows<float, 4>);
INSTANTIATE(dive::backward_rows<Half, 0>);
INSTANTIATE(dive::backward_rows<Half, 1>);
INSTANTIATE(dive::backward_rows<Half, 2>);
INSTANTIATE(dive::backward_rows<Half, 3>);
INSTANTIATE(dive::backward_rows<Half, 4>);
INSTANTIATE(dive::backward_rows<BFloat16, 0>);
INSTANTIATE(dive::backward_rows<BFloat16, 1>);
INSTANTIATE(dive::backward_rows<BFloat16, 2>);
INSTANTIATE(dive::backward_rows<BFloat16, 3>);
INSTANTIATE(dive::backward_rows<BFloat16, 4>);
