// robustft._native: the kernels on plain addresses. Shapes, dtypes and lifetimes are the launchers'
// business (robustft/cpu/*.py); an address passed as an integer costs a fraction of an array
// argument.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <vector>

#include "cpu/dispatch.hpp"
#include "cpu/threads.hpp"

namespace nb = nanobind;

namespace robustft {
namespace {

using Address = std::uintptr_t;
using ReleaseGil = nb::call_guard<nb::gil_scoped_release>;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

DiveInput dive_input(Address f, int64_t f_stride, Address f0, int64_t f0_stride, Address g,
                     int64_t g_stride, Address g0, int64_t g0_stride, int64_t rows, int64_t dim,
                     int dtype, bool normalize, int threads) {
  return {{at(f), f_stride},
          {at(f0), f0_stride},
          {at(g), g_stride},
          {at(g0), g0_stride},
          rows,
          dim,
          DType(dtype),
          normalize,
          threads};
}

void dive_forward(Address f, int64_t f_stride, Address f0, int64_t f0_stride, Address g,
                  int64_t g_stride, Address g0, int64_t g0_stride, int64_t rows, int64_t dim,
                  int dtype, bool normalize, int threads, Address mean, double momentum,
                  Address avl, Address pvl, Address new_mean) {
  const DiveInput in = dive_input(f, f_stride, f0, f0_stride, g, g_stride, g0, g0_stride, rows, dim,
                                  dtype, normalize, threads);
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

VrfInput vrf_input(Address finetuned, int64_t finetuned_stride, Address zeroshot,
                   int64_t zeroshot_stride, Address distance, int64_t rows, int64_t classes,
                   double a, double b, double temperature_finetuned, double temperature_zeroshot,
                   int dtype, bool log, int threads) {
  return {{at(finetuned), finetuned_stride},
          {at(zeroshot), zeroshot_stride},
          at<float>(distance),
          rows,
          classes,
          a,
          b,
          temperature_finetuned,
          temperature_zeroshot,
          DType(dtype),
          log,
          threads};
}

std::vector<float> vrf_scratch(const VrfInput& in) {
  const int workers = worker_count(vrf_blocks(in.rows, in.classes).count, in.threads);
  return std::vector<float>(vrf_workspace(in.classes, workers));
}

void vrf_forward(Address finetuned, int64_t finetuned_stride, Address zeroshot,
                 int64_t zeroshot_stride, Address distance, int64_t rows, int64_t classes, double a,
                 double b, double temperature_finetuned, double temperature_zeroshot, int dtype,
                 bool log, int threads, Address out) {
  const VrfInput in =
      vrf_input(finetuned, finetuned_stride, zeroshot, zeroshot_stride, distance, rows, classes, a,
                b, temperature_finetuned, temperature_zeroshot, dtype, log, threads);
  isa().vrf->forward(in, vrf_scratch(in).data(), at(out));
}

void vrf_backward(Address finetuned, int64_t finetuned_stride, Address zeroshot,
                  int64_t zeroshot_stride, Address distance, int64_t rows, int64_t classes,
                  double a, double b, double temperature_finetuned, double temperature_zeroshot,
                  int dtype, bool log, int threads, Address grad_out, int64_t grad_out_stride,
                  Address grad_finetuned, Address grad_zeroshot, Address grad_distance) {
  const VrfInput in =
      vrf_input(finetuned, finetuned_stride, zeroshot, zeroshot_stride, distance, rows, classes, a,
                b, temperature_finetuned, temperature_zeroshot, dtype, log, threads);
  isa().vrf->backward(in, {at(grad_out), grad_out_stride}, vrf_scratch(in).data(),
                      at(grad_finetuned), at(grad_zeroshot), at<float>(grad_distance));
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Isa& each : isas()) names.emplace_back(each.name);
  return names;
}

}  // namespace
}  // namespace robustft

NB_MODULE(_native, m) {
  m.doc() = "C++ kernels of robustft";
  m.def("isa", [] { return std::string(robustft::isa().name); });
  m.def("isas", &robustft::isa_names);
  m.def("dive_forward", &robustft::dive_forward, robustft::ReleaseGil());
  m.def("dive_backward", &robustft::dive_backward, robustft::ReleaseGil());
  m.def("vrf_forward", &robustft::vrf_forward, robustft::ReleaseGil());
  m.def("vrf_backward", &robustft::vrf_backward, robustft::ReleaseGil());
}
