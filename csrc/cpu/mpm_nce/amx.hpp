// Products of blocks by AMX: tiles of 32 × 32 of bfloat16 products, float32 sums.
//
// The product of two numbers is that of the pairs of their parts (p, q) with p + q ≤ 4; what that
// leaves out is below 2^-25 |x||y|, less than the rounding of one float32 product. Six products at
// AMX's rate take 0.6 of the time of one by float32 registers.
#pragma once

#include "parts.hpp"

namespace robustft {
namespace {

using SweepScope = Bf16Tile::Scope;

// Tiles 4 and 5 hold the left operand, 6 and 7 the right one, 0 to 3 the sums.
inline void load_left(const uint32_t* block) {
  _tile_loadd(4, block, 64);
  _tile_loadd(5, block + 256, 64);
}
inline void load_right(const uint32_t* block) {
  _tile_loadd(6, block, 128);
  _tile_loadd(7, block + 16, 128);
}
inline void multiply_loaded() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// A tile of products over `steps` blocks, at `to` [32][32]. The small pairs come first, over all
// steps: then only (1, 1) is added at full size, and the sum is rounded as often as a chain of
// float32 products is. The order of pairs changes one operand at a time.
template <int kCount>
__attribute__((noinline)) void multiply_blocks(const uint32_t* left, const uint32_t* right,
                                               int64_t steps, float* to) {
  asm volatile("" ::: "memory");  // gcc's tile loads do not say what they read
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  if (kCount > 1) {
    constexpr int64_t kStep = kCount * kPart, kPairs = kCount == 3 ? 5 : 3;
    for (int64_t s = 0; s < steps; ++s) {
      const uint32_t *l = left + s * kStep, *r = right + s * kStep;
      // Tile loads train no prefetcher: each product fetches its share of the blocks ahead.
      int64_t next = 2 * kStep;
      const auto multiply_and_fetch = [&] {
        multiply_loaded();
        for (int64_t line = 0; line < kStep / 16 / kPairs; ++line, next += 16) {
          __builtin_prefetch(l + next);
          __builtin_prefetch(r + next);
        }
      };
      load_right(r);
      if (kCount == 3) {  // (3, 1)
        load_left(l + 2 * kPart);
        multiply_and_fetch();
      }
      load_left(l + kPart);  // (2, 1)
      multiply_and_fetch();
      load_right(r + kPart);  // (2, 2)
      multiply_and_fetch();
      load_left(l);  // (1, 2)
      multiply_and_fetch();
      if (kCount == 3) {  // (1, 3)
        load_right(r + 2 * kPart);
        multiply_and_fetch();
      }
    }
  }
  for (int64_t s = 0; s < steps; ++s) {
    load_left(left + s * kCount * kPart);
    load_right(right + s * kCount * kPart);
    multiply_loaded();
  }
  _tile_stored(0, to, 128);
  _tile_stored(1, to + 16, 128);
  _tile_stored(2, to + 16 * 32, 128);
  _tile_stored(3, to + 16 * 32 + 16, 128);
  asm volatile("" ::: "memory");
}

}  // namespace
}  // namespace robustft
