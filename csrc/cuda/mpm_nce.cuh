// What the kernels of mpm_nce share: sums of exponentials, and which pairs are positive.
//
// Z_ij = s·log2e·(<x_i, y_j> + margin·[i, j no positive pair]), in base 2, so that an exponential
// is one instruction.
#pragma once

#include "tiles.cuh"

namespace mpm_nce {

// The products' kernels (ring.cuh) take 128 images a block, and tiles of 128 texts, 64 a
// warpgroup. Texts are the rows of a product, images its columns: a text's sums over the tile's
// images are then in four neighbouring lanes, and an image's sums stay in the registers of the
// threads that have its column, over the whole range of texts.
using Products = float[TILE / 8][4];                    // of a warpgroup's texts and all images
inline constexpr int FETCHING = 24, MULTIPLYING = 240;  // registers: 128·(24 + 2·240) of 65,536

inline constexpr float LOG2E = 1.4426950408889634f;
inline constexpr float NOWHERE = -0x1p126f;  // Z of a pair that is none: below all others, not −Inf

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// Sums of an anchor over some candidates: Σ 2^(Z − shift), Σ of the positives' Z − shift, their
// count. Nothing yet: shift −Inf.
struct __align__(16) Sums {
  float shift, total, positives, count;
};

__device__ __forceinline__ Sums nothing() { return {-infinity(), 0, 0, 0}; }

// About another shift, not below.
__device__ __forceinline__ void raise(Sums& sums, float shift) {
  const float down = sums.shift - shift;
  sums.total = sums.total == 0 ? 0 : sums.total * exp2_approx(down);
  if (sums.count > 0) sums.positives += sums.count * down;
  sums.shift = shift;
}

__device__ __forceinline__ void add(Sums& sums, Sums more) {
  const float shift = fmaxf(sums.shift, more.shift);
  if (shift == -infinity() && sums.total == 0 && more.total == 0) return;
  raise(sums, shift);
  raise(more, shift);
  sums.total += more.total;
  sums.positives += more.positives;
  sums.count += more.count;
}

// Where positives come from: 0 the diagonal, 1 labels, 2 a mask [images, texts].
struct Pairs {
  int kind;
  const i64 *image_labels, *text_labels;
  const u8* mask;
  i64 mask_stride, ignore;
  int images, texts;
};

// A thread's part of a warp's tile: texts of the rows lane/4 and lane/4 + 8 from first_text on, and
// of each 8 of the TILE images from first_image on those at 2·(lane mod 4) and next to it. Bit
// 2·n + e of a row is that of image 8·n + 2·(lane mod 4) + e.
__device__ __forceinline__ int image_of(int bit) {
  return bit / 2 * 8 + threadIdx.x % 4 * 2 + bit % 2;
}

__device__ __forceinline__ int text_of(int half) { return threadIdx.x % 32 / 4 + half * 8; }

// The bits of the images that there are.
__device__ __forceinline__ u32 existing(int count) {
  u32 bits = 0;
#pragma unroll
  for (int bit = 0; bit < 32; ++bit) bits |= u32(image_of(bit) < count) << bit;
  return bits;
}

// The bit of image `at` of the tile, if it is this thread's.
__device__ __forceinline__ u32 own_bit(int at) {
  const bool mine = at >= 0 && at < TILE && at % 8 / 2 == int(threadIdx.x % 4);
  return mine ? 1u << (at / 8 * 2 + at % 2) : 0;
}

// Whether a warp's tile may have a pair (i, i).
__device__ __forceinline__ bool on_diagonal(int first_text, int first_image) {
  return first_text < first_image + TILE && first_image < first_text + 16;
}

// The positive pairs among those that there are; with no_self, (i, i) is none.
__device__ __forceinline__ void find_positives(const Pairs& pairs, int first_text, int first_image,
                                               u32 exist, bool no_self, u32 (&bits)[2]) {
  const int text[2] = {first_text + text_of(0), first_text + text_of(1)};
  bits[0] = bits[1] = 0;
  if (pairs.kind == 0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) bits[half] = own_bit(text[half] - first_image);
  } else if (pairs.kind == 1) {
    i64 label[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      label[half] = pairs.text_labels[min(text[half], pairs.texts - 1)];
#pragma unroll 4
    for (int bit = 0; bit < 32; ++bit) {
      const i64 other = pairs.image_labels[min(first_image + image_of(bit), pairs.images - 1)];
      bits[0] |= u32(label[0] == other) << bit;
      bits[1] |= u32(label[1] == other) << bit;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (label[half] == pairs.ignore) bits[half] = 0;
  } else {
    for (int bit = 0; bit < 32; ++bit) {
      const i64 row = min(first_image + image_of(bit), pairs.images - 1) * pairs.mask_stride;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        bits[half] |= u32(pairs.mask[row + min(text[half], pairs.texts - 1)] != 0) << bit;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    bits[half] = text[half] < pairs.texts ? bits[half] & exist : 0;
    if (no_self) bits[half] &= ~own_bit(text[half] - first_image);
  }
}

}  // namespace mpm_nce
