// The products of mpm_nce by register tiles of float32: tiles of kTileRows × kTileCols.
#pragma once

#include "pack.hpp"

namespace robustft {
namespace {

constexpr int kSweepRows = kTileRows;
using PanelWord = float;
struct SweepScope {
  SweepScope() {}
};

// Words of one row (or column) in a panel by rows: its dimensions, up to a multiple of 4.
inline int64_t panel_words(DType, int64_t dim) { return ceil_div(dim, 4) * 4; }

// Rows [first, first + kWidth) as a panel [words][kWidth].
template <int kWidth, class T>
void pack_rows(const Matrix& x, int64_t first, int64_t rows, int64_t dim, float* panel) {
  walk_rows<kWidth, T>(x, first, rows, dim, [&](const float* slice, int64_t d0, int64_t width) {
    transpose_slice<kWidth>(slice, width, panel + d0 * kWidth);
  });
}
template <class T>
void pack_left(const Matrix& x, int64_t first, int64_t rows, int64_t dim, PanelWord* panel) {
  pack_rows<kTileRows, T>(x, first, rows, dim, panel);
}
template <class T>
void pack_right(const Matrix& x, int64_t first, int64_t rows, int64_t dim, PanelWord* panel) {
  pack_rows<kTileCols, T>(x, first, rows, dim, panel);
}

// One tile of products at `to`. Not inlined: among other code the compiler would run out of
// registers for the sums (measured: a quarter of the time).
__attribute__((noinline)) void multiply_tile(const PanelWord* left, const PanelWord* right,
                                             int64_t words, DType, float* to) {
  Fp32Tile::multiply(left, right, words, Vec{}, Vec{}, [to](int r, Vec first, Vec second) {
    store(to + r * kTileCols, first);
    store(to + r * kTileCols + W, second);
  });
}

// The same of rows where they lie, which need no packing then: while their pieces fit the sets of
// the first-level cache, and where a broadcast loads from memory.
#if defined(__aarch64__)
constexpr bool kTakesRows = false;
#else
constexpr bool kTakesRows = true;
#endif
inline bool rows_in_place(const Matrix& x, DType dtype) {
  return kTakesRows && dtype == DType::float32 && x.stride % 1024 != 0;
}
__attribute__((noinline)) void multiply_rows(const Matrix& x, int64_t first, const PanelWord* right,
                                             int64_t words, float* to) {
  Sums<Fp32> sums{};
  accumulate_rows<Fp32>(sums, static_cast<const float*>(x.data) + first * x.stride, x.stride, right,
                        words);
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
    store(to + r * kTileCols, sums.at[r][0]);
    store(to + r * kTileCols + W, sums.at[r][1]);
  }
}

// Panels along the dimensions: [panel][row][kWidth], a panel of `height` rows.
template <int kWidth>
int64_t by_dims_words(int64_t height, int64_t dim) {
  return ceil_div(dim, kWidth) * kWidth * height;
}
inline int64_t left_by_dims_words(DType, int64_t rows, int64_t dim) {
  return by_dims_words<kTileRows>(rows, dim);
}
inline int64_t right_by_dims_words(DType, int64_t columns, int64_t dim) {
  return by_dims_words<kTileCols>(ceil_div(columns, kTileCols) * kTileCols, dim);
}

// Rows [first, last) of them, zeros beyond dim. Eight panels at a time, so that few streams are
// written at once.
template <int kWidth, class T>
void pack_by_dims(const Matrix& x, Range some, int64_t rows, int64_t dim, int64_t height,
                  float* panels) {
  constexpr int64_t kStep = 8 * kWidth;
  alignas(64) float slice[kStep];
  for (int64_t d0 = 0; d0 < dim; d0 += kStep) {
    const int64_t width = smaller(kStep, dim - d0);
    for (int64_t i = some.begin; i < some.end; ++i) {
      for (int64_t k = i < rows ? width : 0; k < kStep; ++k) slice[k] = 0;
      if (i < rows) {
        const T* row = static_cast<const T*>(x.data) + i * x.stride + d0;
        sweep(0, width, [&](int64_t k, auto part) { store(slice + k, load(row + k, part), part); });
      }
      for (int64_t k = 0; k < width; k += kWidth) {
        float* to = panels + ((d0 + k) / kWidth * height + i) * kWidth;
        std::memcpy(to, slice + k, kWidth * sizeof(float));
      }
    }
  }
}
template <class T>
void pack_left_by_dims(const Matrix& x, Range some, int64_t rows, int64_t dim, PanelWord* panels) {
  pack_by_dims<kTileRows, T>(x, {some.begin, smaller(some.end, rows)}, rows, dim, rows, panels);
}
// A panel goes on to a multiple of kTileCols rows, with zeros.
template <class T>
void pack_right_by_dims(const Matrix& y, Range some, int64_t rows, int64_t dim, PanelWord* panels) {
  const int64_t height = ceil_div(rows, kTileCols) * kTileCols;
  pack_by_dims<kTileCols, T>(y, {some.begin, smaller(some.end, height)}, rows, dim, height, panels);
}

// Candidates or anchors (the inner dimension of a gradient's product) before its sums go to memory:
// 16 panels.
inline int64_t inner_steps(DType) { return 16; }
constexpr int64_t kStepRows = kTileCols;

// ∂Z of a block of rows as [column panel][row][kTileCols]: that is a right panel, and read across
// it is a left one, so neither product packs it again.
struct GradZ {
  float* words;
  int64_t height;  // rows of a panel, as stored

  // Panels lie 12 rows (1.5 KB) past a multiple of 4 KB apart, so that the pieces of a left tile
  // fall into different sets of the first-level cache; that is room for a tile's last rows, too.
  static int64_t height_of(int64_t rows) { return ceil_div(rows, 32) * 32 + 12; }
  static int64_t count_words(DType, int64_t rows, int64_t columns) {
    return height_of(rows) * columns;
  }
  GradZ(float* words_, int64_t rows, int64_t, DType) : words(words_), height(height_of(rows)) {}

  // Where a tile is to be written before `put`.
  float* place(int64_t row_panel, int64_t column_panel, float*) const {
    return words + (column_panel * height + row_panel * kSweepRows) * kTileCols;
  }
  void put(int64_t, int64_t, const float*, DType) const {}
};

// to[r][0 … kTileCols) += sums, or = if they are the first.
inline void add_sums(const Sums<Fp32>& sums, float* to, int64_t stride, bool first) {
  for (int r = 0; r < kTileRows; ++r) {
    for (int h = 0; h < 2; ++h) {
      float* at = to + r * stride + h * W;
      store(at, first ? sums.at[r][h] : load(at) + sums.at[r][h]);
    }
  }
}

inline void fetch(const float* to, int64_t stride) {
  for (int r = 0; r < kTileRows; ++r) {
    for (int k = 0; k < kTileCols; k += 16) __builtin_prefetch(to + r * stride + k, 1);
  }
}

// A tile of ∂Z·y: row panel r of the block, column panels `across`, dimensions panel d.
inline void add_to_grad_x(const GradZ& grad, int64_t r, Range across, const PanelWord* y_dims,
                          int64_t d, int64_t column_panels, DType, float* to, int64_t stride) {
  fetch(to, stride);
  Sums<Fp32> sums{};
  const float* left = grad.words + (across.begin * grad.height + r * kTileRows) * kTileCols;
  const float* right = y_dims + (d * column_panels + across.begin) * kTileCols * kTileCols;
  for (int64_t c = across.begin; c < across.end; ++c) {
    accumulate<Fp32, kTileCols, 1>(sums, left, right, kTileCols);
    left += grad.height * kTileCols;
    right += kTileCols * kTileCols;
  }
  add_sums(sums, to, stride, across.begin == 0);
}

// A tile of xᵀ·∂Z: dimensions panel d, column panel c, rows `down` of the batch, whose block begins
// at `block`.
inline void add_to_grad_y(const GradZ& grad, int64_t block, Range down, int64_t c,
                          const PanelWord* x_dims, int64_t d, int64_t rows, DType, float* to,
                          int64_t stride) {
  fetch(to, stride);
  Sums<Fp32> sums{};
  accumulate<Fp32>(sums, x_dims + (d * rows + down.begin) * kTileRows,
                   grad.words + (c * grad.height + down.begin - block) * kTileCols,
                   down.end - down.begin);
  add_sums(sums, to, stride, down.begin == 0);
}

}  // namespace
}  // namespace robustft
