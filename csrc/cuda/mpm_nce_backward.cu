// mpm_nce backward on sm_90a: ∂loss/∂Z tile by tile, by wgmma, for two library products.
//
// The products of a tile are made again (ring.cuh); p − w is subtracted in float32, times a
// factor that keeps float16 near 1. ∂Z lies with the texts as rows, as the tiles have them.
#include "hopper.cuh"
#include "mpm_nce.cuh"
#include "ring.cuh"

namespace mpm_nce {

// What ∂Z takes of an anchor: p = 2^(Z − shift − log_total) times its share in the mean, less
// `negative`, less `positive` more for a positive pair.
struct __align__(16) Anchor {
  float shift, log_total, negative, positive;
};

// statistics [3, count] of forward; share: of an anchor in the loss. An anchor that is not there,
// or has no positive, has the shift Inf, so that p = 0.
__device__ __forceinline__ Anchor anchor_of(const float* statistics, int count, int at,
                                            float candidates, float smoothing, float share) {
  if (statistics == nullptr || at >= count) return {infinity(), 0, 0, 0};
  const float positives = statistics[2 * static_cast<i64>(count) + at];
  const float negatives = candidates - positives;
  const float epsilon = negatives > 0 ? smoothing : 0.0f;
  Anchor anchor = {statistics[at], statistics[count + at], 0, 0};
  if (positives > 0) anchor.negative = share * epsilon / fmaxf(negatives, 1);
  anchor.positive = share * (1 - epsilon) / fmaxf(positives, 1) - anchor.negative;
  return anchor;
}

template <typename T>
__device__ __forceinline__ u32 pair_of(float low, float high) {
  return from_float<T>(low).bits | u32(from_float<T>(high).bits) << 16;
}

// What all entries of a block have in common; the shares are times the factor.
struct Numbers {
  float scale, margin, image_share, text_share;
};

// Of a thread's two texts: which images count with them, and their rows of ∂Z, null if not there.
struct Texts {
  Anchor anchor[2];
  u32 counts[2];
  u16* row[2];
};

// ∂Z of a thread's part of a tile, and Σ of it times Z/s. PLAIN: all pairs count, none is positive.
template <typename T, bool PLAIN>
__device__ __forceinline__ float entries(const Products& p, const Numbers& of, const Anchor* images,
                                         const Texts& texts, const u32 (&bits)[2], u32 exist) {
  float sum = 0;
#pragma unroll
  for (int n = 0; n < TILE / 8; ++n) {
    const Anchor image[2] = {images[image_of(2 * n)], images[image_of(2 * n + 1)]};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Anchor& text = texts.anchor[half];
      float dz[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const u32 bit = 1u << (2 * n + e);
        const bool positive = !PLAIN && bits[half] & bit;
        const float product = p[n][2 * half + e];
        const float similarity = positive ? product : product + of.margin;
        // As forward has it where a pair is positive: p − w vanishes there.
        const float z = __fmul_rn(of.scale, similarity);
        const float row = exp2_approx((z - image[e].shift) - image[e].log_total);
        const float column = exp2_approx((z - text.shift) - text.log_total);
        float d = fmaf(row, of.image_share, -image[e].negative);
        d = fmaf(column, of.text_share, d) - text.negative;
        if (positive) d -= image[e].positive + text.positive;
        dz[e] = PLAIN || texts.counts[half] & bit ? d : 0.0f;
        sum = fmaf(dz[e], similarity, sum);
      }
      if (PLAIN || (texts.row[half] != nullptr && exist >> 2 * n & 1))
        *reinterpret_cast<u32*>(texts.row[half] + n * 8) = pair_of<T>(dz[0], dz[1]);
    }
  }
  return sum;
}

// x, y: images and texts in tiles, of which those of the grid's blocks, from first_block on, and of
// text_tiles, from first_tile on, are taken. grad_z [their texts, width]: factor·∂loss/∂Z. parts
// [gridDim.y, gridDim.x, RING_WARPS]: Σ ∂loss/∂Z·Z/s. text_statistics: null in one direction.
template <typename T, bool RESIDENT, int CLUSTER>
__global__ void __launch_bounds__(RING_THREADS, 1) CLUSTERS_OF(CLUSTER)
    grad_tiles(const unsigned char* x, const unsigned char* y, const float* scale,
               const i64* image_labels, const i64* text_labels, const u8* mask, i64 mask_stride,
               i64 ignore, int kind, bool no_self, float margin, float smoothing, float factor,
               const float* image_statistics, const float* text_statistics, const float* anchors,
               int images, int texts, int first_block, int first_tile, int tiles, int slices,
               int stages, u16* grad_z, i64 width, double* parts) {
#ifdef ROBUSTFT_WGMMA
  DYNAMIC_SHARED(shared);
  Ring<1, RESIDENT, RESIDENT && CLUSTER == 2, CLUSTER> ring(shared, slices, stages,
                                                            TILE * sizeof(Anchor));
  const int block = first_block + blockIdx.x, first_image = block * TILE;
  const bool spare = first_image >= images;  // a cluster's last block: takes part, has no images
  const int begin = first_tile + static_cast<i64>(tiles) * blockIdx.y / gridDim.y;
  const int end = first_tile + static_cast<i64>(tiles) * (blockIdx.y + 1) / gridDim.y;
  const bool symmetric = text_statistics != nullptr;
  const float image_share = factor / anchors[0] * (symmetric ? 0.5f : 1.0f);
  Anchor* const of_images = reinterpret_cast<Anchor*>(ring.kept);
  if (threadIdx.x < TILE)
    of_images[threadIdx.x] = anchor_of(image_statistics, images, first_image + threadIdx.x,
                                       float(texts - no_self), smoothing, image_share);
  __syncthreads();
  if (threadIdx.x < 128) {
    fewer_registers<FETCHING>();
    ring.fetch(x + static_cast<i64>(block - spare) * slices * TILE_SLICE, y, end, begin, end);
  } else {
    more_registers<MULTIPLYING>();
    const int warp = __shfl_sync(~0u, int(threadIdx.x) / 32, 0) - 4;
    const Pairs pairs = {kind, image_labels, text_labels, mask, mask_stride, ignore, images, texts};
    const float s = *scale * LOG2E;
    const float text_share = symmetric ? factor * 0.5f / anchors[1] : 0.0f;
    const u32 exist = existing(images - first_image);
    double part = 0;
    ring.begin(warp / 4);
    for (int tile = begin; tile < end; ++tile) {
      Products p;
      ring.template multiply<T, FLOWING>(p, warp / 4);
      const int first_text = tile * TILE + warp * 16;
      if (first_text >= texts || spare) continue;
      const bool diagonal = on_diagonal(first_text, first_image);
      u32 bits[2] = {};
      if (kind != 0 || diagonal)
        find_positives(pairs, first_text, first_image, exist, no_self, bits);
      Texts mine;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int text = first_text + text_of(half);
        mine.anchor[half] =
            anchor_of(text_statistics, texts, text, float(images - no_self), smoothing, text_share);
        mine.counts[half] = text < texts ? exist : 0;
        mine.row[half] = text < texts ? grad_z + (text - first_tile * TILE) * width +
                                            blockIdx.x * TILE + threadIdx.x % 4 * 2
                                      : nullptr;
        if (no_self) mine.counts[half] &= ~own_bit(text - first_image);
      }
      const bool plain =
          __all_sync(~0u, (mine.counts[0] & mine.counts[1]) == ~0u && (bits[0] | bits[1]) == 0);
      const Numbers numbers = {s, margin, image_share, text_share};
      part += plain ? entries<T, true>(p, numbers, of_images, mine, bits, exist)
                    : entries<T, false>(p, numbers, of_images, mine, bits, exist);
    }
    part /= factor;
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) part += __shfl_xor_sync(~0u, part, bit);
    if (threadIdx.x % 32 == 0)
      parts[(static_cast<i64>(blockIdx.y) * gridDim.x + blockIdx.x) * RING_WARPS + warp] = part;
  }
#endif
}

}  // namespace mpm_nce

INSTANTIATE(mpm_nce::grad_tiles<BFloat16, true, 1>);
INSTANTIATE(mpm_nce::grad_tiles<BFloat16, true, 2>);
INSTANTIATE(mpm_nce::grad_tiles<BFloat16, false, 1>);
INSTANTIATE(mpm_nce::grad_tiles<BFloat16, false, 2>);
INSTANTIATE(mpm_nce::grad_tiles<Half, true, 1>);
INSTANTIATE(mpm_nce::grad_tiles<Half, true, 2>);
INSTANTIATE(mpm_nce::grad_tiles<Half, false, 1>);
INSTANTIATE(mpm_nce::grad_tiles<Half, false, 2>);
