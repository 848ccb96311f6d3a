// The backward pass of mpm_nce. For a block of rows that fits the workspace: ∂Z of all its tiles,
// from dot products that are computed again or were kept, then
//
//     grad_x[rows] = ∂Z·y        ∂Z as the left operand, y cut along the dimensions on the right
//     grad_yᵀ     += xᵀ·∂Z       x cut along the dimensions on the left, ∂Z as the right operand
//
// The common factor, the scale among it, multiplies the gradients at the end.
#pragma once

#include "sweep.hpp"

namespace robustft {
namespace {

// Words of ∂Z at a time: 16 MB. More of it leaves the caches before it is read (measured at 4,096
// rows: 64 MB cost a tenth more); fewer rows than kLeastRows meet y and grad_y too often.
constexpr int64_t kGradWords = int64_t{1} << 22, kLeastRows = 384;

// Rows of a task that only moves data, whole steps of a product.
constexpr int64_t kMoveRows = 32;
constexpr int64_t kLine = 16;  // floats of a cache line
// Blocks of rows begin at multiples of every tile's rows.
constexpr int64_t kBlockUnit = 96;

struct Backward {
  const MpmNceInput& in;
  Shape shape;
  bool kept, need_x, need_y;
  int64_t block_rows;  // of ∂Z at a time
  Cut dims_right, dims_left;
  // From row to row of the gradients: a line more than whole panels, so that a column's entries lie
  // in different sets of the first-level cache.
  int64_t width, height;

  Packed packed;
  PanelWord *y_dims, *x_dims;  // panels along the dimensions
  PanelWord* grad_words;
  float *grad_x, *grad_y;  // [rows][width], [dims][height]
  float *offsets, *row_shift, *column_shift;
  Coefficients row, column;
  double *along, *at_positives;  // by task of a block
  int64_t bytes;

  Backward(const MpmNceInput& input, Carver carver, bool kept_, bool need_x_, bool need_y_)
      : in(input),
        shape(input),
        kept(kept_),
        need_x(need_x_),
        need_y(need_y_),
        block_rows(rows_at_once(in, shape)),
        dims_right(input.dim, kTileCols),
        dims_left(input.dim, kSweepRows),
        width(dims_right.count * kTileCols + kLine),
        height(shape.columns + kLine) {
    packed = {nullptr, nullptr, nullptr};
    if (!kept) packed = carve_packed(carver, shape);
    y_dims = carver.take<PanelWord>(need_x ? right_by_dims_words(in.dtype, in.columns, in.dim) : 0);
    x_dims = carver.take<PanelWord>(need_y ? left_by_dims_words(in.dtype, in.rows, in.dim) : 0);
    grad_words = carver.take<PanelWord>(
        need_x || need_y ? GradZ::count_words(in.dtype, block_rows, shape.columns) : 0);
    grad_x = carver.take<float>(need_x ? (in.rows + kSweepRows) * width : 0);
    grad_y = carver.take<float>(need_y ? dims_left.count * kSweepRows * height : 0);
    offsets = carver.take<float>(shape.columns);
    row_shift = carver.take<float>(shape.rows);
    column_shift = carver.take<float>(shape.columns);
    row = carve_coefficients(carver, shape.rows);
    column = carve_coefficients(carver, shape.columns);
    const int64_t tasks = row_cut().count * column_cut().count;
    along = carver.take<double>(tasks);
    at_positives = carver.take<double>(tasks);
    bytes = carver.bytes();
  }

  // All of them, or a multiple of every tile's rows.
  static int64_t rows_at_once(const MpmNceInput& in, const Shape& shape) {
    const int64_t words = GradZ::count_words(in.dtype, kBlockUnit, shape.columns);
    const int64_t fit = kGradWords / words * kBlockUnit;
    return smaller(in.rows, fit < kLeastRows ? kLeastRows : fit);
  }

  static Coefficients carve_coefficients(Carver& carver, int64_t n) {
    float* each[4];
    for (float*& piece : each) piece = carver.take<float>(n);
    return {each[0], each[1], each[2], each[3]};
  }

  GradZ grad_z() const { return {grad_words, block_rows, shape.columns, in.dtype}; }

  // Tasks of a block of rows.
  Cut row_cut() const { return cut(ceil_div(block_rows, kSweepRows), 16, 512 / kSweepRows); }
  Cut column_cut() const { return cut(shape.column_panels, 8, shape.block); }

  // One direction's coefficients, times `share`, from forward's statistics.
  void set_coefficients(const Coefficients& to, float* shifts, const float* statistics,
                        const int32_t* positives, int64_t n, int64_t padded, int64_t candidates,
                        double share) const {
    for (int64_t k = 0; k < padded; ++k) {
      double inverse = 0, weight = 0, positive_inverse = 0, positive_weight = 0;
      // Without statistics (columns in one direction) the exponentials are to be 0.
      shifts[k] = statistics == nullptr ? -kNowhere : k < n ? statistics[k] : 0;
      if (statistics != nullptr && k < n && positives[k] > 0) {
        const double count = positives[k], others = static_cast<double>(candidates) - count;
        const double epsilon = others > 0 ? in.smoothing : 0;
        inverse = share * static_cast<double>(statistics[n + k]);
        weight = others > 0 ? share * epsilon / others : 0;
        positive_inverse = positives[k] == 1 ? 0 : inverse;
        positive_weight =
            share * (positives[k] == 1 ? static_cast<double>(statistics[2 * n + k]) - epsilon
                                       : (1 - epsilon) / count);
      }
      to.inverse[k] = static_cast<float>(inverse);
      to.weight[k] = static_cast<float>(weight);
      to.positive_inverse[k] = static_cast<float>(positive_inverse);
      to.positive_weight[k] = static_cast<float>(positive_weight);
    }
  }

  template <bool kGeneral>
  void grad_z_part(const Products& products, const Line& line, Range block, int64_t row_part,
                   int64_t column_part, int64_t task) const {
    alignas(64) float scratch[kTileSize], unused[kTileSize];
    const SweepScope scope;
    const Range down = row_cut().part(row_part), across = column_cut().part(column_part);
    const int64_t first_panel = block.begin / kSweepRows;
    const int64_t last = smaller(down.end, ceil_div(block.end, kSweepRows) - first_panel);
    DVec sum{}, sum_at_positives{};
    for (int64_t c0 = across.begin; c0 < across.end; c0 += shape.block) {
      const int64_t c1 = smaller(across.end, c0 + shape.block);
      for (int64_t r = down.begin; r < last; ++r) {
        if (r % kRowsBetweenStops == 0 && stopping()) return;
        const int64_t i = (first_panel + r) * kSweepRows, count = smaller(kSweepRows, in.rows - i);
        for (int64_t c = c0; c < c1; ++c) {
          const float* dots = products.tile(first_panel + r, c, scratch);
          float* out = need_x || need_y ? grad_z().place(r, c, unused) : unused;
          with_pairs(in, i, c * kTileCols, [&](auto pairs) {
            grad_tile<kGeneral>(dots, count, i, c * kTileCols, pairs, line,
                                {row_shift, column_shift}, row, column, out, sum, sum_at_positives);
          });
          if (need_x || need_y) grad_z().put(r, c, out, in.dtype);
        }
      }
    }
    along[task] = robustft::sum(sum);
    at_positives[task] = robustft::sum(sum_at_positives);
  }

  // ∂Z of the rows `block`; returns Σ ∂Z·(dot + margin of negatives) over it. (Σ ∂Z is 0, so
  // the negatives' part is minus that of the positives.)
  template <bool kGeneral>
  double grad_z_block(const Products& products, const Line& line, Range block) const {
    const int64_t row_parts = row_cut().count, tasks = row_parts * column_cut().count;
    auto body = [&](int64_t task, int) {
      grad_z_part<kGeneral>(products, line, block, task % row_parts, task / row_parts, task);
    };
    parallel(tasks, in.threads, body);
    double total = 0;
    for (int64_t task = 0; task < tasks; ++task) {
      total += along[task] - in.margin * at_positives[task];
    }
    return total;
  }

  // grad_x of some row panels of the block and some panels of dimensions.
  void grad_x_part(Range block, Range down, Range dims) const {
    const SweepScope scope;
    const int64_t inner = inner_steps(in.dtype);
    for (int64_t c = 0; c < shape.column_panels; c += inner) {
      const Range across = {c, smaller(shape.column_panels, c + inner)};
      for (int64_t r = down.begin; r < down.end; ++r) {
        if (r % kRowsBetweenStops == 0 && stopping()) return;
        for (int64_t d = dims.begin; d < dims.end; ++d) {
          add_to_grad_x(grad_z(), r, across, y_dims, d, shape.column_panels, in.dtype,
                        grad_x + (block.begin + r * kSweepRows) * width + d * kTileCols, width);
        }
      }
    }
  }

  // grad_yᵀ of some panels of columns and some of dimensions, from the rows of the block.
  void grad_y_part(Range block, Range across, Range dims) const {
    const SweepScope scope;
    const int64_t inner = inner_steps(in.dtype) * kStepRows;
    for (int64_t i = block.begin; i < block.end; i += inner) {
      const Range down = {i, smaller(block.end, i + inner)};
      for (int64_t d = dims.begin; d < dims.end && !stopping(); ++d) {
        for (int64_t c = across.begin; c < across.end; ++c) {
          add_to_grad_y(grad_z(), block.begin, down, c, x_dims, d, in.rows, in.dtype,
                        grad_y + d * kSweepRows * height + c * kTileCols, height);
        }
      }
    }
  }

  // Both products of a block, as one list of tasks.
  void products_block(Range block) const {
    const Cut down = cut(ceil_div(block.end - block.begin, kSweepRows), 16, 96 / kSweepRows);
    const Cut dims_x(dims_right.count, smaller(dims_right.count, 4));
    const Cut across = cut(shape.column_panels, 8, 8);
    const Cut dims_y = cut(dims_left.count, 2, 16);
    const int64_t x_tasks = need_x ? down.count * dims_x.count : 0;
    const int64_t y_tasks = need_y ? across.count * dims_y.count : 0;
    auto body = [&](int64_t task, int) {
      if (task < x_tasks) {
        grad_x_part(block, down.part(task % down.count), dims_x.part(task / down.count));
      } else {
        const int64_t k = task - x_tasks;
        grad_y_part(block, across.part(k / dims_y.count), dims_y.part(k % dims_y.count));
      }
    };
    parallel(x_tasks + y_tasks, in.threads, body);
  }

  template <bool kGeneral>
  double run(const Products& products, const Line& line) const {
    const Cut blocks(in.rows, block_rows);
    double total = 0;
    for (int64_t k = 0; k < blocks.count; ++k) {
      total += grad_z_block<kGeneral>(products, line, blocks.part(k));
      if (need_x || need_y) products_block(blocks.part(k));
    }
    return total;
  }

  template <class T>
  void pack_all_by_dims() const {
    const int64_t x_tasks = need_y ? ceil_div(in.rows, kMoveRows) : 0;
    const int64_t y_tasks = need_x ? ceil_div(in.columns, kMoveRows) : 0;
    // y first, as the products that read it (products_block).
    auto body = [&](int64_t task, int) {
      if (task < y_tasks) {
        const Range some = {task * kMoveRows, (task + 1) * kMoveRows};
        pack_right_by_dims<T>(in.y, some, in.columns, in.dim, y_dims);
      } else {
        const Range some = {(task - y_tasks) * kMoveRows, (task - y_tasks + 1) * kMoveRows};
        pack_left_by_dims<T>(in.x, some, in.rows, in.dim, x_dims);
      }
    };
    parallel(x_tasks + y_tasks, in.threads, body);
  }

  // The gradients, times `factor`, to their own layout and type.
  template <class T>
  void store_gradients(float factor, T* to_x, T* to_y) const {
    const int64_t x_tasks = need_x ? ceil_div(in.rows, kMoveRows) : 0;
    const int64_t y_tasks = need_y ? ceil_div(in.columns, kTileCols) : 0;
    auto body = [&](int64_t task, int) {
      if (task < x_tasks) {
        const Range rows = Cut(in.rows, kMoveRows).part(task);
        for (int64_t i = rows.begin; i < rows.end; ++i) {
          sweep(0, in.dim, [&](int64_t d, auto part) {
            store(to_x + i * in.dim + d, load(grad_x + i * width + d) * factor, part);
          });
        }
      } else {
        store_columns(task - x_tasks, factor, to_y);
      }
    };
    parallel(x_tasks + y_tasks, in.threads, body);
  }

  template <class T>
  void store_columns(int64_t panel, float factor, T* to) const {
    alignas(64) float slice[kTileCols][kSlice + 4];
    const int64_t j = panel * kTileCols, count = smaller(kTileCols, in.columns - j);
    for (int64_t d0 = 0; d0 < in.dim; d0 += kSlice) {
      const int64_t dims = smaller(kSlice, in.dim - d0);
      for (int64_t d = 0; d < dims; d += 4) {
        // Each row lies in a page of its own, which nothing else fetches ahead.
        for (int64_t k = 0; k < 4 * kTileCols; k += kLine) {
          __builtin_prefetch(grad_y + (d0 + d + 16 + k / kTileCols) * height + j + k % kTileCols);
        }
        for (int64_t c = 0; c < kTileCols; c += 4) {
          const float* from = grad_y + (d0 + d) * height + j + c;
          if (d + 4 <= dims) {
            transpose4(from, height, &slice[c][d], kSlice + 4);
          } else {
            for (int64_t k = 0; k < (dims - d) * 4; ++k) {
              slice[c + k % 4][d + k / 4] = from[k / 4 * height + k % 4];
            }
          }
        }
      }
      for (int64_t c = 0; c < count; ++c) {
        sweep(0, dims, [&](int64_t d, auto part) {
          store(to + (j + c) * in.dim + d0 + d, load(slice[c] + d, part) * factor, part);
        });
      }
    }
  }
};

inline int64_t backward_workspace(const MpmNceInput& in, bool kept, bool need_x, bool need_y) {
  return Backward(in, Carver(nullptr), kept, need_x, need_y).bytes;
}

template <class T>
void fill_nan_as(T* p, int64_t count) {
  sweep(0, count, [&](int64_t k, auto part) { store(p + k, splat(__builtin_nanf("")), part); });
}

inline bool all_equal(const float* p, int64_t n, float value) {
  for (int64_t k = 0; k < n; ++k) {
    if (p[k] != value) return false;
  }
  return true;
}

inline void backward(const MpmNceInput& in, void* workspace, const float* kept,
                     const float* row_statistics, const float* column_statistics, double grad,
                     void* grad_x, void* grad_y, float* grad_scale) {
  if (!in.symmetric) column_statistics = nullptr;
  const bool need_x = grad_x != nullptr, need_y = grad_y != nullptr;
  const float shift = row_statistics[0];
  if (shift != shift) {  // a feature is not finite or too large, and forward stopped there
    *grad_scale = shift;
    with_type(in.dtype, [&](auto type) {
      using T = decltype(type);
      if (need_x) fill_nan_as(static_cast<T*>(grad_x), in.rows * in.dim);
      if (need_y) fill_nan_as(static_cast<T*>(grad_y), in.columns * in.dim);
    });
    return;
  }
  const Backward pass(in, Carver(workspace), kept != nullptr, need_x, need_y);
  const Shape& shape = pass.shape;
  if (kept == nullptr) pack(in, shape, pass.packed);
  with_type(in.dtype, [&](auto type) { pass.pack_all_by_dims<decltype(type)>(); });

  // ∂loss/∂Z = factor·(rows' part + share·columns' part)
  const double row_anchors = static_cast<double>(anchors(in.row_positives, in.rows));
  const double column_anchors = static_cast<double>(anchors(in.column_positives, in.columns));
  const double factor = (in.symmetric ? grad / 2 : grad) / row_anchors;
  pass.set_coefficients(pass.row, pass.row_shift, row_statistics, in.row_positives, in.rows,
                        shape.rows, in.row_candidates(), 1);
  pass.set_coefficients(pass.column, pass.column_shift, column_statistics, in.column_positives,
                        in.columns, shape.columns, in.column_candidates(),
                        row_anchors / column_anchors);

  const bool common = all_equal(row_statistics, in.rows, shift) &&
                      (!in.symmetric || all_equal(column_statistics, in.columns, shift));
  const Line line =
      make_line(in, common ? static_cast<double>(shift) : 0, pass.offsets, shape.columns);
  const Products products =
      pass.packed.products(in, shape, const_cast<float*>(kept), kept != nullptr);
  const double along = common ? pass.run<false>(products, line) : pass.run<true>(products, line);
  *grad_scale = static_cast<float>(factor * along);
  with_type(in.dtype, [&](auto type) {
    using T = decltype(type);
    pass.store_gradients(static_cast<float>(factor * in.scale), static_cast<T*>(grad_x),
                         static_cast<T*>(grad_y));
  });
}

}  // namespace
}  // namespace robustft
