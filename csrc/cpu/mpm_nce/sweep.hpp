// How mpm_nce is cut: panels, tasks, and the dot products of a tile, computed or kept.
#pragma once

#include <cmath>

#include "../parallel.hpp"
#include "epilogue.hpp"
#include "mpm_nce.hpp"

namespace robustft {
namespace {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// Panels of rows after which a task asks whether its result is still wanted: well below a tenth of
// a second, and no cost.
constexpr int64_t kRowsBetweenStops = 16;

// Hands out pieces of a workspace; from a null base it measures one.
class Carver {
 public:
  explicit Carver(void* base) : at_(reinterpret_cast<uintptr_t>(base)), base_(at_) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(at_);
    at_ += (static_cast<uintptr_t>(count) * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
  int64_t bytes() const { return static_cast<int64_t>(at_ - base_); }

 private:
  uintptr_t at_, base_;
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

struct Shape {
  int64_t row_panels, column_panels, rows, columns;  // rows and columns padded to whole panels
  int64_t words;                                     // of a row or column in a panel
  int64_t block;  // right panels that stay in the second-level cache (1 MB of 2), while rows pass

  explicit Shape(const MpmNceInput& in)
      : row_panels(ceil_div(in.rows, kSweepRows)),
        column_panels(ceil_div(in.columns, kTileCols)),
        rows(row_panels * kSweepRows),
        columns(column_panels * kTileCols),
        words(panel_words(in.dtype, in.dim)),
        block(smaller((int64_t{1} << 20) / (words * kTileCols * 4) + 1, 16)) {}
};

// The dot products of a tile: computed from panels, into `kept` where there is one; or read from
// it. `kept` is [column panel][row panel][tile].
struct Products {
  Matrix x;
  int64_t in_place;  // so many row panels are multiplied where they lie
  int64_t dim;
  const PanelWord *left, *right;
  int64_t words, row_panels;
  DType dtype;
  float* kept;
  bool filled;

  const float* tile(int64_t row_panel, int64_t column_panel, float* scratch) const {
    float* to = scratch;
    if (kept != nullptr) to = kept + (column_panel * row_panels + row_panel) * kTileSize;
    if (filled) return to;
    const PanelWord* const panel = right + column_panel * kTileCols * words;
    if (row_panel < in_place) {
      multiply_rows(x, row_panel * kSweepRows, panel, dim, to);
    } else {
      multiply_tile(left + row_panel * kSweepRows * words, panel, words, dtype, to);
    }
    return to;
  }
};

// Panels of rows that need no packing: whole ones.
inline int64_t panels_in_place(const MpmNceInput& in) {
  return rows_in_place(in.x, in.dtype) ? in.rows / kSweepRows : 0;
}

// x as left panels and y as right ones, by rows; the largest squared norm by panel.
struct Packed {
  PanelWord *left, *right;
  double* squares;

  Products products(const MpmNceInput& in, const Shape& shape, float* kept, bool filled) const {
    return {in.x,        panels_in_place(in), in.dim,   left, right,
            shape.words, shape.row_panels,    in.dtype, kept, filled};
  }
};

inline Packed carve_packed(Carver& carver, const Shape& shape) {
  return {carver.take<PanelWord>(shape.rows * shape.words),
          carver.take<PanelWord>(shape.columns * shape.words),
          carver.take<double>(shape.row_panels + shape.column_panels)};
}

// Fill `packed`; returns a bound of all |<x_i, y_j>|, NaN or Inf if a feature is.
inline double pack(const MpmNceInput& in, const Shape& shape, const Packed& packed) {
  const int64_t x_tasks = shape.row_panels, tasks = x_tasks + shape.column_panels;
  with_type(in.dtype, [&](auto type) {
    using T = decltype(type);
    auto body = [&](int64_t step, int) {
      // Both sides evenly, so that a thread packs the columns that it will sweep (threads.cpp).
      const int64_t before = step * x_tasks / tasks;
      const bool left = (step + 1) * x_tasks / tasks > before;
      const int64_t task = left ? before : x_tasks + step - before;
      const Range some = left ? Cut(in.rows, kSweepRows).part(task)
                              : Cut(in.columns, kTileCols).part(task - x_tasks);
      if (left) {
        if (task >= panels_in_place(in))
          pack_left<T>(in.x, some.begin, in.rows, in.dim, packed.left + some.begin * shape.words);
      } else {
        pack_right<T>(in.y, some.begin, in.columns, in.dim,
                      packed.right + some.begin * shape.words);
      }
      packed.squares[task] = largest_square<T>(left ? in.x : in.y, some, in.dim);
    };
    parallel(tasks, in.threads, body);
  });
  double largest[2] = {};
  for (int64_t task = 0; task < tasks; ++task) {
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
  for (int64_t j = 0; j < columns; ++j) negative[j] = j < in.columns ? offset : kNowhere;
  return {high, low, static_cast<float>(-shift), negative};
}

inline int64_t anchors(const int32_t* positives, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += positives[i] > 0;
  return count;
}

}  // namespace
}  // namespace robustft
