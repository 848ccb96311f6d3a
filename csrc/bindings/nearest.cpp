#include "../cpu/nearest/nearest.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <string>
#include <tuple>

#include "common.hpp"

namespace robustft {
namespace {

constexpr int64_t kMostRows = (int64_t{1} << 32) - 1, kMostQueries = (int64_t{1} << 31) - 1;

using Sizes = std::tuple<int64_t, int64_t, int64_t>;

std::string nearest_format() { return isa().nearest->format; }

// Panels, words of a panel's column, columns.
Sizes nearest_layout(int64_t rows, int64_t dim) {
  require_at_least(0, "rows", rows);
  require_at_least(0, "dim", dim);
  const NearestKernels& kernels = *isa().nearest;
  return {nearest_panels(kernels, rows), nearest_words(kernels, dim), kernels.cols};
}

void check_bank(Address rows, int64_t count, int64_t dim, Address mean) {
  require_at_least(1, "count", count);
  require(count <= kMostRows, "count", count, "at most 2^32 - 1: a key has 32 bits for a row");
  require_at_least(1, "dim", dim);
  require_address("rows", rows);
  require_address("mean", mean);
}

bool nearest_pack_bank(Address rows, int64_t stride, int64_t count, int64_t dim, int threads,
                       Address mean, Address panels, Address constants) {
  check_bank(rows, count, dim, mean);
  require_address("panels", panels);
  require_address("constants", constants);
  const NearestBank bank{at<float>(rows),       stride, count, dim, at<float>(mean), at(panels),
                         at<int32_t>(constants)};
  return nearest_pack(*isa().nearest, *isa().nearest_packing, bank, threads);
}

void nearest_find(Address rows, int64_t stride, int64_t count, int64_t dim, Address mean,
                  Address panels, Address constants, Address queries, int64_t query_stride,
                  int64_t query_count, int64_t k, int threads, Address distances, Address indices) {
  check_bank(rows, count, dim, mean);
  require((panels == 0) == (constants == 0), "constants", static_cast<int64_t>(constants),
          "an address if and only if there are panels");
  require(query_count >= 0 && query_count <= kMostQueries, "query_count", query_count,
          "0 to 2^31 - 1");
  require(k >= 1 && k <= count, "k", k, "1 to " + std::to_string(count));
  if (query_count > 0) {
    require_address("queries", queries);
    require_address("distances", distances);
  }
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
