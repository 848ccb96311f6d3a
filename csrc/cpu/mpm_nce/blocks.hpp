// The operands of mpm_nce as bfloat16 parts, for processors that multiply those: by AMX (amx.hpp),
// or by AVX512-BF16 where the inputs are bfloat16 (bf16.hpp).
//
// Everything is stored in blocks of 32 × 32 numbers, [part][512 words], one step of a product:
// on the left [row][16 words], on the right [word][32 columns]; a word holds two neighbours along
// the inner dimension, the even one in its lower half.
#pragma once

#ifdef ROBUSTFT_HAS_AMX
#include "amx.hpp"
#else
#include "bf16.hpp"
#endif
#include "moves.hpp"

namespace robustft {
namespace {

constexpr int kSweepRows = 32;
constexpr int64_t kStepRows = 32;
using PanelWord = uint32_t;
static_assert(kTileCols == 32 && W == 16, "");

// The nearest bfloat16 of `low` and then of `high`; and lanes 0, 16, 1, 17, … of such a vector.
inline UVec to_bf16(Vec low, Vec high) {
  return reinterpret_cast<UVec>(
      _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low)));
}
inline UVec interleave(UVec halves) {
  uint16_t order[32];
  for (uint16_t k = 0; k < 16; ++k) {
    order[2 * k] = k;
    order[2 * k + 1] = static_cast<uint16_t>(16 + k);
  }
  __m512i lanes;
  std::memcpy(&lanes, order, sizeof lanes);
  return reinterpret_cast<UVec>(_mm512_permutexvar_epi16(lanes, reinterpret_cast<__m512i>(halves)));
}

// 32 × 32 floats, rows `pitch` apart, as a left block (rows are rows) or a right one (rows are the
// inner dimension).
template <int kCount>
void to_left(const float* from, int64_t pitch, uint32_t* to) {
  for (int64_t r = 0; r < 32; ++r) {
    if constexpr (kCount == 1) {
      const UVec row = to_bf16(load(from + r * pitch), load(from + r * pitch + W));
      std::memcpy(to + r * 16, &row, sizeof row);
      continue;
    }
    for (int64_t k = 0; k < 32; k += W) {
      Vec rest = load(from + r * pitch + k);
      for (int part = 0; part < kCount; ++part) {
        store_bits(to + part * kPart + r * 16 + k / 2, take_part(rest) >> 16);
      }
    }
  }
}
template <int kCount>
void to_right(const float* from, int64_t pitch, uint32_t* to) {
  for (int64_t k = 0; k < 16; ++k) {
    for (int64_t c = 0; c < 32; c += W) {
      Vec even = load(from + 2 * k * pitch + c), odd = load(from + (2 * k + 1) * pitch + c);
      if constexpr (kCount == 1) {
        const UVec words = interleave(to_bf16(even, odd));
        std::memcpy(to + k * 32 + c, &words, sizeof words);
        continue;
      }
      for (int part = 0; part < kCount; ++part) {
        const UVec word = take_part(even) >> 16 | take_part(odd);
        std::memcpy(to + part * kPart + k * 32 + c, &word, sizeof word);
      }
    }
  }
}

// Words of one row (or column) in a panel by rows, [step along the dimensions][block].
inline int64_t panel_words(DType dtype, int64_t dim) {
  return ceil_div(dim, 32) * parts_of(dtype) * 16;
}

template <class T>
void pack_left(const Matrix& x, int64_t first, int64_t rows, int64_t dim, PanelWord* panel) {
  if constexpr (kParts<T> == 1) return move_left(x, first, rows, dim, panel);
  walk_rows<32, T>(x, first, rows, dim, [&](const float* slice, int64_t d0, int64_t width) {
    for (int64_t i = 0; i < width; i += 32) {
      to_left<kParts<T>>(slice + i, kPitch, panel + (d0 + i) / 32 * kParts<T> * kPart);
    }
  });
}
template <class T>
void pack_right(const Matrix& x, int64_t first, int64_t rows, int64_t dim, PanelWord* panel) {
  if constexpr (kParts<T> == 1) return move_right(x, first, rows, dim, panel);
  walk_rows<32, T>(x, first, rows, dim, [&](const float* slice, int64_t d0, int64_t width) {
    alignas(64) float columns[kSlice * 32];
    transpose_slice<32>(slice, ceil_div(width, 32) * 32, columns);
    for (int64_t i = 0; i < width; i += 32) {
      to_right<kParts<T>>(columns + i * 32, 32, panel + (d0 + i) / 32 * kParts<T> * kPart);
    }
  });
}

inline void multiply_tile(const PanelWord* left, const PanelWord* right, int64_t words, DType dtype,
                          float* to) {
  with_parts(dtype, [&](auto count) {
    multiply_blocks<count.value>(left, right, words / (16 * count.value), to);
  });
}

// Blocks are packed always.
inline bool rows_in_place(const Matrix&, DType) { return false; }
inline void multiply_rows(const Matrix&, int64_t, const PanelWord*, int64_t, float*) {}

// Panels along the dimensions: [panel of 32 dimensions][step of 32 rows][block].
inline int64_t left_by_dims_words(DType dtype, int64_t rows, int64_t dim) {
  return ceil_div(dim, 32) * ceil_div(rows, 32) * parts_of(dtype) * kPart;
}
inline int64_t right_by_dims_words(DType dtype, int64_t columns, int64_t dim) {
  return left_by_dims_words(dtype, columns, dim);
}
template <class T>
void pack_left_by_dims(const Matrix& x, Range some, int64_t rows, int64_t dim, PanelWord* panels) {
  for (int64_t i = some.begin; i < smaller(some.end, rows); i += 32) {
    if constexpr (kParts<T> == 1) {
      move_left_by_dims(x, i, rows, dim, ceil_div(rows, 32), panels + i / 32 * kPart);
      continue;
    }
    walk_rows<32, T>(x, i, rows, dim, [&](const float* slice, int64_t d0, int64_t width) {
      alignas(64) float columns[kSlice * 32];
      transpose_slice<32>(slice, ceil_div(width, 32) * 32, columns);
      for (int64_t k = 0; k < width; k += 32) {
        const int64_t block = (d0 + k) / 32 * ceil_div(rows, 32) + i / 32;
        to_left<kParts<T>>(columns + k * 32, 32, panels + block * kParts<T> * kPart);
      }
    });
  }
}
template <class T>
void pack_right_by_dims(const Matrix& y, Range some, int64_t rows, int64_t dim, PanelWord* panels) {
  for (int64_t i = some.begin; i < smaller(some.end, rows); i += 32) {
    if constexpr (kParts<T> == 1) {
      move_right_by_dims(y, i, rows, dim, ceil_div(rows, 32), panels + i / 32 * kPart);
      continue;
    }
    walk_rows<32, T>(y, i, rows, dim, [&](const float* slice, int64_t d0, int64_t width) {
      for (int64_t k = 0; k < width; k += 32) {
        const int64_t block = (d0 + k) / 32 * ceil_div(rows, 32) + i / 32;
        to_right<kParts<T>>(slice + k, kPitch, panels + block * kParts<T> * kPart);
      }
    });
  }
}

// Steps of a gradient's product before its sums go to memory (measured: half as many cost 4 %
// more). Blocks of one operand then take as much of the cache for every type.
inline int64_t inner_steps(DType dtype) { return 96 / parts_of(dtype); }

// ∂Z of a block of rows, twice: as left blocks [row panel][column panel], as right ones [column
// panel][row panel].
struct GradZ {
  uint32_t *left, *right;
  int64_t row_panels, column_panels;

  static int64_t count_words(DType dtype, int64_t rows, int64_t columns) {
    return 2 * ceil_div(rows, 32) * (columns / 32) * parts_of(dtype) * kPart;
  }
  GradZ(uint32_t* words, int64_t rows, int64_t columns, DType dtype)
      : left(words),
        right(words + count_words(dtype, rows, columns) / 2),
        row_panels(ceil_div(rows, 32)),
        column_panels(columns / 32) {}

  float* place(int64_t, int64_t, float* scratch) const { return scratch; }
  void put(int64_t r, int64_t c, const float* tile, DType dtype) const {
    with_parts(dtype, [&](auto count) {
      constexpr int64_t kBlock = count.value * kPart;
      to_left<count.value>(tile, 32, left + (r * column_panels + c) * kBlock);
      to_right<count.value>(tile, 32, right + (c * row_panels + r) * kBlock);
    });
  }
};

// to[r][0 … 32) += tile, or = if it is the first.
inline void add_tile_to(const float* tile, float* to, int64_t stride, bool first) {
  for (int64_t r = 0; r < 32; ++r) {
    for (int64_t k = 0; k < 32; k += W) {
      const Vec x = load(tile + r * 32 + k);
      store(to + r * stride + k, first ? x : load(to + r * stride + k) + x);
    }
  }
}

inline void fetch(const float* to, int64_t stride) {
  for (int64_t r = 0; r < 32; ++r) {
    __builtin_prefetch(to + r * stride, 1);
    __builtin_prefetch(to + r * stride + 16, 1);
  }
}

// A tile of ∂Z·y: row panel r of the block, column panels `across`, dimensions panel d.
inline void add_to_grad_x(const GradZ& grad, int64_t r, Range across, const PanelWord* y_dims,
                          int64_t d, int64_t column_panels, DType dtype, float* to,
                          int64_t stride) {
  alignas(64) float tile[32 * 32];
  fetch(to, stride);
  with_parts(dtype, [&](auto count) {
    constexpr int64_t kBlock = count.value * kPart;
    multiply_blocks<count.value>(grad.left + (r * column_panels + across.begin) * kBlock,
                                 y_dims + (d * column_panels + across.begin) * kBlock,
                                 across.end - across.begin, tile);
  });
  add_tile_to(tile, to, stride, across.begin == 0);
}

// A tile of xᵀ·∂Z: dimensions panel d, column panel c, rows `down` of the batch, whose block begins
// at `block`; both are multiples of 32.
inline void add_to_grad_y(const GradZ& grad, int64_t block, Range down, int64_t c,
                          const PanelWord* x_dims, int64_t d, int64_t rows, DType dtype, float* to,
                          int64_t stride) {
  alignas(64) float tile[32 * 32];
  fetch(to, stride);
  with_parts(dtype, [&](auto count) {
    constexpr int64_t kBlock = count.value * kPart;
    const int64_t first = (down.begin - block) / 32;
    multiply_blocks<count.value>(x_dims + (d * ceil_div(rows, 32) + down.begin / 32) * kBlock,
                                 grad.right + (c * grad.row_panels + first) * kBlock,
                                 ceil_div(down.end - down.begin, 32), tile);
  });
  add_tile_to(tile, to, stride, down.begin == 0);
}

}  // namespace
}  // namespace robustft
