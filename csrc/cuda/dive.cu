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

// The j-th number of a chunk.
template <typename T>
__device__ __forceinline__ float element(const uint4& raw, int j) {
  const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
  if constexpr (sizeof(T) == 4) {
    return __uint_as_float(words[j]);
  } else {
    return to_float(T{static_cast<u16>(words[j / 2] >> 16 * (j % 2))});
  }
}

template <typename T>
__device__ __forceinline__ u32 bits(T x) {
  if constexpr (sizeof(T) == 4) {
    return __float_as_uint(x);
  } else {
    return x.bits;
  }
}

using Four = float[4];

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

  __device__ __forceinline__ uint4 read_aligned(int input, int at) const {
    if (at >= dim) return {0, 0, 0, 0};
    return __ldg(reinterpret_cast<const uint4*>(from[input] + at));
  }

  // Number by number, shifted in from above: little code, since every chunk has a copy of it.
  __device__ __forceinline__ uint4 read_any(int input, int at) const {
    uint4 raw = {0, 0, 0, 0};
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

  // All loads are under way before the first is used.
  __device__ __forceinline__ void load() {
    if constexpr (CHUNKS > 0) {
      if (aligned) {
#pragma unroll
        for (int i = 0; i < 4 * CHUNKS; ++i) {
          held[i / CHUNKS][i % CHUNKS] = read_aligned(i / CHUNKS, column(i % CHUNKS));
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4 * CHUNKS; ++i) {
          held[i / CHUNKS][i % CHUNKS] = read_any(i / CHUNKS, column(i % CHUNKS));
        }
      }
    }
  }

  __device__ __forceinline__ uint4 chunk(int input, int c) {
    if constexpr (CHUNKS > 0) {
      forget(held[input][c]);  // a pass unpacks anew: unpacked, the row would not fit the registers
      return held[input][c];
    } else {
      return aligned ? read_aligned(input, column(c)) : read_any(input, column(c));
    }
  }

  // Calls with (i, column, part, f, f0, g, g0) for the lane's numbers by fours, which are the
  // part-th of their chunk; i: where the four are in
  // a row of float4 in shared memory, so that a warp's accesses meet no bank twice.
  template <typename F>
  __device__ __forceinline__ void each(F&& call) {
#pragma unroll CHUNKS> 0 ? CHUNKS : 1
    for (int c = 0; c < (CHUNKS > 0 ? CHUNKS : chunks); ++c) {
      const uint4 raw[4] = {chunk(0, c), chunk(1, c), chunk(2, c), chunk(3, c)};
#pragma unroll
      for (int part = 0; part < L / 4; ++part) {
        float x[4][4];
#pragma unroll
        for (int k = 0; k < 16; ++k) x[k / 4][k % 4] = element<T>(raw[k / 4], 4 * part + k % 4);
        call(((c * team + warp % team) * (L / 4) + part) * 32 + lane, column(c) + 4 * part, part,
             x[0], x[1], x[2], x[3]);
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
#pragma unroll 1
      for (int k = 1; k < team; ++k) {
        x[i] = MAX ? fmaxf(x[i], shared[first + k][i]) : x[i] + shared[first + k][i];
      }
    }
  }

  template <bool SCALED>
  __device__ __forceinline__ void square(Squares& of_f, Squares& of_g, const float (&down)[4]) {
    float s[6] = {};
    each([&](int, int, int, const Four& f, const Four& f0, const Four& g, const Four& g0) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float x[4] = {f[j], f0[j], g[j], g0[j]};
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
      }
    });
    combine(s);
    of_f = {s[0], s[1], s[2]};
    of_g = {s[3], s[4], s[5]};
  }

  // Of f and of g. All threads of the block call it.
  __device__ __forceinline__ void differences(bool normalize, Difference& of_f, Difference& of_g) {
    if (!normalize) return;
    Squares f, g;
    const float ones[4] = {1, 1, 1, 1};
    square<false>(f, g, ones);
    bool plain = in_range(f) && in_range(g);
    if (team > 1) plain = __syncthreads_and(plain);  // a team's barriers are the block's
    if (plain) {
      of_f = difference(f, 1, 1);
      of_g = difference(g, 1, 1);
      return;
    }
    float largest[4] = {0, 0, 0, 0};
    each([&](int, int, int, const Four& f, const Four& f0, const Four& g, const Four& g0) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        largest[0] = fmaxf(largest[0], fabsf(f[j]));
        largest[1] = fmaxf(largest[1], fabsf(f0[j]));
        largest[2] = fmaxf(largest[2], fabsf(g[j]));
        largest[3] = fmaxf(largest[3], fabsf(g0[j]));
      }
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

// Four numbers as stored: the words of a chunk that are theirs.
template <typename T>
__device__ __forceinline__ void pack(const T (&x)[4], int part, u32 (&words)[4]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int j = 0; j < 4; ++j) words[j] = bits(x[j]);
  } else {
    words[2 * part] = bits(x[0]) | bits(x[1]) << 16;
    words[2 * part + 1] = bits(x[2]) | bits(x[3]) << 16;
  }
}

// Four numbers of a row, zeros beyond its end.
__device__ __forceinline__ float4 four_of(const float* x, int at, int dim) {
  return {at < dim ? x[at] : 0, at + 1 < dim ? x[at + 1] : 0, at + 2 < dim ? x[at + 2] : 0,
          at + 3 < dim ? x[at + 3] : 0};
}

}  // namespace

// Rows [block·rows_each, …): centres, sums [blocks, dim]: c and Σ(u−c)+(v−c); scalars [blocks, 2]:
// Σ|u−c|²+|v−c|² and Σ|u−v|². Dynamic shared memory where CHUNKS > 0: a row of float for c, and one
// for the sums of each of the 8 / team teams, in whole chunks.
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
  Team<T, CHUNKS> t;
  set_up(t, dim, team, aligned, exchange);
  const int teams = kWarps / team, mine = t.warp / team;
  const int line = CHUNKS * team * 32 * L / 4;  // float4s of a row
  auto* const shared_centre = reinterpret_cast<float4*>(memory);
  float4* const shared_sum = shared_centre + (1 + mine) * line;
  const int begin = blockIdx.x * rows_each, end = min(begin + rows_each, rows);
  float *const centre = centres + i64(blockIdx.x) * dim, *const sum = sums + i64(blockIdx.x) * dim;

  float about = 0, apart = 0;
  for (int first = begin; first < end; first += teams) {  // the same for all threads
    const int row = first + mine;
    const bool valid = row < end;
    const i64 safe = valid ? row : begin;
    t.from[0] = f + safe * f_stride;
    t.from[1] = f0 + safe * f0_stride;
    t.from[2] = g + safe * g_stride;
    t.from[3] = g0 + safe * g0_stride;
    t.load();
    Difference of_f, of_g;
    t.differences(normalize, of_f, of_g);
    if (first == begin) {
      t.each([&](int i, int at, int, const Four& f, const Four& f0, const Four& g, const Four& g0) {
        if constexpr (CHUNKS > 0) shared_sum[i] = {0, 0, 0, 0};
        if (mine != 0) return;
        Four c;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          c[j] = 0.5f * (moved(of_f, f[j], f0[j], 0) + moved(of_g, g[j], g0[j], 0));
          if (at + j < dim) centre[at + j] = c[j];
          if (CHUNKS == 0 && at + j < dim) sum[at + j] = 0;
        }
        if constexpr (CHUNKS > 0) shared_centre[i] = {c[0], c[1], c[2], c[3]};
      });
      __syncthreads();
    }
    if (!valid) continue;
    // A row's part on its own, then over rows: short sums round less.
    float row_about = 0, row_apart = 0;
    t.each([&](int i, int at, int, const Four& f, const Four& f0, const Four& g, const Four& g0) {
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
        row_about += du * du;
        row_about += dv * dv;
        row_apart += (du - dv) * (du - dv);
        ss[j] += du + dv;
        if (CHUNKS == 0 && at + j < dim) sum[at + j] = ss[j];
      }
      if constexpr (CHUNKS > 0) shared_sum[i] = {ss[0], ss[1], ss[2], ss[3]};
    });
    about += row_about;
    apart += row_apart;
  }

  if constexpr (CHUNKS > 0) {
    __syncthreads();
    const auto* shared = reinterpret_cast<const float*>(memory);
    for (int i = threadIdx.x; i < 4 * line; i += kThreads) {
      const int column = (i / (32 * L) * 32 + i / 4 % 32) * L + i / 128 % (L / 4) * 4 + i % 4;
      float total = 0;
      for (int k = 1; k <= teams; ++k) total += shared[4 * k * line + i];
      if (column < dim) sum[column] = total;
    }
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
  t.load();
  Difference of_f, of_g;
  t.differences(normalize, of_f, of_g);

  const float per_avl = 2 * *grad_avl / rows, per_pvl = 2 * *grad_pvl / rows;
  // ∂u and ∂v, over |f| and |g|.
  const auto gradients = [&](int at, const Four& f, const Four& f0, const Four& g, const Four& g0,
                             Four& du, Four& dv) {
    const float4 m4 =
        at + 3 < dim ? __ldg(reinterpret_cast<const float4*>(mean + at)) : four_of(mean, at, dim);
    const Four m = {m4.x, m4.y, m4.z, m4.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float u = moved(of_f, f[j], f0[j], 0), v = moved(of_g, g[j], g0[j], 0);
      const float apart = per_pvl * (u - v);
      du[j] = (per_avl * (u - m[j]) + apart) * of_f.p;
      dv[j] = (per_avl * (v - m[j]) - apart) * of_g.p;
    }
  };
  float along[2] = {};
  if (normalize) {
    t.each([&](int, int at, int, const Four& f, const Four& f0, const Four& g, const Four& g0) {
      Four du, dv;
      gradients(at, f, f0, g, g0, du, dv);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        along[0] += f[j] * du[j];
        along[1] += g[j] * dv[j];
      }
    });
    t.combine(along);
    along[0] = of_f.clamped ? 0 : along[0] * of_f.p;
    along[1] = of_g.clamped ? 0 : along[1] * of_g.p;
  }
  if (!valid) return;
  u32 chunk_f[4], chunk_g[4];
  T *const to_f = grad_f + i64(row) * dim, *const to_g = grad_g + i64(row) * dim;
  t.each([&](int, int at, int part, const Four& f, const Four& f0, const Four& g, const Four& g0) {
    Four du, dv;
    gradients(at, f, f0, g, g0, du, dv);
    T x[4], y[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[j] = from_float<T>(du[j] - f[j] * of_f.p * along[0]);
      y[j] = from_float<T>(dv[j] - g[j] * of_g.p * along[1]);
    }
    if (aligned) {
      pack(x, part, chunk_f);
      pack(y, part, chunk_g);
      if (part == L / 4 - 1 && at < dim) {
        *reinterpret_cast<uint4*>(to_f + at - 4 * part) = {chunk_f[0], chunk_f[1], chunk_f[2],
                                                           chunk_f[3]};
        *reinterpret_cast<uint4*>(to_g + at - 4 * part) = {chunk_g[0], chunk_g[1], chunk_g[2],
                                                           chunk_g[3]};
      }
      return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (at + j < dim) {
        to_f[at + j] = x[j];
        to_g[at + j] = y[j];
      }
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
