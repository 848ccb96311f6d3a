// bfloat16 features into blocks (blocks.hpp) without arithmetic: a word is two neighbours of a row,
// as they lie in memory, or of a column.
#pragma once

#include "parts.hpp"

namespace robustft {
namespace {

// Rows [first, first + 32) and dimensions [d0, d0 + 32), with zeros beyond the last, as [32][16]
// words.
inline void load_block(const Matrix& x, int64_t first, int64_t rows, int64_t d0, int64_t dim,
                       uint32_t* to) {
  const int64_t count = smaller(32, rows - first), width = smaller(32, dim - d0);
  if (count < 32 || width < 32) std::memset(to, 0, kPart * sizeof *to);
  const bf16* from = static_cast<const bf16*>(x.data) + first * x.stride + d0;
  for (int64_t r = 0; r < count; ++r, from += x.stride) {
    if (width == 32) {
      std::memcpy(to + r * 16, from, 64);
    } else {
      std::memcpy(to + r * 16, from, static_cast<size_t>(width) * sizeof *from);
    }
  }
}

// [rows][columns] words → [columns][rows].
template <int64_t kRows, int64_t kColumns>
void transpose_words(const uint32_t* from, uint32_t* to) {
  for (int64_t r = 0; r < kRows; r += 4) {
    for (int64_t c = 0; c < kColumns; c += 4) {
      transpose4(reinterpret_cast<const float*>(from + r * kColumns + c), kColumns,
                 reinterpret_cast<float*>(to + c * kRows + r), kRows);
    }
  }
}

// [32][16] words, two of a row in each → [16][32], two of a column.
inline void pair_rows(const uint32_t* from, uint32_t* to) {
  for (int64_t k = 0; k < 16; ++k) {
    const uint32_t *even = from + 2 * k * 16, *odd = even + 16;
    for (int64_t c = 0; c < 32; c += W) {
      const UVec word = load_bits(even + c / 2) | load_bits(odd + c / 2) << 16;
      std::memcpy(to + k * 32 + c, &word, sizeof word);
    }
  }
}

// Call body(block of 32 × 32 features as load_block makes it, the step along the dimensions).
template <class Body>
void walk_blocks(const Matrix& x, int64_t first, int64_t rows, int64_t dim, Body body) {
  alignas(64) uint32_t block[kPart];
  for (int64_t d0 = 0; d0 < dim; d0 += 32) {
    load_block(x, first, rows, d0, dim, block);
    body(block, d0 / 32);
  }
}

inline void move_left(const Matrix& x, int64_t first, int64_t rows, int64_t dim, uint32_t* panel) {
  for (int64_t d0 = 0; d0 < dim; d0 += 32) {
    load_block(x, first, rows, d0, dim, panel + d0 / 32 * kPart);
  }
}
inline void move_right(const Matrix& x, int64_t first, int64_t rows, int64_t dim, uint32_t* panel) {
  walk_blocks(x, first, rows, dim, [&](const uint32_t* block, int64_t step) {
    transpose_words<32, 16>(block, panel + step * kPart);
  });
}

// Panels along the dimensions are `pitch` blocks apart.
inline void move_left_by_dims(const Matrix& x, int64_t first, int64_t rows, int64_t dim,
                              int64_t pitch, uint32_t* to) {
  walk_blocks(x, first, rows, dim, [&](const uint32_t* block, int64_t step) {
    alignas(64) uint32_t pairs[kPart];
    pair_rows(block, pairs);
    transpose_words<16, 32>(pairs, to + step * pitch * kPart);
  });
}
inline void move_right_by_dims(const Matrix& x, int64_t first, int64_t rows, int64_t dim,
                               int64_t pitch, uint32_t* to) {
  walk_blocks(x, first, rows, dim, [&](const uint32_t* block, int64_t step) {
    pair_rows(block, to + step * pitch * kPart);
  });
}

}  // namespace
}  // namespace robustft
