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
  auto* block = new MemoryBlock(spare_products().take(4 * count));
  const nanobind::capsule owner(block, [](void* p) noexcept {
    spare_products().give_back(std::move(*static_cast<MemoryBlock*>(p)));
    delete static_cast<MemoryBlock*>(p);
  });
  return nanobind::ndarray<nanobind::pytorch, float, nanobind::ndim<1>>(
      block->memory.get(), {static_cast<size_t>(count)}, owner);
}

struct Problem {
  Positives positives;
  MpmNceInput in;

  Problem(Address x, int64_t x_stride, Address y, int64_t y_stride, int64_t rows, int64_t columns,
          int64_t dim, int dtype, Address row_labels, Address column_labels, Address mask,
          int64_t ignore_index, double scale, double margin, double smoothing, bool symmetric,
          int threads)
      : positives(mask != 0 ? Positives(at<uint8_t>(mask), rows, columns)
                            : Positives(at<int64_t>(row_labels), at<int64_t>(column_labels), rows,
                                        columns, ignore_index)),
        in{{at(x), x_stride},
           {at(y), y_stride},
           rows,
           columns,
           dim,
           DType(dtype),
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
           threads} {}
};

void mpm_nce_forward(Address x, int64_t x_stride, Address y, int64_t y_stride, int64_t rows,
                     int64_t columns, int64_t dim, int dtype, Address row_labels,
                     Address column_labels, Address mask, int64_t ignore_index, double scale,
                     double margin, double smoothing, bool symmetric, int threads, Address kept,
                     Address loss, Address row_statistics, Address column_statistics) {
  const Problem problem(x, x_stride, y, y_stride, rows, columns, dim, dtype, row_labels,
                        column_labels, mask, ignore_index, scale, margin, smoothing, symmetric,
                        threads);
  const MpmNceKernels& kernels = *isa().mpm_nce;
  const Workspace workspace(kernels.forward_workspace(problem.in));
  kernels.forward(problem.in, workspace.data(), at<float>(kept), at<float>(loss),
                  at<float>(row_statistics), at<float>(column_statistics));
}

void mpm_nce_backward(Address x, int64_t x_stride, Address y, int64_t y_stride, int64_t rows,
                      int64_t columns, int64_t dim, int dtype, Address row_labels,
                      Address column_labels, Address mask, int64_t ignore_index, double scale,
                      double margin, double smoothing, bool symmetric, int threads, Address kept,
                      Address row_statistics, Address column_statistics, double grad,
                      Address grad_x, Address grad_y, Address grad_scale) {
  const Problem problem(x, x_stride, y, y_stride, rows, columns, dim, dtype, row_labels,
                        column_labels, mask, ignore_index, scale, margin, smoothing, symmetric,
                        threads);
  const MpmNceKernels& kernels = *isa().mpm_nce;
  const Workspace workspace(
      kernels.backward_workspace(problem.in, kept != 0, grad_x != 0, grad_y != 0));
  kernels.backward(problem.in, workspace.data(), at<float>(kept), at<float>(row_statistics),
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
