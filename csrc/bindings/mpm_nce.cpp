#include "../cpu/mpm_nce/mpm_nce.hpp"

#include <nanobind/ndarray.h>

#include <utility>

#include "../cpu/memory.hpp"
#include "../cpu/mpm_nce/positives.hpp"
#include "common.hpp"

namespace robustft {
namespace {

// A float32 tensor of `count` elements, not initialised, whose memory serves the next one after it.
auto products_room(int64_t count) {
  require(count >= 0 && count < int64_t{1} << 60, "count", count, "0 to 2^60");
  auto* block = new MemoryBlock(spare_products().take(4 * count));
  const nanobind::capsule owner(block, [](void* p) noexcept {
    spare_products().give_back(std::move(*static_cast<MemoryBlock*>(p)));
    delete static_cast<MemoryBlock*>(p);
  });
  return nanobind::ndarray<nanobind::pytorch, float, nanobind::ndim<1>>(
      block->memory.get(), {static_cast<size_t>(count)}, owner);
}

// The sizes, looked at before anything is read.
int64_t checked_rows(Address x, Address y, int64_t rows, int64_t columns, int64_t dim,
                     Address row_labels, Address column_labels, Address mask, bool symmetric,
                     bool exclude_self) {
  require_at_least(1, "rows", rows);
  require_at_least(1, "columns", columns);
  require_at_least(1, "dim", dim);
  require_address("x", x);
  require_address("y", y);
  require((row_labels == 0) == (column_labels == 0), "column_labels",
          static_cast<int64_t>(column_labels), "an address if and only if there are row labels");
  require(row_labels != 0 || mask != 0 || rows == columns, "columns", columns,
          std::to_string(rows) + ", as many as rows: there are no labels");
  if (exclude_self) {
    require(rows == columns || (rows < columns && !symmetric), "columns", columns,
            std::to_string(rows) + ", as many as rows, or more in one direction");
    require(row_labels != 0 || mask != 0, "row_labels", 0, "an address, or that of a mask");
  }
  return rows;
}

struct Problem {
  int64_t rows;
  Positives positives;
  MpmNceInput in;

  Problem(Address x, int64_t x_stride, Address y, int64_t y_stride, int64_t rows_, int64_t columns,
          int64_t dim, int dtype, Address row_labels, Address column_labels, Address mask,
          int64_t ignore_index, double scale, double margin, double smoothing, bool symmetric,
          bool exclude_self, int threads)
      : rows(checked_rows(x, y, rows_, columns, dim, row_labels, column_labels, mask, symmetric,
                          exclude_self)),
        positives(mask != 0 ? Positives(at<uint8_t>(mask), rows, columns, exclude_self)
                            : Positives(at<int64_t>(row_labels), at<int64_t>(column_labels), rows,
                                        columns, ignore_index, exclude_self)),
        in{{at(x), x_stride},
           {at(y), y_stride},
           rows,
           columns,
           dim,
           dtype_of(dtype),
           mask != 0         ? Pairs::mask
           : row_labels != 0 ? Pairs::labels
                             : Pairs::diagonal,
           positives.row_ids(),
           positives.column_ids(),
           at<uint8_t>(mask),
           positives.row_counts(),
           positives.column_counts(),
           scale,
           margin,
           smoothing,
           symmetric,
           exclude_self,
           threads} {}
};

void require_statistics(bool symmetric, Address rows, Address columns) {
  require_address("row_statistics", rows);
  if (symmetric) require_address("column_statistics", columns);
}

void mpm_nce_forward(Address x, int64_t x_stride, Address y, int64_t y_stride, int64_t rows,
                     int64_t columns, int64_t dim, int dtype, Address row_labels,
                     Address column_labels, Address mask, int64_t ignore_index, double scale,
                     double margin, double smoothing, bool symmetric, bool exclude_self,
                     int threads, Address kept, Address loss, Address row_statistics,
                     Address column_statistics) {
  const Problem problem(x, x_stride, y, y_stride, rows, columns, dim, dtype, row_labels,
                        column_labels, mask, ignore_index, scale, margin, smoothing, symmetric,
                        exclude_self, threads);
  require_address("loss", loss);
  require_statistics(symmetric, row_statistics, column_statistics);
  const MpmNceKernels& kernels = isa().mpm_nce_of(problem.in);
  const MpmNceInput in = isa().with_threads(problem.in);
  const Workspace workspace(kernels.forward_workspace(in));
  kernels.forward(in, workspace.data(), at<float>(kept), at<float>(loss), at<float>(row_statistics),
                  at<float>(column_statistics));
}

void mpm_nce_backward(Address x, int64_t x_stride, Address y, int64_t y_stride, int64_t rows,
                      int64_t columns, int64_t dim, int dtype, Address row_labels,
                      Address column_labels, Address mask, int64_t ignore_index, double scale,
                      double margin, double smoothing, bool symmetric, bool exclude_self,
                      int threads, Address kept, Address row_statistics, Address column_statistics,
                      double grad, Address grad_x, Address grad_y, Address grad_scale) {
  const Problem problem(x, x_stride, y, y_stride, rows, columns, dim, dtype, row_labels,
                        column_labels, mask, ignore_index, scale, margin, smoothing, symmetric,
                        exclude_self, threads);
  require_address("grad_scale", grad_scale);
  require_statistics(symmetric, row_statistics, column_statistics);
  const MpmNceKernels& kernels = isa().mpm_nce_of(problem.in);
  const MpmNceInput in = isa().with_threads(problem.in);
  const Workspace workspace(kernels.backward_workspace(in, kept != 0, grad_x != 0, grad_y != 0));
  kernels.backward(in, workspace.data(), at<float>(kept), at<float>(row_statistics),
                   at<float>(column_statistics), grad, at(grad_x), at(grad_y),
                   at<float>(grad_scale));
}

}  // namespace

void bind_mpm_nce(nanobind::module_& m) {
  m.def("mpm_nce_products_room", &products_room);
  m.def("mpm_nce_forward", interruptible(&mpm_nce_forward));
  m.def("mpm_nce_backward", interruptible(&mpm_nce_backward));
}

}  // namespace robustft
