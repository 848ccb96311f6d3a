// How mpm_nce is cut: panels, tasks, and the dot products of a tile, computed or kept.
#pragma once

#include <cmath>

#include "mpm_nce.hpp"
#include "mpm_nce_tile.hpp"
#include "parallel.hpp"

namespace robustft {
namespace {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// Hands out pieces of a workspace; from a null base it measures one.
class Carver {
 public:
  explicit Carver(void* base) : at_(static_cast<char*>(base)), base_(at_) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(at_);
    at_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return piece;
  }
  int64_t bytes() const { return at_ - base_; }

 private:
  char *at_, *base_;
};

struct Range {
  int64_t begin, end;
};

// `total` things in `count` parts of `size` (the last one may be smaller).
struct Cut {
  int64_t total, size, count;

  Cut(int64_t total_, int64_t size_) : total(total_), size(size_), count(ceil_div(total_, size_)) {}
  Range part(int64_t k) const { return {k * size, smaller(total, (k + 1) * size)}; }
};

// At least `parts` parts where that leaves something to each, of at most `most` each, but never
// more than 32: their sums are kept.
inline Cut cut(int64_t total, int64_t parts, int64_t most) {
  const int64_t size = smaller(ceil_div(total, parts), most), least = ceil_div(total, 32);
  return {total, size > least ? size : least};
}

// Words of a packed panel's row or column, and how many panels of words there are.
#ifdef ROBUSTFT_HAS_AMX
using PanelWord = uint32_t;
inline int64_t panel_words(const MpmNceInput& in) {
  int64_t words = part_words(in.dim);
  ROBUSTFT_DISPATCH(in.dtype, T, { words *= kParts<T>; })
  return words;
}
#else
using PanelWord = float;
inline int64_t panel_words(const MpmNceInput& in) { return ceil_div(in.dim, 4) * 4; }
#endif

struct Shape {
  int64_t row_panels, column_panels, rows, columns;  // rows and columns padded to whole panels
  int64_t words;                                     // of a row or column in a panel
  int64_t block;  // right panels that stay in the second-level cache (1 MB of 2), while rows pass

  explicit Shape(const MpmNceInput& in)
      : row_panels(ceil_div(in.rows, kSweepRows)),
        column_panels(ceil_div(in.columns, kTileCols)),
        rows(row_panels * kSweepRows),
        columns(column_panels * kTileCols),
        words(panel_words(in)),
        block(smaller((int64_t{1} << 20) / (words * kTileCols * 4) + 1, 16)) {}
};

#ifdef ROBUSTFT_HAS_AMX
using SweepScope = Bf16Tile::Scope;

// acc += left · right, 32 × 32, over one part of each; tiles 4 to 7 hold the operands.
inline void multiply_loaded() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}
inline void load_left(const uint32_t* left, int64_t words) {
  _tile_loadd(4, left, words * 4);
  _tile_loadd(5, left + 16 * words, words * 4);
}
inline void load_right(const uint32_t* right) {
  _tile_loadd(6, right, kTileCols * 4);
  _tile_loadd(7, right + W, kTileCols * 4);
}

// One tile of products at `to`. With x = x1 + x2 + x3, each of 8 bits, x·y is the sum of the pairs
// (p, q) with p + q ≤ 4: what is left out is below 2^-25 |x||y|, less than the rounding of one
// float32 product. The small pairs come first, over all words: then only (1, 1) is added at full
// size, and the sum is rounded as often as a chain of float32 products is.
template <int kCount>
__attribute__((noinline)) void multiply_parts(const uint32_t* left, const uint32_t* right,
                                              int64_t words, float* to) {
  const int64_t part = 32 * words;
  asm volatile("" ::: "memory");  // gcc's tile loads do not say what they read
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  if (kCount > 1) {
    for (int64_t s = 0; s < words; s += 16) {
      const uint32_t *l = left + s, *r = right + s * kTileCols;
      load_right(r);
      if (kCount == 3) {  // (3, 1)
        load_left(l + 2 * part, words);
        multiply_loaded();
      }
      load_left(l + part, words);  // (2, 1)
      multiply_loaded();
      load_right(r + part);  // (2, 2)
      multiply_loaded();
      load_left(l, words);  // (1, 2)
      multiply_loaded();
      if (kCount == 3) {  // (1, 3)
        load_right(r + 2 * part);
        multiply_loaded();
      }
    }
  }
  for (int64_t s = 0; s < words; s += 16) {
    load_left(left + s, words);
    load_right(right + s * kTileCols);
    multiply_loaded();
  }
  _tile_stored(0, to, kTileCols * 4);
  _tile_stored(1, to + W, kTileCols * 4);
  _tile_stored(2, to + 16 * kTileCols, kTileCols * 4);
  _tile_stored(3, to + 16 * kTileCols + W, kTileCols * 4);
  asm volatile("" ::: "memory");
}

inline void multiply_tile(const PanelWord* left, const PanelWord* right, int64_t words, DType dtype,
                          float* to) {
  if (dtype == DType::float32) return multiply_parts<3>(left, right, words / 3, to);
  if (dtype == DType::float16) return multiply_parts<2>(left, right, words / 2, to);
  multiply_parts<1>(left, right, words, to);
}
#else
struct SweepScope {
  SweepScope() {}
};

// One tile of products at `to`. Not inlined: among other code the compiler would run out of
// registers for the sums (measured: a quarter of the time).
__attribute__((noinline)) void multiply_tile(const PanelWord* left, const PanelWord* right,
                                             int64_t words, DType, float* to) {
  Fp32Tile::multiply(left, right, words, Vec{}, Vec{}, [to](int r, Vec first, Vec second) {
    store(to + r * kTileCols, first);
    store(to + r * kTileCols + W, second);
  });
}
#endif

// The dot products of a tile: computed from panels, into `kept` where there is one; or read from
// it. `kept` is [column panel][row panel][tile].
struct Products {
  const PanelWord *left, *right;
  int64_t words, row_panels;
  DType dtype;
  float* kept;
  bool filled;

  const float* tile(int64_t row_panel, int64_t column_panel, float* scratch) const {
    float* to = scratch;
    if (kept != nullptr) to = kept + (column_panel * row_panels + row_panel) * kTileSize;
    if (!filled) {
      multiply_tile(left + row_panel * kSweepRows * words, right + column_panel * kTileCols * words,
                    words, dtype, to);
    }
    return to;
  }
};

// x as left panels and y as right ones, by rows; the largest squared norm by task.
struct Packed {
  PanelWord *left, *right;
  double* squares;

  Products products(const MpmNceInput& in, const Shape& shape, float* kept, bool filled) const {
    return {left, right, shape.words, shape.row_panels, in.dtype, kept, filled};
  }
};

constexpr int64_t kPackRows = 96;  // a multiple of every tile's rows and columns

inline Packed carve_packed(Carver& carver, const MpmNceInput& in, const Shape& shape) {
  const int64_t tasks = ceil_div(in.rows, kPackRows) + ceil_div(in.columns, kPackRows);
  return {carver.take<PanelWord>(shape.rows * shape.words),
          carver.take<PanelWord>(shape.columns * shape.words), carver.take<double>(tasks)};
}

template <class T>
double pack_left(const Matrix& x, int64_t first, int64_t rows, int64_t dim, PanelWord* panel) {
#ifdef ROBUSTFT_HAS_AMX
  return pack_left_parts<T>(x, first, rows, dim, panel);
#else
  return pack_rows<kTileRows, T>(x, first, rows, dim, panel);
#endif
}

template <class T>
double pack_right(const Matrix& x, int64_t first, int64_t rows, int64_t dim, PanelWord* panel) {
#ifdef ROBUSTFT_HAS_AMX
  return pack_right_parts<T>(x, first, rows, dim, panel);
#else
  return pack_rows<kTileCols, T>(x, first, rows, dim, panel);
#endif
}

inline double larger(double top, double x) { return top >= x || top != top ? top : x; }

// Fill `packed`; returns a bound of all |<x_i, y_j>|, NaN or Inf if a feature is.
inline double pack(const MpmNceInput& in, const Shape& shape, const Packed& packed) {
  const int64_t x_tasks = ceil_div(in.rows, kPackRows), y_tasks = ceil_div(in.columns, kPackRows);
  ROBUSTFT_DISPATCH(in.dtype, T, {
    auto body = [&](int64_t task, int) {
      const bool left = task < x_tasks;
      const int64_t begin = (left ? task : task - x_tasks) * kPackRows,
                    n = left ? in.rows : in.columns;
      double top = 0;
      for (int64_t i = begin; i < smaller(n, begin + kPackRows);
           i += left ? kSweepRows : kTileCols) {
        top = larger(top, left ? pack_left<T>(in.x, i, n, in.dim, packed.left + i * shape.words)
                               : pack_right<T>(in.y, i, n, in.dim, packed.right + i * shape.words));
      }
      packed.squares[task] = top;
    };
    parallel(x_tasks + y_tasks, in.threads, body);
  })
  double largest[2] = {};
  for (int64_t task = 0; task < x_tasks + y_tasks; ++task) {
    double& top = largest[task >= x_tasks];
    top = larger(top, packed.squares[task]);
  }
  return std::sqrt(largest[0]) * std::sqrt(largest[1]);
}

// exponents of a whole batch: t = Z·log2 e − shift, `negative` [columns] filled.
inline Line make_line(const MpmNceInput& in, double shift, float* negative, int64_t columns) {
  const double slope = in.scale * kLog2E;
  const float high = static_cast<float>(slope);
  const float low = static_cast<float>(slope - static_cast<double>(high));
  const float offset = static_cast<float>(slope * in.margin - shift);
  for (int64_t j = 0; j < columns; ++j) negative[j] = j < in.columns ? offset : 2 * kNowhere;
  return {high, low, static_cast<float>(-shift), negative};
}

inline int64_t anchors(const int32_t* positives, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += positives[i] > 0;
  return count;
}

}  // namespace
}  // namespace robustft
