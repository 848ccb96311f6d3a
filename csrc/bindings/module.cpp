// robustft._native: the kernels on plain addresses. Shapes, dtypes and lifetimes are the launchers'
// business (robustft/backends/cpu/*.py); an address passed as an integer costs a fraction of an
// array argument. Each op's functions are in <op>.cpp.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "../cpu/pages.hpp"
#include "common.hpp"

namespace robustft {
namespace {

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
  m.def("advise", [](robustft::Address buffer, std::size_t bytes) {
    robustft::advise(robustft::at(buffer), bytes);
  });
  robustft::bind_dive(m);
  robustft::bind_nearest(m);
  robustft::bind_rsa(m);
  robustft::bind_vrf(m);
  robustft::bind_mpm_nce(m);
}
