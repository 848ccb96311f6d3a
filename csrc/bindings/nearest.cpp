#include "../cpu/nearest/nearest.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <string>
#include <tuple>

#include "common.hpp"

namespace robustft {
namespace {

using Sizes = std::tuple<int64_t, int64_t, int64_t>;

std::string nearest_format() { return isa().nearest->format; }

// Panels, words of a panel's column, columns.
Sizes nearest_layout(int64_t rows, int64_t dim) {
  const NearestKernels& kernels = *isa().nearest;
  return {nearest_panels(kernels, rows), nearest_words(kernels, dim), kernels.cols};
}

bool nearest_pack_bank(Address rows, int64_t stride, int64_t count, int64_t dim, int threads,
                       Address mean, Address panels, Address constants) {
  const NearestBank bank{at<float>(rows),       stride, count, dim, at<float>(mean), at(panels),
                         at<int32_t>(constants)};
  return nearest_pack(*isa().nearest, *isa().nearest_packing, bank, threads);
}

void nearest_find(Address rows, int64_t stride, int64_t count, int64_t dim, Address mean,
                  Address panels, Address constants, Address queries, int64_t query_stride,
                  int64_t query_count, int64_t k, int threads, Address distances, Address indices) {
  const NearestBank bank{at<float>(rows),       stride, count, dim, at<float>(mean), at(panels),
                         at<int32_t>(constants)};
  nearest_search({*isa().nearest, *isa().nearest_packing, bank, at<float>(queries), query_stride,
                  query_count, k, threads, at<float>(distances), at<int64_t>(indices)});
}

std::tuple<int64_t, int64_t, int64_t, int64_t> nearest_counts() {
  const NearestStatistics s = nearest_statistics();
  return {s.queries, s.checked, s.retried, s.scanned};
}

}  // namespace

void bind_nearest(nanobind::module_& m) {
  m.def("nearest_format", &nearest_format);
  m.def("nearest_layout", &nearest_layout);
  m.def("nearest_pack", interruptible(&nearest_pack_bank));
  m.def("nearest_find", interruptible(&nearest_find));
  m.def("nearest_counts", &nearest_counts);
}

}  // namespace robustft
