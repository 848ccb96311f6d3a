// mpm_nce after its products: partial sums added up in the order of their numbers, the loss; and
// the end of the backward pass.
#include "mpm_nce.cuh"

namespace mpm_nce {

constexpr int ANCHORS = 32, LANES = 8;  // of a block; that share an anchor's parts
constexpr int MERGE = ANCHORS * LANES;  // threads
constexpr float LN2 = 0.6931471805599453f;

// The sums of anchor `at` over all parts, `field` apart, for the threads of lane 0 (threadIdx.x <
// ANCHORS).
__device__ __forceinline__ Sums added(const Sums* parts, int count, i64 field, int at,
                                      int anchors) {
  SHARED(of_lane, Sums[LANES][ANCHORS]);
  const int lane = threadIdx.x / ANCHORS, anchor = threadIdx.x % ANCHORS;
  Sums sums = nothing();
  if (at < anchors)
    for (int part = lane; part < count; part += LANES) add(sums, parts[part * field + at]);
  of_lane[lane][anchor] = sums;
  __syncthreads();
  if (lane == 0)
    for (int other = 1; other < LANES; ++other) add(sums, of_lane[other][anchor]);
  __syncthreads();
  return sums;
}

// parts [count, anchors] to one, `into`, which may be among them: after a slab of images, the
// texts'.
__global__ void __launch_bounds__(MERGE)
    fold(const Sums* parts, int count, int anchors, Sums* into) {
  const int at = blockIdx.x * ANCHORS + threadIdx.x % ANCHORS;
  const Sums sums = added(parts, count, anchors, at, anchors);
  if (threadIdx.x < ANCHORS && at < anchors) into[at] = sums;
}

// The sum of a block, the same in each thread, in an order that does not change.
__device__ __forceinline__ float block_sum(float x) {
  SHARED(all, float[MERGE]);
  __syncthreads();
  all[threadIdx.x] = x;
  for (int step = MERGE / 2; step > 0; step /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < step) all[threadIdx.x] += all[threadIdx.x + step];
  }
  __syncthreads();
  return all[0];
}

// One direction: `anchors` with the sums of `count` parts over `candidates`. products: of
// mpm_nce_pack.cu, null without smoothing. out [3, anchors]: shift (Inf where there is no
// positive), log2 Σ 2^(Z − shift), positives.
struct Direction {
  const Sums* parts;
  const float* products;
  float* out;
  int count, anchors, candidates;
};

// Losses of a block's anchors and their number, to `sum`.
__device__ __forceinline__ void merge_anchors(const Direction& of, int block, bool no_self,
                                              float smoothing, float scale, float margin,
                                              float2* sum) {
  const int at = block * ANCHORS + threadIdx.x % ANCHORS;
  const Sums sums = added(of.parts, of.count, of.anchors, at, of.anchors);
  float loss = 0, number = 0;
  if (threadIdx.x < ANCHORS && at < of.anchors) {
    // An anchor has candidates: a sum of 0 comes of a feature that is not finite.
    const float log_total = sums.total == 0 ? sums.total / sums.total : log2f(sums.total);
    of.out[at] = sums.count > 0 ? sums.shift : infinity();
    of.out[of.anchors + at] = log_total;
    of.out[2 * static_cast<i64>(of.anchors) + at] = sums.count;
    const float others = float(of.candidates - no_self), negatives = others - sums.count;
    const float epsilon = negatives > 0 ? smoothing : 0.0f;
    double target = (1 - epsilon) / fmaxf(sums.count, 1) * sums.positives;
    if (of.products != nullptr && epsilon > 0) {
      // Σ of all Z − shift, less the positives'.
      const double all = double(scale) * (of.products[at] + double(margin) * negatives);
      target += epsilon / negatives * (all - double(others) * sums.shift - sums.positives);
    }
    const bool is_anchor = sums.count > 0;
    // A NaN in an anchor that has no positive must show, too.
    if (is_anchor || log_total != log_total) loss = LN2 * (log_total - float(target));
    number = is_anchor;
  }
  loss = block_sum(loss);
  number = block_sum(number);
  if (threadIdx.x == 0) sum[block] = {loss, number};
}

// Σ of the blocks' numbers, in order.
__device__ __forceinline__ float2 all_of(const float2* sums, int count) {
  float2 mine = {};
  for (int i = threadIdx.x; i < count; i += MERGE) {
    const float2 more = __ldcg(sums + i);
    mine.x += more.x;
    mine.y += more.y;
  }
  mine.x = block_sum(mine.x);
  mine.y = block_sum(mine.y);
  return mine;
}

// All anchors' statistics; the last block, found by `counter`, takes the means. sums [gridDim.x].
// text_parts: null where only images are anchors.
__global__ void __launch_bounds__(MERGE)
    merge(const Sums* image_parts, int image_count, const Sums* text_parts, int text_count,
          const float* image_products, const float* text_products, const float* scale, int images,
          int texts, bool no_self, float margin, float smoothing, float* image_out, float* text_out,
          float2* sums, int* counter, float* loss, float* anchors) {
  SHARED(last, bool);
  const float s = *scale * LOG2E;
  const int image_blocks = (images + ANCHORS - 1) / ANCHORS, block = blockIdx.x;
  if (block < image_blocks)
    merge_anchors({image_parts, image_products, image_out, image_count, images, texts}, block,
                  no_self, smoothing, s, margin, sums);
  else
    merge_anchors({text_parts, text_products, text_out, text_count, texts, images},
                  block - image_blocks, no_self, smoothing, s, margin, sums + image_blocks);
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(counter, 1) == int(gridDim.x) - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  const float2 of_images = all_of(sums, image_blocks);
  const float2 of_texts = all_of(sums + image_blocks, gridDim.x - image_blocks);
  if (threadIdx.x != 0) return;
  const float mean = of_images.x / of_images.y;
  *loss = text_parts == nullptr ? mean : 0.5f * (mean + of_texts.x / of_texts.y);
  anchors[0] = of_images.y;
  anchors[1] = of_texts.y;
}

// The gradients in their dtype, from products of factor·∂loss/∂Z, and ∂loss/∂scale from its parts.
// A product of size 0 is not wanted.
template <typename T>
__global__ void __launch_bounds__(MERGE)
    finish(const float* x_product, i64 x_size, const float* y_product, i64 y_size,
           const double* parts, int part_count, const float* scale, const float* grad, float factor,
           T* grad_x, T* grad_y, float* grad_scale) {
  SHARED(all, double[MERGE]);
  const i64 threads = static_cast<i64>(gridDim.x) * MERGE;
  const i64 first = static_cast<i64>(blockIdx.x) * MERGE + threadIdx.x;
  const float unscale = *grad * *scale / factor;
  for (i64 i = first; i < x_size; i += threads) grad_x[i] = from_float<T>(x_product[i] * unscale);
  for (i64 i = first; i < y_size; i += threads) grad_y[i] = from_float<T>(y_product[i] * unscale);
  if (blockIdx.x != 0 || part_count == 0) return;
  double sum = 0;
  for (int i = threadIdx.x; i < part_count; i += MERGE) sum += parts[i];
  all[threadIdx.x] = sum;
  for (int step = MERGE / 2; step > 0; step /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < step) all[threadIdx.x] += all[threadIdx.x + step];
  }
  if (threadIdx.x == 0) *grad_scale = float(all[0] * *grad);
}

}  // namespace mpm_nce

INSTANTIATE(mpm_nce::fold);
INSTANTIATE(mpm_nce::merge);
INSTANTIATE(mpm_nce::finish<BFloat16>);
INSTANTIATE(mpm_nce::finish<Half>);
