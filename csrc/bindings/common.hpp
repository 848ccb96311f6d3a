// Shared by the bindings of all ops.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "../cpu/dispatch.hpp"
#include "../cpu/threads.hpp"

namespace robustft {

using Address = std::uintptr_t;
using ReleaseGil = nanobind::call_guard<nanobind::gil_scoped_release>;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void bind_dive(nanobind::module_& m);
void bind_nearest(nanobind::module_& m);
void bind_rsa(nanobind::module_& m);
void bind_vrf(nanobind::module_& m);
void bind_mpm_nce(nanobind::module_& m);

}  // namespace robustft
