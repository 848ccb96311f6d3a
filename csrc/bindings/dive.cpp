#include "../cpu/dive.hpp"

#include <vector>

#include "common.hpp"

namespace robustft {
namespace {

DiveInput dive_input(Address f, int64_t f_stride, Address f0, int64_t f0_stride, Address g,
                     int64_t g_stride, Address g0, int64_t g0_stride, int64_t rows, int64_t dim,
                     int dtype, bool normalize, int threads) {
  require_at_least(1, "rows", rows);
  require_at_least(1, "dim", dim);
  for (const Address each : {f, f0, g, g0}) require_address("features", each);
  return {{at(f), f_stride},
          {at(f0), f0_stride},
          {at(g), g_stride},
          {at(g0), g0_stride},
          rows,
          dim,
          dtype_of(dtype),
          normalize,
          threads};
}

void dive_forward(Address f, int64_t f_stride, Address f0, int64_t f0_stride, Address g,
                  int64_t g_stride, Address g0, int64_t g0_stride, int64_t rows, int64_t dim,
                  int dtype, bool normalize, int threads, Address mean, double momentum,
                  Address avl, Address pvl, Address new_mean) {
  const DiveInput in = dive_input(f, f_stride, f0, f0_stride, g, g_stride, g0, g0_stride, rows, dim,
                                  dtype, normalize, threads);
  for (const Address each : {mean, avl, pvl, new_mean}) require_address("mean or result", each);
  const int workers = worker_count(dive_blocks(rows, dim).count, threads);
  std::vector<double> workspace(dive_workspace(rows, dim, workers));
  isa().dive->forward(in, at<float>(mean), momentum, workspace.data(), at<float>(avl),
                      at<float>(pvl), at<float>(new_mean));
}

void dive_backward(Address f, int64_t f_stride, Address f0, int64_t f0_stride, Address g,
                   int64_t g_stride, Address g0, int64_t g0_stride, int64_t rows, int64_t dim,
                   int dtype, bool normalize, int threads, Address new_mean, double grad_avl,
                   double grad_pvl, Address grad_f, Address grad_g) {
  const DiveInput in = dive_input(f, f_stride, f0, f0_stride, g, g_stride, g0, g0_stride, rows, dim,
                                  dtype, normalize, threads);
  isa().dive->backward(in, at<float>(new_mean), grad_avl, grad_pvl, at(grad_f), at(grad_g));
}

}  // namespace

void bind_dive(nanobind::module_& m) {
  m.def("dive_forward", interruptible(&dive_forward));
  m.def("dive_backward", interruptible(&dive_backward));
}

}  // namespace robustft
