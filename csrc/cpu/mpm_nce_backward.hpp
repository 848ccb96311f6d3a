// The backward pass of mpm_nce. For a block of rows that fits the workspace: ∂Z of all its tiles,
// from dot products that are computed again or were kept, then
//
//     grad_x[rows] = ∂Z·y        ∂Z as the left operand, y cut along the dimensions on the right
//     grad_yᵀ     += xᵀ·∂Z       x cut along the dimensions on the left, ∂Z as the right operand
//
// ∂Z is stored as [column panel][row][kTileCols]: that is a right panel, and read across it is a
// left one, so neither product packs it again. The common factor, the scale among it, multiplies
// the gradients at the end.
#pragma once

#include "mpm_nce_sweep.hpp"

namespace robustft {
namespace {

// Floats of ∂Z at a time: 32 MB.
constexpr int64_t kGradFloats = int64_t{1} << 23;
// Inner dimension of a product that adds to memory: 16 panels of columns, or as many rows.
constexpr int64_t kInnerPanels = 16, kInner = kInnerPanels * kTileCols;

struct Backward {
  const MpmNceInput& in;
  Shape shape;
  bool kept, need_x, need_y;
  int64_t block_rows;    // of ∂Z at a time
  int64_t panel_height;  // rows of a panel of ∂Z as stored
  Cut dims_right, dims_left;
  int64_t width;  // of grad_x's rows

  Packed packed;
  float *y_dims, *x_dims;  // [panel][row][kTileCols], [panel][row][kTileRows]
  float* grad_z;
  float *grad_x, *grad_y;  // [rows][width], [dims][columns]
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
        // Panels lie 12 rows (1.5 KB) past a multiple of 4 KB apart, so that the pieces of a left
        // tile fall into different sets of the first-level cache.
        panel_height(ceil_div(block_rows, 32) * 32 + 12),  // and room for a register tile more
        dims_right(input.dim, kTileCols),
        dims_left(input.dim, kTileRows),
        width(dims_right.count * kTileCols) {
    packed = {nullptr, nullptr, nullptr};
    if (!kept) packed = carve_packed(carver, in, shape);
    y_dims = carver.take<float>(need_x ? shape.columns * width : 0);
    x_dims = carver.take<float>(need_y ? in.rows * dims_left.count * kTileRows : 0);
    grad_z = carver.take<float>(need_x || need_y ? shape.columns * panel_height : 0);
    grad_x = carver.take<float>(need_x ? (in.rows + kTileRows) * width : 0);
    grad_y = carver.take<float>(need_y ? dims_left.count * kTileRows * shape.columns : 0);
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
    const int64_t fit = kGradFloats / shape.columns / kPackRows * kPackRows;
    return smaller(in.rows, fit < kPackRows ? kPackRows : fit);
  }

  static Coefficients carve_coefficients(Carver& carver, int64_t n) {
    float* each[4];
    for (float*& piece : each) piece = carver.take<float>(n);
    return {each[0], each[1], each[2], each[3]};
  }

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
        const int64_t i = (first_panel + r) * kSweepRows, count = smaller(kSweepRows, in.rows - i);
        for (int64_t c = c0; c < c1; ++c) {
          const float* dots = products.tile(first_panel + r, c, scratch);
          float* out = unused;
          if (need_x || need_y) out = grad_z + (c * panel_height + r * kSweepRows) * kTileCols;
          with_pairs(in, i, c * kTileCols, [&](auto pairs) {
            grad_tile<kGeneral>(dots, count, i, c * kTileCols, pairs, line,
                                {row_shift, column_shift}, row, column, out, sum, sum_at_positives);
          });
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

  // to[r][0 … kTileCols) += sums, or = for the first part of the inner dimension.
  static void add_sums(const Sums<Fp32>& sums, float* to, int64_t stride, bool first) {
    for (int r = 0; r < kTileRows; ++r) {
      for (int h = 0; h < 2; ++h) {
        float* at = to + r * stride + h * W;
        store(at, first ? sums.at[r][h] : load(at) + sums.at[r][h]);
      }
    }
  }

  static void fetch(const float* to, int64_t stride) {
    for (int r = 0; r < kTileRows; ++r) {
      for (int k = 0; k < kTileCols; k += 16) __builtin_prefetch(to + r * stride + k, 1);
    }
  }

  // grad_x of some register tiles of rows of the block and some panels of dimensions.
  void grad_x_part(Range block, Range down, Range dims) const {
    for (int64_t c0 = 0; c0 < shape.column_panels; c0 += kInnerPanels) {
      const int64_t c1 = smaller(shape.column_panels, c0 + kInnerPanels);
      for (int64_t r = down.begin; r < down.end; ++r) {
        for (int64_t d = dims.begin; d < dims.end; ++d) {
          float* to = grad_x + (block.begin + r * kTileRows) * width + d * kTileCols;
          fetch(to, width);
          Sums<Fp32> sums{};
          const float* left = grad_z + (c0 * panel_height + r * kTileRows) * kTileCols;
          const float* right = y_dims + (d * shape.columns + c0 * kTileCols) * kTileCols;
          for (int64_t c = c0; c < c1; ++c) {
            accumulate<Fp32, kTileCols, 1>(sums, left, right, kTileCols);
            left += panel_height * kTileCols;
            right += kTileCols * kTileCols;
          }
          add_sums(sums, to, width, c0 == 0);
        }
      }
    }
  }

  // grad_yᵀ of some panels of columns and some of dimensions, from the rows of the block.
  void grad_y_part(Range block, Range across, Range dims) const {
    const int64_t rows = block.end - block.begin;
    for (int64_t i0 = 0; i0 < rows; i0 += kInner) {
      const int64_t count = smaller(kInner, rows - i0);
      const bool first = block.begin == 0 && i0 == 0;
      for (int64_t d = dims.begin; d < dims.end; ++d) {
        const float* left = x_dims + (d * in.rows + block.begin + i0) * kTileRows;
        for (int64_t c = across.begin; c < across.end; ++c) {
          float* to = grad_y + d * kTileRows * shape.columns + c * kTileCols;
          fetch(to, shape.columns);
          Sums<Fp32> sums{};
          accumulate<Fp32>(sums, left, grad_z + (c * panel_height + i0) * kTileCols, count);
          add_sums(sums, to, shape.columns, first);
        }
      }
    }
  }

  // Both products of a block, as one list of tasks.
  void products_block(Range block) const {
    const Cut down = cut(ceil_div(block.end - block.begin, kTileRows), 16, 8);
    const Cut dims_x(dims_right.count, smaller(dims_right.count, 8));
    const Cut across = cut(shape.column_panels, 8, 16);
    const Cut dims_y = cut(dims_left.count, 4, 16);
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

  // Panels along the dimensions; columns that do not exist are zeros.
  template <class T>
  void pack_by_dims() const {
    const int64_t x_tasks = need_y ? ceil_div(in.rows, kPackRows) : 0;
    const int64_t y_tasks = need_x ? ceil_div(in.columns, kPackRows) : 0;
    auto body = [&](int64_t task, int) {
      if (task < x_tasks) {
        const Range rows = Cut(in.rows, kPackRows).part(task);
        pack_dims<kTileRows, T>(in.x, rows.begin, rows.end, in.dim, in.rows, x_dims);
      } else {
        const Range rows = Cut(in.columns, kPackRows).part(task - x_tasks);
        pack_dims<kTileCols, T>(in.y, rows.begin, rows.end, in.dim, shape.columns, y_dims);
      }
    };
    parallel(x_tasks + y_tasks, in.threads, body);
    for (int64_t p = 0; p < (need_x ? dims_right.count : 0); ++p) {
      const int64_t end = (p + 1) * shape.columns * kTileCols;
      for (int64_t k = end - (shape.columns - in.columns) * kTileCols; k < end; ++k) y_dims[k] = 0;
    }
  }

  // The gradients, times `factor`, to their own layout and type.
  template <class T>
  void store_gradients(float factor, T* to_x, T* to_y) const {
    const int64_t x_tasks = need_x ? ceil_div(in.rows, kPackRows) : 0;
    const int64_t y_tasks = need_y ? ceil_div(in.columns, kTileCols) : 0;
    auto body = [&](int64_t task, int) {
      if (task < x_tasks) {
        const Range rows = Cut(in.rows, kPackRows).part(task);
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
      // Rows of grad_y come in panels of kTileRows, an even number: four may reach past the last.
      for (int64_t d = 0; d < dims; d += 4) {
        for (int64_t c = 0; c < kTileCols; c += 4) {
          const float* from = grad_y + (d0 + d) * shape.columns + j + c;
          if (d + 4 <= dims) {
            transpose4(from, shape.columns, &slice[c][d], kSlice + 4);
          } else {
            for (int64_t k = 0; k < (dims - d) * 4; ++k) {
              slice[c + k % 4][d + k / 4] = from[k / 4 * shape.columns + k % 4];
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
  if (shift != shift) {  // a feature is not finite, and forward stopped there
    *grad_scale = shift;
    ROBUSTFT_DISPATCH(in.dtype, T, {
      if (need_x) fill_nan_as(static_cast<T*>(grad_x), in.rows * in.dim);
      if (need_y) fill_nan_as(static_cast<T*>(grad_y), in.columns * in.dim);
    })
    return;
  }
  const Backward pass(in, Carver(workspace), kept != nullptr, need_x, need_y);
  const Shape& shape = pass.shape;
  if (kept == nullptr) pack(in, shape, pass.packed);
  ROBUSTFT_DISPATCH(in.dtype, T, { pass.pack_by_dims<T>(); })

  // ∂loss/∂Z = factor·(rows' part + share·columns' part)
  const double row_anchors = static_cast<double>(anchors(in.row_positives, in.rows));
  const double column_anchors = static_cast<double>(anchors(in.column_positives, in.columns));
  const double factor = (in.symmetric ? grad / 2 : grad) / row_anchors;
  pass.set_coefficients(pass.row, pass.row_shift, row_statistics, in.row_positives, in.rows,
                        shape.rows, in.columns, 1);
  pass.set_coefficients(pass.column, pass.column_shift, column_statistics, in.column_positives,
                        in.columns, shape.columns, in.rows, row_anchors / column_anchors);

  const bool common = all_equal(row_statistics, in.rows, shift) &&
                      (!in.symmetric || all_equal(column_statistics, in.columns, shift));
  const Line line =
      make_line(in, common ? static_cast<double>(shift) : 0, pass.offsets, shape.columns);
  const Products products =
      pass.packed.products(in, shape, const_cast<float*>(kept), kept != nullptr);
  const double along = common ? pass.run<false>(products, line) : pass.run<true>(products, line);
  *grad_scale = static_cast<float>(factor * along);
  ROBUSTFT_DISPATCH(in.dtype, T, {
    pass.store_gradients(static_cast<float>(factor * in.scale), static_cast<T*>(grad_x),
                         static_cast<T*>(grad_y));
  })
}

}  // namespace
}  // namespace robustft
