// A row of dive_loss's four inputs in the registers of some warps.
//
// A team of 1, 2, 4 or 8 warps holds a row of the four inputs as stored (at most 64 registers a
// thread) and reads it from memory once; a block has 8 warps. Lane l of warp w in its team has the
// CHUNKS chunks of 16 bytes that start at ((c·team + w)·32 + l)·16 bytes. CHUNKS = 0 is for rows
// that are too wide: each pass reads the row again, from the caches.
//
// Two passes over the registers: products of whole rows, from which all that a row's numbers are
// multiplied by follows, then the numbers. Each chunk of the team's next row is asked for as soon
// as the second pass is through with this one's.
#pragma once

#include "dive.cuh"

namespace dive {

inline constexpr int WARPS = 8, THREADS = 32 * WARPS;
inline constexpr u32 ALL = 0xffffffffu;
inline constexpr int PRODUCTS = 12;  // of a row, backward: the most that combine() is asked for

template <typename T>
constexpr int LANES = 16 / sizeof(T);  // numbers of a chunk

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

// Four numbers of a row, zeros beyond its end.
__device__ __forceinline__ float4 four_of(const float* x, int at, int dim) {
  return {at < dim ? x[at] : 0, at + 1 < dim ? x[at + 1] : 0, at + 2 < dim ? x[at + 2] : 0,
          at + 3 < dim ? x[at + 3] : 0};
}

// The inputs f, f0, g, g0: rows, and how far apart they are.
template <typename T>
struct Inputs {
  const T* first[4];
  i64 stride[4];
  bool aligned;  // rows start at, and consist of, whole chunks
};

// The team's rows of four inputs, and what they share.
template <typename T, int CHUNKS>
struct Team {
  static constexpr int HELD = CHUNKS > 0 ? CHUNKS : 1;
  static constexpr int L = LANES<T>;

  const Inputs<T>& inputs;
  const int dim, team, warp, lane, chunks;
  float (*const exchange)[WARPS][PRODUCTS];  // two buffers that take turns
  const T* from[4] = {};                     // this row
  int turn = 0;
  uint4 held[4][HELD];

  __device__ __forceinline__ Team(const Inputs<T>& inputs, int dim, int team,
                                  float (*exchange)[WARPS][PRODUCTS])
      : inputs(inputs),
        dim(dim),
        team(team),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32),
        chunks((dim + 32 * team * L - 1) / (32 * team * L)),
        exchange(exchange) {}

  __device__ __forceinline__ int column(int chunk) const {
    return ((chunk * team + warp % team) * 32 + lane) * L;
  }

  // A row of float32 in shared memory has the fours of `each` by their i, so that a warp's accesses
  // meet no bank twice: the column of its at-th number.
  static __device__ __forceinline__ int column_of(int at) {
    return (at / (32 * L) * 32 + at / 4 % 32) * L + at / 128 % (L / 4) * 4 + at % 4;
  }

  // How many float4s that row has.
  __device__ __forceinline__ int line() const { return CHUNKS * team * 32 * L / 4; }

  __device__ __forceinline__ uint4 read_aligned(int input, int at) const {
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

  // The row that the next reads are of.
  __device__ __forceinline__ void point(int row) {
#pragma unroll
    for (int k = 0; k < 4; ++k) from[k] = inputs.first[k] + row * inputs.stride[k];
  }

  // Asks for a chunk of the row; all but the last one are whole.
  __device__ __forceinline__ void ask(int chunk) {
    const int at = column(chunk);
    if (chunk < CHUNKS - 1 || at < dim) {
#pragma unroll
      for (int k = 0; k < 4; ++k) held[k][chunk] = read_aligned(k, at);
    }
  }

  __device__ __forceinline__ void load_any() {
#pragma unroll
    for (int i = 0; i < 4 * CHUNKS; ++i) {
      held[i / HELD][i % HELD] = read_any(i / HELD, column(i % HELD));
    }
  }

  // The first row.
  __device__ __forceinline__ void load() {
    if constexpr (CHUNKS > 0) {
      if (inputs.aligned) {
#pragma unroll
        for (int k = 0; k < 4; ++k) held[k][CHUNKS - 1] = {0, 0, 0, 0};
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) ask(c);
      } else {
        load_any();
      }
    }
  }

  // Calls with (i, column, part, f, f0, g, g0) for a chunk's numbers by fours, which are the
  // part-th of their chunk.
  template <typename F>
  __device__ __forceinline__ void fours(int c, const uint4 (&raw)[4], F&& call) {
#pragma unroll
    for (int part = 0; part < L / 4; ++part) {
      float x[4][4];
#pragma unroll
      for (int k = 0; k < 16; ++k) x[k / 4][k % 4] = element<T>(raw[k / 4], 4 * part + k % 4);
      call(((c * team + warp % team) * (L / 4) + part) * 32 + lane, column(c) + 4 * part, part,
           x[0], x[1], x[2], x[3]);
    }
  }

  // All of the row, read now.
  template <typename F>
  __device__ __forceinline__ void read(F&& call) {
#pragma unroll 1
    for (int c = 0; c < chunks; ++c) {
      const int at = column(c);
      uint4 raw[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        raw[k] = !inputs.aligned ? read_any(k, at)
                 : at < dim      ? read_aligned(k, at)
                                 : uint4{0, 0, 0, 0};
      }
      fours(c, raw, call);
    }
  }

  // All of the row as it is held.
  template <typename F>
  __device__ __forceinline__ void each(F&& call) {
    if constexpr (CHUNKS == 0) {
      read(call);
    } else {
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
        // A pass unpacks anew: unpacked, the row would not fit the registers.
#pragma unroll
        for (int k = 0; k < 4; ++k) forget(held[k][c]);
        fours(c, {held[0][c], held[1][c], held[2][c], held[3][c]}, call);
      }
    }
  }

  // The same for the last time; the next row's chunks are asked for in their place, if there is
  // one.
  template <typename F>
  __device__ __forceinline__ void last(int next, bool more, F&& call) {
    if constexpr (CHUNKS == 0) {
      read(call);
      point(next);
    } else {
      const bool ahead = more && inputs.aligned;
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
        for (int k = 0; k < 4; ++k) forget(held[k][c]);
        fours(c, {held[0][c], held[1][c], held[2][c], held[3][c]}, call);
        if (c == 0) point(next);  // not before: registers are scarce
        if (ahead) ask(c);
      }
      if (more && !inputs.aligned) load_any();
    }
  }

  // Sums (or maxima) over the team, the same bits in each thread. All threads of the block call it.
  template <int N, bool MAX = false>
  __device__ __forceinline__ void combine(float (&x)[N]) {
    static_assert(N <= PRODUCTS);
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int by = 16; by > 0; by /= 2) {
        const float other = __shfl_xor_sync(ALL, x[i], by);
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

  // Whether one of those that share barriers says so: the team of one warp, or the block.
  __device__ __forceinline__ bool any(bool mine) const {
    return team > 1 ? __syncthreads_or(mine) : mine;
  }

  // Of f and of g of a row, of any length; `read` reads that row then. All threads of the block
  // call it.
  __device__ __forceinline__ void differences(int row, Difference& of_f, Difference& of_g) {
    point(row);  // again: kept for this, it would take registers from every row
    float largest[4] = {};
    read([&](int, int, int, const Four& f, const Four& f0, const Four& g, const Four& g0) {
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
    float s[6] = {};
    read([&](int, int, int, const Four& f, const Four& f0, const Four& g, const Four& g0) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float x[4] = {f[j], f0[j], g[j], g0[j]};
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const float a = x[2 * k] * down[2 * k], b = x[2 * k + 1] * down[2 * k + 1];
          const float c = x[2 * k + 1] * down[2 * k];
          s[3 * k] += a * a;
          s[3 * k + 1] += b * b;
          s[3 * k + 2] += (a - c) * (a + c);
        }
      }
    });
    combine(s);
    of_f = difference_of(s, largest[0], largest[1]);
    of_g = difference_of(s + 3, largest[2], largest[3]);
  }
};

}  // namespace dive
