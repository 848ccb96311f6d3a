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

  Cut(int64_t total_, int64_t size_)
      : total(total_), size(size_), count(ceil_div(total_, size_)) {}
  Range part(int64_t k) const { return {k * size, smaller(total, (k + 1) * size)}; }
};

// At least `parts` parts where that leaves something to each, of at most `most` each, but never
// more than 32: their sums are kept.
inline Cut cut(int64_t total, int64_t parts, int64_t most) {
  const int64_t size = smaller(ceil_div(total, parts), most), least = ceil_div(total, 32);
  return {total, size > least ? size : least};
}

// Right panels in a block that stays in the second-level cache (1 MB of 2) while rows pass by.
inline int64_t panels_in_cache(int64_t words) {
  const int64_t panels = (int64_t{1} << 20) / (words * kTileCols * 4);
  return panels < 1 ? 1 : smaller(panels, 16);
}

struct Shape {
  int64_t row_panels, column_panels, rows, columns;  // rows and columns padded to whole panels
  int64_t block;                                     // right panels in the cache
  int64_t dim;

  explicit Shape(const MpmNceInput& in)
      : row_panels(ceil_div(in.rows, kTileRows)),
        column_panels(ceil_div(in.columns, kTileCols)),
        rows(row_panels * kTileRows),
        columns(column_panels * kTileCols),
        block(panels_in_cache(in.dim)),
        dim(in.dim) {}
};

// x as left panels and y as right panels [dim] by rows; the largest squared norm by task.
struct Packed {
  float *left, *right;
  double* squares;
};

constexpr int64_t kPackRows = 96;  // a multiple of every tile's rows and columns

inline Packed carve_packed(Carver& carver, const MpmNceInput& in, const Shape& shape) {
  const int64_t tasks = ceil_div(in.rows, kPackRows) + ceil_div(in.columns, kPackRows);
  return {carver.take<float>(shape.rows * shape.dim), carver.take<float>(shape.columns * shape.dim),
          carver.take<double>(tasks)};
}

template <int kWidth, class T>
double pack_some(const Matrix& x, int64_t begin, int64_t rows, int64_t dim, float* panels) {
  double largest = 0;
  for (int64_t i = begin; i < smaller(rows, begin + kPackRows); i += kWidth) {
    const double square = pack_rows<kWidth, T>(x, i, rows, dim, panels + i * dim);
    largest = largest >= square || largest != largest ? largest : square;
  }
  return largest;
}

// Fill `packed`; returns a bound of all |<x_i, y_j>|, NaN or Inf if a feature is.
inline double pack(const MpmNceInput& in, const Packed& packed) {
  const int64_t x_tasks = ceil_div(in.rows, kPackRows), y_tasks = ceil_div(in.columns, kPackRows);
  ROBUSTFT_DISPATCH(in.dtype, T, {
    auto body = [&](int64_t task, int) {
      const int64_t begin = (task < x_tasks ? task : task - x_tasks) * kPackRows;
      packed.squares[task] =
          task < x_tasks ? pack_some<kTileRows, T>(in.x, begin, in.rows, in.dim, packed.left)
                         : pack_some<kTileCols, T>(in.y, begin, in.columns, in.dim, packed.right);
    };
    parallel(x_tasks + y_tasks, in.threads, body);
  })
  double largest[2] = {};
  for (int64_t task = 0; task < x_tasks + y_tasks; ++task) {
    double& top = largest[task >= x_tasks];
    const double square = packed.squares[task];
    top = top >= square || top != top ? top : square;
  }
  return std::sqrt(largest[0]) * std::sqrt(largest[1]);
}

// The dot products of a tile: computed from panels, into `kept` where there is one; or read from
// it. `kept` is [column panel][row panel][tile].
struct Products {
  const float *left, *right;
  int64_t dim, row_panels;
  float* kept;
  bool filled;

  const float* tile(int64_t row_panel, int64_t column_panel, float* scratch) const {
    float* to = scratch;
    if (kept != nullptr) to = kept + (column_panel * row_panels + row_panel) * kTileSize;
    if (filled) return to;
    Fp32Tile::multiply(left + row_panel * kTileRows * dim, right + column_panel * kTileCols * dim,
                       dim, Vec{}, Vec{}, [to](int r, Vec first, Vec second) {
                         store(to + r * kTileCols, first);
                         store(to + r * kTileCols + W, second);
                       });
    return to;
  }
};

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
