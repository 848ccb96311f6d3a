// Kernels that the emulator's own tests run.
#include "ptx.cuh"

namespace {

// C [M, N] = A [M, K]·B [N, K]ᵀ, one warp for 16 × 16 of C, K in steps of 16 through shared memory.
template <bool WAIT>
__global__ void product(const u16* a, const u16* b, float* c, int n, int k) {
  DYNAMIC_SHARED(memory);
  auto* tile_a = reinterpret_cast<u16*>(memory);  // [16][24]: 8 of padding
  auto* tile_b = tile_a + 16 * 24;
  const int lane = threadIdx.x, row = lane / 2, half = lane % 2 * 8;
  const i64 row_a = blockIdx.y * 16 + row, row_b = blockIdx.x * 16 + row;
  float d[2][4] = {};
  for (int at = 0; at < k; at += 16) {
    cp_async_16(tile_a + row * 24 + half, a + row_a * k + at + half);
    cp_async_16(tile_b + row * 24 + half, b + row_b * k + at + half);
    cp_async_commit();
    if (WAIT) cp_async_wait<0>();
    __syncwarp();
    u32 x[4], y[4];
    ldmatrix_x4(x, tile_a + lane % 16 * 24 + lane / 16 * 8);
    ldmatrix_x4(y, tile_b + lane % 16 * 24 + lane / 16 * 8);
    const u32 left[2] = {y[0], y[2]}, right[2] = {y[1], y[3]};
    mma_16x8x16(d[0], x, left);
    mma_16x8x16(d[1], x, right);
    __syncwarp();
  }
  float* out = c + (blockIdx.y * 16 + lane / 4) * i64(n) + blockIdx.x * 16 + lane % 4 * 2;
  for (int j = 0; j < 2; ++j) {
    out[8 * j] = d[j][0];
    out[8 * j + 1] = d[j][1];
    out[8 * j + i64(8) * n] = d[j][2];
    out[8 * j + i64(8) * n + 1] = d[j][3];
  }
}

// What each lane gets of four 8 × 8 matrices, transposed.
__global__ void transpose(const u16* x, u32* out) {
  SHARED(tile, uint4[32]);
  auto* rows = reinterpret_cast<u16*>(tile);
  for (int i = threadIdx.x; i < 256; i += 32) rows[i] = x[i];
  __syncwarp();
  u32 r[4];
  ldmatrix_x4_trans(r, rows + threadIdx.x * 8);
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = r[i];
}

// Sums of a block's values: warps by shuffles, then one warp over SHARED; the barriers are
// optional.
template <bool BARRIER>
__global__ void block_sum(const float* x, float* out, int n) {
  SHARED(sums, float[32]);
  const int t = threadIdx.x;
  float sum = t < n ? x[blockIdx.x * i64(n) + t] : 0.0f;
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(~0u, sum, bits);
  if (t % 32 == 0) sums[t / 32] = sum;
  if (BARRIER) __syncthreads();
  if (t == 0) {
    float total = 0;
    for (int i = 0; i < int(blockDim.x) / 32; ++i) total += sums[i];
    out[blockIdx.x] = total;
  }
}

// Ballots, counts, atomics, scans: integers that follow from n alone.
__global__ void integers(int* out, u32* counter, int n) {
  const int t = threadIdx.x, lane = t % 32;
  const u32 odd = __ballot_sync(~0u, t % 2);
  const int inside = __syncthreads_count(t < n);
  const int some = __syncthreads_or(t == n), all = __syncthreads_and(t != n);
  int scan = lane;
  for (int by = 1; by < 32; by *= 2) {
    const int below = __shfl_up_sync(~0u, scan, by);
    if (lane >= by) scan += below;
  }
  int part = 0;
  if (lane < 16) part = __reduce_add_sync(0x0000ffffu, lane);  // a part of the warp
  if (t < n) atomicAdd(counter, 1u);
  const int next = __shfl_down_sync(~0u, t, 1, 8), first = __shfl_sync(~0u, t, 0, 8);
  int* row = out + (blockIdx.x * i64(blockDim.x) + t) * 9;
  const int found[9] = {
      int(odd), inside, some, all, scan, part, next, first, __any_sync(~0u, t == n)};
  for (int i = 0; i < 9; ++i) row[i] = found[i];
}

// What must not happen, by number.
__global__ void wrong(float* out, int what) {
  DYNAMIC_SHARED(memory);
  const int t = threadIdx.x;
  auto* numbers = reinterpret_cast<float*>(memory);
  if (what == 0 && t < 32) __syncthreads();  // the others end: this is allowed
  if (what == 1) {                           // two barriers
    if (t < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  }
  if (what == 2 && t % 32 < 31) __syncwarp();  // lane 31 has ended
  if (what == 3 && t < 32) {                   // warp 1 waits for warp 0, which waits in a shuffle
    if (t < 16) __shfl_sync(~0u, t, 0);
    if (t >= 16) __syncthreads();
  }
  if (what == 4) out[t] = numbers[t];                             // never written
  if (what == 5) cp_async_16(memory + 16 * t, out + 1);           // misaligned
  if (what == 6 && t % 32 < 16) __shfl_sync(0x0000ffffu, t, 20);  // lane 20 is not asked
  if (what == 7 && t % 32 >= 1) __shfl_sync(0x00000001u, t, 0);   // a lane that is not in its mask
  if (what == 8) {
    if (t % 32 < 16) {
      __syncwarp();
    } else {
      __ballot_sync(~0u, 1);
    }
  }
  if (what == 9) numbers[t + 1] = 1.0f;  // one beyond the end: the address sanitizer's
  if (what == 10) {
    SHARED(few, float[32]);
    few[t] = 1.0f;  // thread 32 is beyond: that of undefined behaviour
  }
}

template <typename T>
__global__ void convert(const T* x, float* wide, const float* y, T* narrow, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  wide[i] = to_float(x[i]);
  narrow[i] = from_float<T>(y[i]);
}

INSTANTIATE(product<true>);
INSTANTIATE(product<false>);
INSTANTIATE(transpose);
INSTANTIATE(block_sum<true>);
INSTANTIATE(block_sum<false>);
INSTANTIATE(integers);
INSTANTIATE(wrong);
INSTANTIATE(convert<Half>);
INSTANTIATE(convert<BFloat16>);

}  // namespace
