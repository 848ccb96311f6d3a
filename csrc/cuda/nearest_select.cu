// What `nearest` does with lists: radii, bounds, exact distances, the k-th. A block takes a query.
//
// Floats that are not negative sort as their bits do. The k-th smallest is found in four passes of
// eight bits: a histogram of the digit among the numbers that agree with what is found already. The
// numbers, as many as fit, lie in shared memory after the first look; others are made anew.
#include "nearest.cuh"

namespace nearest {

constexpr int THREADS = 256, WARPS = THREADS / 32, DIGITS = 256;
constexpr int RESIDENT = 4;  // blocks a multiprocessor: for eight, ptxas 13.0 spills on sm_100
constexpr u32 INF_BITS = 0x7f800000;

// The rank-th smallest (from 1) of key(0) … key(count − 1); INF_BITS if there are fewer. Called by
// all threads, returned to all.
template <typename Key>
__device__ __forceinline__ u32 smallest(int count, int rank, const Key& key) {
  SHARED(histogram, int[DIGITS]);
  SHARED(found, int[2]);
  if (rank > count) return INF_BITS;
  const int lane = threadIdx.x % 32;
  u32 prefix = 0, mask = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    histogram[threadIdx.x] = 0;
    __syncthreads();
    for (int start = 0; start < count; start += THREADS) {
      const int i = start + threadIdx.x;
      const u32 bits = i < count ? key(i) : 0;
      const bool agrees = i < count && (bits & mask) == prefix;
      const int digit = bits >> shift & (DIGITS - 1);
      // Distances of one list share their first digits: those of the warp count as one.
      const u32 all = __ballot_sync(~0u, agrees);
      if (all == 0) continue;
      const int leader = __ffs(all) - 1;
      const bool same = digit == __shfl_sync(~0u, digit, leader);
      const u32 together = __ballot_sync(~0u, agrees && same);
      if (lane == leader) atomicAdd(&histogram[digit], __popc(together));
      if (agrees && !same) atomicAdd(&histogram[digit], 1);
    }
    __syncthreads();
    if (threadIdx.x < 32) {  // each lane eight digits
      int sum = 0;
#pragma unroll
      for (int d = 0; d < DIGITS / 32; ++d) sum += histogram[lane * (DIGITS / 32) + d];
      int below = sum;
#pragma unroll
      for (int by = 1; by < 32; by *= 2) {
        const int other = __shfl_up_sync(~0u, below, by);
        if (lane >= by) below += other;
      }
      below -= sum;
      if (below < rank && rank <= below + sum) {
        int digit = lane * (DIGITS / 32);
        while (rank > below + histogram[digit]) below += histogram[digit++];
        found[0] = digit;
        found[1] = rank - below;
      }
    }
    __syncthreads();
    prefix |= u32(found[0]) << shift;
    mask |= u32(DIGITS - 1) << shift;
    rank = found[1];
  }
  __syncthreads();  // before the next call writes
  return prefix;
}

struct Bounds {
  float lower, upper;
};

// Of the distance between a query and a row whose halves have the product P (screening.py).
__device__ __forceinline__ Bounds bounds(float product, float q_scale, float q_residual,
                                         float q_norm, float scale, float residual, float norm,
                                         float slack) {
  const float norms = q_norm + norm, residuals = q_residual + residual;
  const float square = norms - 2 * q_scale * scale * product, error = slack * norms + TINY;
  const float low = square - error, high = square + error;
  Bounds both;
  both.lower =
      low > 0 ? fmaxf(__fsqrt_rn(low) * (1 - WIDER) - residuals * (1 + WIDER), 0.0f) : 0.0f;
  both.upper =
      norm < infinity() ? (__fsqrt_rn(fmaxf(high, 0.0f)) + residuals) * (1 + WIDER) : infinity();
  return both;
}

// products [queries, count], rows `stride` apart; q_numbers [6, padded], sample [6, line]; aims
// [3, padded]: r, 2t, floor. One block for each padded query. `cached`: keys in shared memory.
__global__ void __launch_bounds__(THREADS, RESIDENT)
    aim(const float* products, i64 stride, int queries, int count, const float* q_numbers,
        int padded, const float* sample, i64 line, int rank, float slack, float* aims, int cached) {
  DYNAMIC_SHARED(memory);
  u32* const cache = reinterpret_cast<u32*>(memory);
  const int q = blockIdx.x;
  const float q_norm = q_numbers[NORM * static_cast<i64>(padded) + q];
  const float q_residual = q_numbers[RESIDUAL * static_cast<i64>(padded) + q];
  float radius = infinity();
  if (q < queries && q_norm < infinity()) {
    const float q_scale = q_numbers[q];
    const float* const of = products + q * stride;
    const auto upper = [&](int i) {
      return __float_as_uint(bounds(of[i], q_scale, q_residual, q_norm, sample[SCALE * line + i],
                                    sample[RESIDUAL * line + i], sample[NORM * line + i], slack)
                                 .upper);
    };
    for (int i = threadIdx.x; i < min(count, cached); i += THREADS) cache[i] = upper(i);
    __syncthreads();
    radius = __uint_as_float(
        smallest(count, rank, [&](int i) { return i < cached ? cache[i] : upper(i); }));
  }
  if (threadIdx.x != 0) return;
  const bool finite = radius < infinity();
  const float t = radius * (1 + WIDER) + q_residual;
  aims[q] = finite ? radius : 0.0f;
  aims[padded + q] = finite ? 2 * t : 0.0f;
  aims[2 * static_cast<i64>(padded) + q] =
      finite ? q_norm * (1 - slack) - (1 + SHARE) * t * t * (1 + slack) - TINY : infinity();
}

// Keeps what needs an exact distance. rows and values [queries, capacity]; numbers [6, line].
// Shared memory: `cached` lower bounds, then as many upper ones.
__global__ void __launch_bounds__(THREADS, RESIDENT)
    resolve(const float* q_numbers, int padded, const float* numbers, i64 line, int k, float slack,
            int every, int* rows, const float* values, const int* counts, int* kept, int* ranks,
            int capacity, int cached) {
  DYNAMIC_SHARED(memory);
  SHARED(total, int[2]);
  u32 *const lowers = reinterpret_cast<u32*>(memory), *const uppers = lowers + cached;
  const int q = blockIdx.x, count = min(counts[q], capacity);
  const float q_scale = q_numbers[q],
              q_residual = q_numbers[RESIDUAL * static_cast<i64>(padded) + q],
              q_norm = q_numbers[NORM * static_cast<i64>(padded) + q];
  int* const row = rows + static_cast<i64>(q) * capacity;
  const float* const value = values + static_cast<i64>(q) * capacity;
  const auto of = [&](int i) {
    const i64 r = row[i];
    return bounds(value[i], q_scale, q_residual, q_norm, numbers[r], numbers[RESIDUAL * line + r],
                  numbers[NORM * line + r], slack);
  };
  const auto lower = [&](int i) { return i < cached ? lowers[i] : __float_as_uint(of(i).lower); };
  const auto upper = [&](int i) { return i < cached ? uppers[i] : __float_as_uint(of(i).upper); };
  for (int i = threadIdx.x; i < min(count, cached); i += THREADS) {
    const Bounds both = of(i);
    lowers[i] = __float_as_uint(both.lower);
    uppers[i] = __float_as_uint(both.upper);
  }
  if (threadIdx.x < 2) total[threadIdx.x] = 0;
  __syncthreads();
  const u32 most = smallest(count, k, upper);
  const u32 least = every ? 0 : smallest(count, k, lower);
  // In place: a round writes no further than it has read.
  const int lane = threadIdx.x % 32;
  for (int start = 0; start < count; start += THREADS) {
    const int i = start + threadIdx.x;
    const u32 low = i < count ? lower(i) : INF_BITS, high = i < count ? upper(i) : 0;
    const bool nearer = i < count && high < least;
    const bool keep = i < count && low <= most && !nearer;
    const int r = keep ? row[i] : 0;
    __syncthreads();
    const u32 keeps = __ballot_sync(~0u, keep), nearers = __ballot_sync(~0u, nearer);
    int first = 0;
    if (lane == 0) {
      first = atomicAdd(&total[0], __popc(keeps));
      atomicAdd(&total[1], __popc(nearers));
    }
    first = __shfl_sync(~0u, first, 0);
    if (keep) row[first + __popc(keeps & ((1u << lane) - 1))] = r;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    kept[q] = total[0];
    ranks[q] = k - total[1];
  }
}

// A sum ≥ 0 rounded once. A conversion makes subnormal results zero under -ftz, so their bits are
// counted in units of 2^-149.
__device__ __forceinline__ float rounded(double sum) {
  return sum < 0x1p-126 ? __uint_as_float(static_cast<u32>(rint(sum * 0x1p149))) : float(sum);
}

// Σ(q − v)² into values, for the slots whose row is one of first_row … first_row + row_count − 1. A
// warp a slot, blockIdx.y shares them out. A lane takes four columns of each 128, whatever the
// alignment.
__global__ void __launch_bounds__(THREADS, RESIDENT)
    exact(const float* queries, i64 query_stride, const float* bank, i64 bank_stride, int first_row,
          int row_count, int dim, const int* rows, float* values, const int* kept, int capacity,
          int aligned) {
  const int lane = threadIdx.x % 32, count = kept[blockIdx.x];
  const float* const query = queries + blockIdx.x * query_stride;
  const i64 list = static_cast<i64>(blockIdx.x) * capacity;
  for (int slot = blockIdx.y * WARPS + threadIdx.x / 32; slot < count; slot += gridDim.y * WARPS) {
    const int r = rows[list + slot] - first_row;
    if (r < 0 || r >= row_count) continue;
    const float* const row = bank + r * bank_stride;
    double sum = 0;
    int c = lane * 4;
    if (aligned) {
#pragma unroll 4
      for (; c + 4 <= dim; c += 128) {
        const float4 a = *reinterpret_cast<const float4*>(query + c);
        const float4 b = *reinterpret_cast<const float4*>(row + c);
        const double x = double(a.x) - double(b.x), y = double(a.y) - double(b.y);
        const double z = double(a.z) - double(b.z), w = double(a.w) - double(b.w);
        sum = fma(w, w, fma(z, z, fma(y, y, fma(x, x, sum))));
      }
    }
    for (; c < dim; c += 128)
      for (int e = c; e < min(c + 4, dim); ++e) {
        const double x = double(query[e]) - double(row[e]);
        sum = fma(x, x, sum);
      }
    sum = warp_sum(sum);
    if (lane == 0) values[list + slot] = rounded(sum);
  }
}

// The ranks-th smallest value of the slots kept, and whether it is certain.
__global__ void __launch_bounds__(THREADS, RESIDENT)
    select(const float* q_norm, const float* radius, const float* values, const int* counts,
           const int* kept, const int* ranks, int capacity, float* kth, u8* safe) {
  const int q = blockIdx.x;
  const float* const of = values + static_cast<i64>(q) * capacity;
  const float found =
      __uint_as_float(smallest(kept[q], ranks[q], [&](int i) { return __float_as_uint(of[i]); }));
  if (threadIdx.x != 0) return;
  const float norm = q_norm[q], r = radius[q];
  const bool missing = norm != norm;
  kth[q] = missing ? norm : found;
  safe[q] = missing || (counts[q] <= capacity && found <= r * r * (1 - 4 * WIDER));
}

}  // namespace nearest

INSTANTIATE(nearest::aim);
INSTANTIATE(nearest::resolve);
INSTANTIATE(nearest::exact);
INSTANTIATE(nearest::select);
