// Products of blocks by AVX512-BF16: 8 rows × 32 columns of sums in registers, bfloat16 inputs
// alone. (Two parts make four products, at best twice the time of one by float32 registers.)
#pragma once

#include "parts.hpp"

namespace robustft {
namespace {

struct SweepScope {
  SweepScope() {}
};

// 16 sums are enough to hide the latency of 6 cycles.
constexpr int kGroupRows = 8;

// A tile of products over `steps` blocks, at `to` [32][32].
template <int kCount>
__attribute__((noinline)) void multiply_blocks(const uint32_t* left, const uint32_t* right,
                                               int64_t steps, float* to) {
  static_assert(kCount == 1, "");
  for (int row = 0; row < 32; row += kGroupRows) {
    Sums<Bf16, kGroupRows> sums{};
    for (int64_t s = 0; s < steps; ++s) {
      accumulate<Bf16, 16, 1>(sums, left + s * kPart + row * 16, right + s * kPart, 16);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kGroupRows; ++r) {
      store(to + (row + r) * kTileCols, sums.at[r][0]);
      store(to + (row + r) * kTileCols + W, sums.at[r][1]);
    }
  }
}

}  // namespace
}  // namespace robustft
