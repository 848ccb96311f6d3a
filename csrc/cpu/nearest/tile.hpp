// The tile that screens for `nearest` on an instruction set, and what its files share.
#pragma once

#include "../tile.hpp"
#include "nearest.hpp"

namespace robustft {
namespace {

#ifdef ROBUSTFT_HAS_INT8
using Tile = Int8Tile;
constexpr bool kInt8 = true;
constexpr int kLargest = Int8::kLargest;
#else
using Tile = Fp32Tile;
constexpr bool kInt8 = false;
constexpr int kLargest = 0;
#endif
using Word = Tile::Word;
constexpr int64_t kMultiple = kInt8 ? 16 : 1;  // of words: a step of AMX

inline int64_t words_of(int64_t dim) { return nearest_words(Tile::kElements, kMultiple, dim); }
inline int64_t panels_of(int64_t rows) { return nearest_panels(kTileCols, rows); }

// Bits of the lanes where not x < y: a NaN counts.
inline uint32_t not_below(Vec x, Vec y) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(y), _CMP_NLT_UQ);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(
      _mm256_cmp_ps(reinterpret_cast<__m256>(x), reinterpret_cast<__m256>(y), _CMP_NLT_UQ)));
#else
  const IVec no = ~(x < y);
  uint32_t bits = 0;
  for (int lane = 0; lane < W; ++lane) bits |= static_cast<uint32_t>(no[lane] & 1) << lane;
  return bits;
#endif
}

inline int lowest_bit(uint32_t x) { return __builtin_ctz(x); }

}  // namespace
}  // namespace robustft
