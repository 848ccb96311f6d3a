// dive_loss (DiVE, arXiv 2511.09973): two launches forward, one backward.
//
//   u = n(f) − n(f0),  v = n(g) − n(g0),  m = α·m_prev + (1−α)·mean of all u and v
//   AVL = (1/B) Σ (|u − m|² + |v − m|²),  PVL = (1/B) Σ |u − v|²
//
// A team of 1, 2, 4 or 8 warps holds a row of the four inputs in registers as stored (at most 64 a
// thread) and reads it from memory once; a block has 8 warps. Lane l of warp w in its team has the
// CHUNKS chunks of 16 bytes that start at ((c·team + w)·32 + l)·16 bytes. CHUNKS = 0 is for rows
// that are too wide: each pass reads the row again, from the caches.
//
// Forward. m is known only at the end, so each block sums about a centre c, the mean of u and v in
// its first row; the second launch moves the sums to m in double:
// Σ|u − m|² = Σ|u − c|² − 2<Σ(u − c), m − c> + n|m − c|². Rows are cut by the shape alone and
// partial sums are added in index order; the last block of the second launch, found by an integer
// counter, adds the scalars. Same inputs, same bits.
//
// Numerics. float32 within a row and over a warp's rows, double beyond. u is f'·p + f0·q with
// f' = f − w·f0: rows of like length have w = 1, p = 1/|f|, q = 1/|f| − 1/|f0| from Σ(f − f0)(f +
// f0), which keeps the digits that two rounded unit vectors lose; others w = 0, q = −1/|f0|. Rows
// whose squares would leave float32's range are squared again, over a power of two.
#include "ptx.cuh"

namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr float kShortest = 1e-12f;  // rows shorter than this are divided by it, as torch does
// Squared lengths from which no formula below over- or underflows without scaling.
constexpr float kSmall = 1e-16f, kLarge = 1e16f;
constexpr u32 kAll = 0xffffffffu;

template <typename T>
constexpr int kLanes = 16 / sizeof(T);  // numbers of a chunk

__device__ __forceinline__ float element(const uint4& raw, int j, float) {
  const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
  return __uint_as_float(words[j]);
}

template <typename T>
__device__ __forceinline__ float element(const uint4& raw, int j, T) {
  const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
  return to_float(T{static_cast<u16>(words[j / 2] >> 16 * (j % 2))});
}

__device__ __forceinline__ u32 bits(float x) { return __float_as_uint(x); }
template <typename T>
__device__ __forceinline__ u32 bits(T x) {
  return x.bits;
}

// n(x) − n(x0) = (x − w·x0)·p + x0·q.
struct Difference {
  float w = 1, p = 1, q = 0;
  bool clamped = false;
};

// Σx², Σx0², Σ(x − x0)(x + x0) of two rows, over powers of two (their inverses: down, down0).
struct Squares {
  float x = 0, x0 = 0, apart = 0;
};

__device__ __forceinline__ bool in_range(const Squares& s) {
  return s.x >= kSmall && s.x <= kLarge && s.x0 >= kSmall && s.x0 <= kLarge;
}

// The largest power of two that is at most x; it and its inverse are normal numbers.
__device__ __forceinline__ float power_of_two(float x) {
  const float within = fminf(fmaxf(x, 1.17549435e-38f), 8.5070592e37f);
  return __uint_as_float(__float_as_uint(within) & 0x7f800000u);
}

// scale, scale0: the powers of two that the squares were taken over.
__device__ __forceinline__ Difference difference(const Squares& s, float scale, float scale0) {
  const float length = sqrtf(s.x), length0 = sqrtf(s.x0);
  float norm = scale * length, norm0 = scale0 * length0;
  const bool clamped = norm < kShortest, clamped0 = norm0 < kShortest;
  if (clamped) norm = kShortest;
  if (clamped0) norm0 = kShortest;
  Difference d;
  d.p = 1.0f / norm;
  d.clamped = clamped;
  if (!clamped && !clamped0 && norm <= 2 * norm0 && norm0 <= 2 * norm) {
    const float down = 1.0f / scale, ratio = norm0 * down;
    d.q = -s.apart / ((length + ratio) * length * ratio) * down;
  } else {
    d.w = 0;
    d.q = -1.0f / norm0;
  }
  return d;
}

// The team's rows of four inputs, and what they share.
template <typename T, int CHUNKS>
struct Team {
  static constexpr int kHeld = CHUNKS > 0 ? CHUNKS : 1;
  static constexpr int L = kLanes<T>;

  const T* from[4];  // f, f0, g, g0 at this row
  int dim, team, warp, lane, chunks;
  bool aligned;                  // rows start at, and consist of, whole chunks
  float (*exchange)[kWarps][8];  // two buffers that take turns
  int turn = 0;
  uint4 held[4][kHeld];

  __device__ __forceinline__ int column(int chunk) const {
    return ((chunk * team + warp % team) * 32 + lane) * L;
  }

  __device__ __forceinline__ uint4 read(int input, int at) const {
    uint4 raw = {0, 0, 0, 0};
    if (aligned) {
      if (at < dim) raw = __ldg(reinterpret_cast<const uint4*>(from[input] + at));
      return raw;
    }
    // Number by number, shifted in from above: little code, since every chunk has a copy of it.
#pragma unroll 1
    for (int j = 0; j < L; ++j) {
      const u32 next = at + j < dim ? bits(from[input][at + j]) : 0;
      if constexpr (sizeof(T) == 4) {
        raw = {raw.y, raw.z, raw.w, next};
      } else {
        raw = {raw.x >> 16 | raw.y << 16, raw.y >> 16 | raw.z << 16, raw.z >> 16 | raw.w << 16,
               raw.w >> 16 | next << 16};
      }
    }
    return raw;
  }

  __device__ __forceinline__ void load(bool valid) {
    if constexpr (CHUNKS > 0) {
#pragma unroll
      for (int input = 0; input < 4; ++input) {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
          held[input][c] = valid ? read(input, column(c)) : uint4{0, 0, 0, 0};
        }
      }
    }
  }

  __device__ __forceinline__ uint4 chunk(int input, int c) {
    if constexpr (CHUNKS > 0) {
      forget(held[input][c]);  // a pass unpacks anew: unpacked, the row would not fit the registers
      return held[input][c];
    } else {
      return read(input, column(c));
    }
  }

  // Calls with (chunk, its column, its place in the chunk, f, f0, g, g0) for the lane's numbers.
  template <typename F>
  __device__ __forceinline__ void each(F&& call) {
#pragma unroll CHUNKS> 0 ? CHUNKS : 1
    for (int c = 0; c < (CHUNKS > 0 ? CHUNKS : chunks); ++c) {
      const uint4 f = chunk(0, c), f0 = chunk(1, c), g = chunk(2, c), g0 = chunk(3, c);
      const int at = column(c);
#pragma unroll
      for (int j = 0; j < L; ++j) {
        call(c, at, j, element(f, j, T{}), element(f0, j, T{}), element(g, j, T{}),
             element(g0, j, T{}));
      }
    }
  }

  // Sums (or maxima) over the team, the same bits in each thread. All threads of the block call it.
  template <int N, bool MAX = false>
  __device__ __forceinline__ void combine(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int by = 16; by > 0; by /= 2) {
        const float other = __shfl_xor_sync(kAll, x[i], by);
        x[i] = MAX ? fmaxf(x[i], other) : x[i] + other;
      }
    }
    if (team == 1) return;
    auto& shared = exchange[turn++ & 1];
    if (lane == 0) {
#pragma unroll
      for (int i = 0; i < N; ++i) shared[warp][i] = x[i];
    }
    __syncthreads();
    const int first = warp / team * team;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      x[i] = shared[first][i];
      for (int k = 1; k < team; ++k) {
        x[i] = MAX ? fmaxf(x[i], shared[first + k][i]) : x[i] + shared[first + k][i];
      }
    }
  }

  template <bool SCALED>
  __device__ __forceinline__ void square(Squares& of_f, Squares& of_g, const float (&down)[4]) {
    float s[6] = {};
    each([&](int, int, int, float f, float f0, float g, float g0) {
      const float x[4] = {f, f0, g, g0};
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        float a = x[2 * k], b = x[2 * k + 1], c = b;
        if (SCALED) {
          c = b * down[2 * k];
          a *= down[2 * k];
          b *= down[2 * k + 1];
        }
        s[3 * k] += a * a;
        s[3 * k + 1] += b * b;
        s[3 * k + 2] += (a - c) * (a + c);
      }
    });
    combine(s);
    of_f = {s[0], s[1], s[2]};
    of_g = {s[3], s[4], s[5]};
  }

  // Of f and of g. All threads of the block call it.
  __device__ __forceinline__ void differences(bool normalize, bool valid, Difference& of_f,
                                              Difference& of_g) {
    if (!normalize) return;
    Squares f, g;
    const float ones[4] = {1, 1, 1, 1};
    square<false>(f, g, ones);
    bool plain = !valid || (in_range(f) && in_range(g));
    if (team > 1) plain = __syncthreads_and(plain);  // a team's barriers are the block's
    if (plain) {
      of_f = difference(f, 1, 1);
      of_g = difference(g, 1, 1);
      return;
    }
    float largest[4] = {0, 0, 0, 0};
    each([&](int, int, int, float f, float f0, float g, float g0) {
      largest[0] = fmaxf(largest[0], fabsf(f));
      largest[1] = fmaxf(largest[1], fabsf(f0));
      largest[2] = fmaxf(largest[2], fabsf(g));
      largest[3] = fmaxf(largest[3], fabsf(g0));
    });
    combine<4, true>(largest);
    float down[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      largest[k] = power_of_two(largest[k]);
      down[k] = 1.0f / largest[k];
    }
    square<true>(f, g, down);
    of_f = difference(f, largest[0], largest[1]);
    of_g = difference(g, largest[2], largest[3]);
  }
};

template <typename T, int CHUNKS>
__device__ __forceinline__ void set_up(Team<T, CHUNKS>& t, int dim, int team, bool aligned,
                                       float (*exchange)[kWarps][8]) {
  t.dim = dim;
  t.team = team;
  t.aligned = aligned;
  t.exchange = exchange;
  t.warp = threadIdx.x / 32;
  t.lane = threadIdx.x % 32;
  t.chunks = (dim + 32 * team * kLanes<T> - 1) / (32 * team * kLanes<T>);
}

__device__ __forceinline__ float moved(const Difference& d, float x, float x0, float centre) {
  return fmaf(fmaf(-d.w, x0, x), d.p, fmaf(x0, d.q, -centre));
}

}  // namespace

// Rows [block·rows_each, …): centres, sums [blocks, dim]: c and Σ(u−c)+(v−c); scalars [blocks, 2]:
// Σ|u−c|²+|v−c|² and Σ|u−v|². Dynamic shared memory where CHUNKS > 0: 4 bytes · a row of whole
// chunks.
template <typename T, int CHUNKS>
__global__ void __launch_bounds__(kThreads, 2)
    forward_rows(const T* f, const T* f0, const T* g, const T* g0, i64 f_stride, i64 f0_stride,
                 i64 g_stride, i64 g0_stride, bool aligned, float* centres, float* sums,
                 double* scalars, u32* counter, int rows, int dim, int rows_each, int team,
                 bool normalize) {
  SHARED(exchange, float[2][kWarps][8]);
  SHARED(losses, float[kWarps][2]);
  DYNAMIC_SHARED(memory);
  constexpr int L = kLanes<T>;
  auto* line = reinterpret_cast<float*>(memory);  // the centre, then the block's sum
  Team<T, CHUNKS> t;
  set_up(t, dim, team, aligned, exchange);
  const int teams = kWarps / team, mine = t.warp / team;
  const int begin = blockIdx.x * rows_each, end = min(begin + rows_each, rows);
  float *const centre = centres + i64(blockIdx.x) * dim, *const sum = sums + i64(blockIdx.x) * dim;

  float total[Team<T, CHUNKS>::kHeld * L] = {};
  float about = 0, apart = 0;
  for (int first = begin; first < end; first += teams) {  // the same for all threads
    const int row = first + mine;
    const bool valid = row < end;
    const i64 safe = valid ? row : begin;
    t.from[0] = f + safe * f_stride;
    t.from[1] = f0 + safe * f0_stride;
    t.from[2] = g + safe * g_stride;
    t.from[3] = g0 + safe * g0_stride;
    t.load(valid);
    Difference of_f, of_g;
    t.differences(normalize, valid, of_f, of_g);
    if (first == begin) {
      if (mine == 0) {
        t.each([&](int, int at, int j, float f, float f0, float g, float g0) {
          const float c = 0.5f * (moved(of_f, f, f0, 0) + moved(of_g, g, g0, 0));
          if constexpr (CHUNKS > 0) line[at + j] = c;
          if (at + j < dim) centre[at + j] = c;
          if (CHUNKS == 0 && at + j < dim) sum[at + j] = 0;
        });
      }
      __syncthreads();
    }
    if (!valid) continue;
    // Two accumulators: a row's part first, then over rows.
    float row_about = 0, row_apart = 0;
    t.each([&](int c, int at, int j, float f, float f0, float g, float g0) {
      float about_here;
      if constexpr (CHUNKS > 0) {
        about_here = line[at + j];
      } else {
        about_here = at + j < dim ? centre[at + j] : 0.0f;
      }
      const float du = moved(of_f, f, f0, about_here), dv = moved(of_g, g, g0, about_here);
      row_about += du * du;
      row_about += dv * dv;
      row_apart += (du - dv) * (du - dv);
      if constexpr (CHUNKS > 0) {
        total[c * L + j] += du + dv;
      } else {
        if (at + j < dim) sum[at + j] += du + dv;
      }
    });
    about += row_about;
    apart += row_apart;
  }

  if constexpr (CHUNKS > 0) {
    for (int k = 0; k < teams; ++k) {
      __syncthreads();
      if (mine != k) continue;
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
        for (int j = 0; j < L; ++j) {
          float& to = line[t.column(c) + j];
          to = k == 0 ? total[c * L + j] : to + total[c * L + j];
        }
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < dim; i += kThreads) sum[i] = line[i];
  }
  for (int by = 16; by > 0; by /= 2) {
    about += __shfl_xor_sync(kAll, about, by);
    apart += __shfl_xor_sync(kAll, apart, by);
  }
  if (t.lane == 0) {
    losses[t.warp][0] = about;
    losses[t.warp][1] = apart;
  }
  __syncthreads();
  if (threadIdx.x < 2) {
    double x = 0;
    for (int w = 0; w < kWarps; ++w) x += losses[w][threadIdx.x];
    scalars[2 * blockIdx.x + threadIdx.x] = x;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *counter = 0;
}

// A strip of 32 columns: m (rest: 1 − momentum), and what moving the sums from the centres to m
// adds to AVL·B. 8 warps take the row blocks in turn. The last block adds all up.
__global__ void __launch_bounds__(kThreads)
    forward_merge(const float* centres, const float* sums, const double* scalars, double* parts,
                  u32* counter, const float* mean, i64 mean_stride, float* avl, float* pvl,
                  float* new_mean, int rows, int dim, int rows_each, int blocks, float momentum,
                  float rest) {
  SHARED(shared, double[kWarps][4][32]);
  SHARED(last, bool[1]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int column = blockIdx.x * 32 + lane;
  // Over row blocks of n rows, centre c and sum s: Σnc, Σs, Σnc², Σcs, each term exact or nearly
  // so.
  double sum[4] = {};
  if (column < dim) {
    for (int k = warp; k < blocks; k += kWarps) {
      const double n = min(rows_each, rows - k * rows_each);
      const double c = centres[i64(k) * dim + column], s = sums[i64(k) * dim + column];
      sum[0] += n * c;
      sum[1] += s;
      sum[2] += n * (c * c);
      sum[3] += c * s;
    }
  }
  for (int i = 0; i < 4; ++i) shared[warp][i][lane] = sum[i];
  __syncthreads();
  if (warp == 0) {
    double all[4] = {};
    for (int i = 0; i < 4; ++i) {
      for (int w = 0; w < kWarps; ++w) all[i] += shared[w][i][lane];
    }
    double added = 0;
    if (column < dim) {
      const double before = mean[column * mean_stride];
      const double here = (2 * all[0] + all[1]) / (2.0 * rows);
      const double m = momentum * before + rest * here;
      new_mean[column] = static_cast<float>(m);
      added = 2 * (rows * (m * m) - m * (2 * all[0] + all[1]) + all[2] + all[3]);
    }
    for (int by = 16; by > 0; by /= 2) added += __shfl_xor_sync(kAll, added, by);
    if (lane == 0) {
      parts[blockIdx.x] = added;
      __threadfence();
      last[0] = atomicAdd(counter, 1u) == gridDim.x - 1;
    }
  }
  __syncthreads();
  if (!last[0] || warp != 0) return;
  __threadfence();
  double about = 0, apart = 0;
  for (int i = lane; i < int(gridDim.x); i += 32) about += __ldcg(parts + i);
  for (int k = lane; k < blocks; k += 32) {
    about += scalars[2 * k];
    apart += scalars[2 * k + 1];
  }
  for (int by = 16; by > 0; by /= 2) {
    about += __shfl_xor_sync(kAll, about, by);
    apart += __shfl_xor_sync(kAll, apart, by);
  }
  if (lane == 0) {
    *avl = static_cast<float>(about / rows);
    *pvl = static_cast<float>(apart / rows);
  }
}

// Gradients of 8 / team rows: (2/B)·[∂avl·(u − m) ± ∂pvl·(u − v)], through n; [rows, dim]
// contiguous.
template <typename T, int CHUNKS>
__global__ void __launch_bounds__(kThreads, 2)
    backward_rows(const T* f, const T* f0, const T* g, const T* g0, i64 f_stride, i64 f0_stride,
                  i64 g_stride, i64 g0_stride, bool aligned, const float* mean,
                  const float* grad_avl, const float* grad_pvl, T* grad_f, T* grad_g, int rows,
                  int dim, int team, bool normalize) {
  SHARED(exchange, float[2][kWarps][8]);
  constexpr int L = kLanes<T>;
  Team<T, CHUNKS> t;
  set_up(t, dim, team, aligned, exchange);
  const int row = blockIdx.x * (kWarps / team) + t.warp / team;
  const bool valid = row < rows;
  const i64 safe = valid ? row : rows - 1;
  t.from[0] = f + safe * f_stride;
  t.from[1] = f0 + safe * f0_stride;
  t.from[2] = g + safe * g_stride;
  t.from[3] = g0 + safe * g0_stride;
  t.load(valid);
  Difference of_f, of_g;
  t.differences(normalize, valid, of_f, of_g);

  const float per_avl = 2 * *grad_avl / rows, per_pvl = 2 * *grad_pvl / rows;
  // ∂u and ∂v, over |f| and |g|.
  const auto gradients = [&](int at, float f, float f0, float g, float g0, float& du, float& dv) {
    const float m = at < dim ? __ldg(mean + at) : 0.0f;
    const float u = moved(of_f, f, f0, 0), v = moved(of_g, g, g0, 0);
    const float apart = per_pvl * (u - v);
    du = (per_avl * (u - m) + apart) * of_f.p;
    dv = (per_avl * (v - m) - apart) * of_g.p;
  };
  float along[2] = {};
  if (normalize) {
    t.each([&](int, int at, int j, float f, float f0, float g, float g0) {
      float du, dv;
      gradients(at + j, f, f0, g, g0, du, dv);
      along[0] += f * du;
      along[1] += g * dv;
    });
    t.combine(along);
    along[0] = of_f.clamped ? 0 : along[0] * of_f.p;
    along[1] = of_g.clamped ? 0 : along[1] * of_g.p;
  }
  if (!valid) return;
  T *const to_f = grad_f + i64(row) * dim, *const to_g = grad_g + i64(row) * dim;
  u32 words[2][4] = {};
  t.each([&](int, int at, int j, float f, float f0, float g, float g0) {
    float du, dv;
    gradients(at + j, f, f0, g, g0, du, dv);
    const T x = from_float<T>(du - f * of_f.p * along[0]);
    const T y = from_float<T>(dv - g * of_g.p * along[1]);
    if (!aligned) {
      if (at + j < dim) {
        to_f[at + j] = x;
        to_g[at + j] = y;
      }
      return;
    }
    const int word = j * sizeof(T) / 4, shift = 128 / L * j % 32;
    words[0][word] = shift == 0 ? bits(x) : words[0][word] | bits(x) << shift;
    words[1][word] = shift == 0 ? bits(y) : words[1][word] | bits(y) << shift;
    if (j == L - 1 && at < dim) {
      *reinterpret_cast<uint4*>(to_f + at) = {words[0][0], words[0][1], words[0][2], words[0][3]};
      *reinterpret_cast<uint4*>(to_g + at) = {words[1][0], words[1][1], words[1][2], words[1][3]};
    }
  });
}

INSTANTIATE(forward_merge);
INSTANTIATE(forward_rows<float, 0>);
INSTANTIATE(forward_rows<float, 1>);
INSTANTIATE(forward_rows<float, 2>);
INSTANTIATE(forward_rows<float, 3>);
INSTANTIATE(forward_rows<float, 4>);
INSTANTIATE(forward_rows<Half, 0>);
INSTANTIATE(forward_rows<Half, 1>);
INSTANTIATE(forward_rows<Half, 2>);
INSTANTIATE(forward_rows<Half, 3>);
INSTANTIATE(forward_rows<Half, 4>);
INSTANTIATE(forward_rows<BFloat16, 0>);
INSTANTIATE(forward_rows<BFloat16, 1>);
INSTANTIATE(forward_rows<BFloat16, 2>);
INSTANTIATE(forward_rows<BFloat16, 3>);
INSTANTIATE(forward_rows<BFloat16, 4>);
INSTANTIATE(backward_rows<float, 0>);
INSTANTIATE(backward_rows<float, 1>);
INSTANTIATE(backward_rows<float, 2>);
INSTANTIATE(backward_rows<float, 3>);
INSTANTIATE(backward_rows<float, 4>);
INSTANTIATE(backward_rows<Half, 0>);
INSTANTIATE(backward_rows<Half, 1>);
INSTANTIATE(backward_rows<Half, 2>);
INSTANTIATE(backward_rows<Half, 3>);
INSTANTIATE(backward_rows<Half, 4>);
INSTANTIATE(backward_rows<BFloat16, 0>);
INSTANTIATE(backward_rows<BFloat16, 1>);
INSTANTIATE(backward_rows<BFloat16, 2>);
INSTANTIATE(backward_rows<BFloat16, 3>);
INSTANTIATE(backward_rows<BFloat16, 4>);
