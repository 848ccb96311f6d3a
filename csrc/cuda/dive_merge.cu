// dive_loss, forward, second launch: the blocks' sums, moved from their centres to m.
//
// Σ|u − m|² = Σ|u − c|² − 2<Σ(u − c), m − c> + n|m − c|², in double. Partial sums are added in
// index order; the last block, found by an integer counter, adds the scalars. Same inputs, same
// bits.
#include "dive_team.cuh"

namespace dive {

// A strip of 32 columns: m (rest: 1 − momentum), and what moving the sums from the centres to m
// adds to AVL·B. 8 warps take the row blocks in turn. The last block adds all up.
__global__ void __launch_bounds__(THREADS)
    forward_merge(const float* centres, const float* sums, const double* scalars, double* parts,
                  u32* counter, const float* mean, i64 mean_stride, float* avl, float* pvl,
                  float* new_mean, int rows, int dim, int rows_each, int blocks, float momentum,
                  float rest) {
  SHARED(shared, double[WARPS][4][32]);
  SHARED(last, bool[1]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int column = blockIdx.x * 32 + lane;
  // Over row blocks of n rows, centre c and sum s: Σnc, Σs, Σnc², Σcs, each term exact or nearly
  // so.
  double sum[4] = {};
  if (column < dim) {
    for (int k = warp; k < blocks; k += WARPS) {
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
      for (int w = 0; w < WARPS; ++w) all[i] += shared[w][i][lane];
    }
    double added = 0;
    if (column < dim) {
      const double before = mean[column * mean_stride];
      const double here = (2 * all[0] + all[1]) / (2.0 * rows);
      const double m = momentum * before + rest * here;
      new_mean[column] = static_cast<float>(m);
      added = 2 * (rows * (m * m) - m * (2 * all[0] + all[1]) + all[2] + all[3]);
    }
    for (int by = 16; by > 0; by /= 2) added += __shfl_xor_sync(ALL, added, by);
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
    about += __shfl_xor_sync(ALL, about, by);
    apart += __shfl_xor_sync(ALL, apart, by);
  }
  if (lane == 0) {
    *avl = static_cast<float>(about / rows);
    *pvl = static_cast<float>(apart / rows);
  }
}

}  // namespace dive

INSTANTIATE(dive::forward_merge);
