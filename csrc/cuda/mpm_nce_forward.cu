// mpm_nce forward on sm_90a: sums of exponentials of every image and every text, by wgmma.
//
// A warp has 16 texts and 128 images of a tile of products (ring.cuh). One exponential
// serves both: about a level that the warp keeps from tile to tile, so that no largest Z is looked
// for. A text's sum over the tile is complete in four lanes and leaves at once. An image's is added
// to registers, two texts a thread; where the level changes, and at the end, registers are added up
// over the warp and go to what the block keeps of the image, with a shift of its own.
//
// The level holds as long as each text's sum lies within LEAST and MOST, and each image has been
// seen within BELOW of it: then what underflows about the level is 2^-70 of any sum. Else, and in
// the first tile, each text and each image takes its own largest Z, and the level is set anew.
#include "hopper.cuh"
#include "mpm_nce.cuh"
#include "ring.cuh"

namespace mpm_nce {

constexpr float LEAST = 0x1p-87f, MOST = 0x1p24f;  // a text's sum about the level
constexpr float ROOM = 20, BELOW = 50;  // of the level below a tile's largest Z; of images below it

// Of the four lanes that have a text.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

// Of the eight lanes that have an image.
__device__ __forceinline__ float column_sum(float x) {
#pragma unroll
  for (int bit = 4; bit < 32; bit *= 2) x += __shfl_xor_sync(~0u, x, bit);
  return x;
}
__device__ __forceinline__ float column_max(float x) {
#pragma unroll
  for (int bit = 4; bit < 32; bit *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, bit));
  return x;
}

// What a warp knows of its images.
struct Images {
  Sums* kept;           // [TILE], in shared memory
  float sums[32] = {};  // of this thread's texts, Σ 2^(Z − level), since the level was set
  float level = 0;
  bool holds = false, empty = true;  // whether the level may be used; whether sums are 0

  __device__ __forceinline__ void store(int bit, const Sums& of_image) {
    if (threadIdx.x % 32 < 4) kept[image_of(bit)] = of_image;
  }

  // Registers to what is kept.
  __device__ __forceinline__ void settle() {
    if (empty) return;
#pragma unroll
    for (int bit = 0; bit < 32; ++bit) {
      const float more = column_sum(sums[bit]);
      Sums of_image = kept[image_of(bit)];
      if (!(more == 0)) {
        raise(of_image, fmaxf(of_image.shift, level + log2_approx(more)));
        of_image.total += more * exp2_approx(level - of_image.shift);
      }
      store(bit, of_image);
      sums[bit] = 0;
    }
    __syncwarp();
    empty = true;
  }
};

// Z = p·unit + offset, as all that follows takes it.
struct Linear {
  float unit, offset;
  __device__ __forceinline__ float operator()(float p) const { return fmaf(p, unit, offset); }
};

// A tile about the level. `of_text`: Σ 2^(Z − level) of the thread's two texts. Whether it holds;
// if not, nothing was added.
__device__ __forceinline__ bool about_level(const Products& p, Linear z, const bool (&there)[2],
                                            Images& images, float (&of_text)[2]) {
  const Linear down = {z.unit, z.offset - images.level};
  float both[32];
  of_text[0] = of_text[1] = 0;
#pragma unroll
  for (int bit = 0; bit < 32; ++bit) {
    const float upper = exp2_approx(down(p[bit / 2][bit % 2]));
    const float lower = exp2_approx(down(p[bit / 2][2 + bit % 2]));
    of_text[0] += upper;
    of_text[1] += lower;
    both[bit] = upper + lower;
  }
  bool within = true;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    of_text[half] = quad_sum(of_text[half]);
    within &= !there[half] || (of_text[half] >= LEAST && of_text[half] <= MOST);
  }
  if (!__all_sync(~0u, within)) return false;
#pragma unroll
  for (int bit = 0; bit < 32; ++bit) images.sums[bit] += both[bit];
  images.empty = false;
  return true;
}

// A tile about the largest Z of each text (`shift`) and of each image, and a level for the next.
__device__ __forceinline__ void about_each(const Products& z, const bool (&there)[2], u32 exist,
                                           Images& images, float (&shift)[2], float (&of_text)[2]) {
  images.settle();
  float poison = 0, highest = -infinity();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = -infinity(), total = 0;
#pragma unroll
    for (int bit = 0; bit < 32; ++bit) top = fmaxf(top, z[bit / 2][2 * half + bit % 2]);
    top = quad_max(top);
#pragma unroll
    for (int bit = 0; bit < 32; ++bit) total += exp2_approx(z[bit / 2][2 * half + bit % 2] - top);
    shift[half] = top;
    of_text[half] = quad_sum(total);
    if (!there[half]) continue;
    highest = fmaxf(highest, top);
    if (!(top > -infinity())) poison = top - top;  // NaN: a feature is not finite
  }
  float lowest = infinity();
#pragma unroll
  for (int bit = 0; bit < 32; ++bit) {
    const float upper = z[bit / 2][bit % 2], lower = z[bit / 2][2 + bit % 2];
    Sums of_image = images.kept[image_of(bit)];
    const float top = fmaxf(of_image.shift, column_max(fmaxf(upper, lower)));
    const float base = top == -infinity() ? 0 : top;
    const float more = column_sum(exp2_approx(upper - base) + exp2_approx(lower - base) + poison);
    raise(of_image, top);
    of_image.total += more;
    images.store(bit, of_image);
    if (exist >> bit & 1) lowest = fminf(lowest, top);
  }
  __syncwarp();
  images.level = column_max(highest) - ROOM;
  images.holds = __all_sync(~0u, lowest >= images.level - BELOW);
}

// Positive pairs of a tile: of each text about its shift, of each image about what is kept of it.
__device__ __forceinline__ void add_positives(const Products& z, const u32 (&bits)[2],
                                              const float (&shift)[2], Images& images,
                                              float (&positives)[2], float (&count)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = 0;
#pragma unroll
    for (int bit = 0; bit < 32; ++bit)
      if (bits[half] >> bit & 1) sum += z[bit / 2][2 * half + bit % 2] - shift[half];
    positives[half] = quad_sum(sum);
    count[half] = quad_sum(__popc(bits[half]));
  }
  const u32 any = __reduce_or_sync(~0u, bits[0] | bits[1]);
#pragma unroll
  for (int bit = 0; bit < 32; ++bit) {
    if (!(any >> bit & 1)) continue;
    Sums of_image = images.kept[image_of(bit)];
    float sum = 0, more = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (bits[half] >> bit & 1) {
        sum += z[bit / 2][2 * half + bit % 2] - of_image.shift;
        more += 1;
      }
    sum = column_sum(sum);
    more = column_sum(more);
    if (more > 0) of_image.positives += sum;
    of_image.count += more;
    images.store(bit, of_image);
  }
  __syncwarp();
}

// Z in the place of the products, where some pair is not like the others.
__device__ __forceinline__ void settle_pairs(Products& p, float scale, float margin,
                                             const u32 (&bits)[2], const bool (&there)[2],
                                             u32 exist, const u32 (&self)[2]) {
#pragma unroll
  for (int bit = 0; bit < 32; ++bit)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& z = p[bit / 2][2 * half + bit % 2];
      const float similarity = bits[half] >> bit & 1 ? z : z + margin;
      z = __fmul_rn(scale, similarity);
      if (self[half] >> bit & 1) z = NOWHERE;
      if (!there[half] || !(exist >> bit & 1)) z = -infinity();
    }
}

// x, y: images and texts in tiles. of_texts [gridDim.x, texts], or null: what the block's images
// add to each text; of_images [gridDim.y, images]: what a range of texts adds to each image.
template <typename T, bool RESIDENT, int CLUSTER>
__global__ void __launch_bounds__(RING_THREADS, 1) CLUSTERS_OF(CLUSTER)
    forward_tiles(const unsigned char* x, const unsigned char* y, const float* scale,
                  const i64* image_labels, const i64* text_labels, const u8* mask, i64 mask_stride,
                  i64 ignore, int kind, bool no_self, float margin, int images, int texts,
                  int first_block, int slices, int stages, Sums* of_texts, Sums* of_images) {
#ifdef ROBUSTFT_WGMMA
  DYNAMIC_SHARED(shared);
  Ring<1, RESIDENT, RESIDENT && CLUSTER == 2, CLUSTER> ring(shared, slices, stages,
                                                            RING_WARPS * TILE * sizeof(Sums));
  const int tiles = (texts + TILE - 1) / TILE, block = first_block + blockIdx.x;
  const int first_image = block * TILE;
  const bool spare = first_image >= images;  // a cluster's last block: takes part, has no images
  const int begin = static_cast<i64>(tiles) * blockIdx.y / gridDim.y;
  const int end = static_cast<i64>(tiles) * (blockIdx.y + 1) / gridDim.y;
  if (threadIdx.x < 128) {
    fewer_registers<FETCHING>();
    ring.fetch(x + static_cast<i64>(block - spare) * slices * TILE_SLICE, y, tiles, begin, end);
  } else {
    more_registers<MULTIPLYING>();
    const int warp = __shfl_sync(~0u, int(threadIdx.x) / 32, 0) - 4, lane = threadIdx.x % 32;
    const Pairs pairs = {kind, image_labels, text_labels, mask, mask_stride, ignore, images, texts};
    const float s = *scale * LOG2E;
    const u32 exist = existing(images - first_image);
    Sums* const kept = reinterpret_cast<Sums*>(ring.kept);
    Images of_block{kept + warp * TILE};
    for (int i = lane; i < TILE; i += 32) of_block.kept[i] = nothing();
    __syncwarp();
    ring.begin(warp / 4);
    for (int tile = begin; tile < end; ++tile) {
      Products p;
      ring.template multiply<T, FLOWING>(p, warp / 4);
      const int first_text = tile * TILE + warp * 16;
      if (first_text >= texts || spare) continue;
      const bool there[2] = {first_text + text_of(0) < texts, first_text + text_of(1) < texts};
      const bool diagonal = on_diagonal(first_text, first_image);
      u32 bits[2] = {}, self[2] = {};
      bool any = false;
      if (kind != 0 || diagonal) {
        find_positives(pairs, first_text, first_image, exist, no_self, bits);
        any = __any_sync(~0u, bits[0] | bits[1]);
      }
      Linear z = {s, s * margin};
      if (any || (diagonal && no_self) || first_text + 16 > texts || first_image + TILE > images) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (no_self) self[half] = own_bit(first_text + text_of(half) - first_image);
        settle_pairs(p, s, margin, bits, there, exist, self);
        z = {1, 0};
      }
      float shift[2], total[2], positives[2] = {}, count[2] = {};
      if (of_block.holds && about_level(p, z, there, of_block, total))
        shift[0] = shift[1] = of_block.level;
      else {
#pragma unroll
        for (int i = 0; i < 64; ++i) p[i / 4][i % 4] = z(p[i / 4][i % 4]);
        about_each(p, there, exist, of_block, shift, total);
      }
      if (any) add_positives(p, bits, shift, of_block, positives, count);
      // One of the four lanes that have a text writes it; registers have no index.
      const bool lower = lane % 4 == 1;
      if (of_texts != nullptr && lane % 4 < 2 && (lower ? there[1] : there[0]))
        of_texts[static_cast<i64>(blockIdx.x) * texts + first_text + text_of(lower)] = {
            lower ? shift[1] : shift[0], lower ? total[1] : total[0],
            lower ? positives[1] : positives[0], lower ? count[1] : count[0]};
    }
    of_block.settle();
    if (lane == 0) barrier_arrive(ring.done);
    const int image = first_image + threadIdx.x % 128;
    if (warp >= 4 || image >= images) return;
    barrier_wait(ring.done, 0);
    Sums sums = nothing();
    for (int w = 0; w < RING_WARPS; ++w) add(sums, kept[w * TILE + threadIdx.x % 128]);
    of_images[static_cast<i64>(blockIdx.y) * images + image] = sums;
  }
#endif
}

}  // namespace mpm_nce

INSTANTIATE(mpm_nce::forward_tiles<BFloat16, true, 1>);
INSTANTIATE(mpm_nce::forward_tiles<BFloat16, true, 2>);
INSTANTIATE(mpm_nce::forward_tiles<BFloat16, false, 1>);
INSTANTIATE(mpm_nce::forward_tiles<BFloat16, false, 2>);
INSTANTIATE(mpm_nce::forward_tiles<Half, true, 1>);
INSTANTIATE(mpm_nce::forward_tiles<Half, true, 2>);
INSTANTIATE(mpm_nce::forward_tiles<Half, false, 1>);
INSTANTIATE(mpm_nce::forward_tiles<Half, false, 2>);
