// Shared by the bindings of all ops.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <exception>
#include <type_traits>

#include "../cpu/dispatch.hpp"
#include "../cpu/threads.hpp"
#include "../cpu/watch.hpp"

namespace robustft {

using Address = std::uintptr_t;
// While one lives, Ctrl-C (and whatever a Python signal handler raises) stops the work of this
// thread; `raise` then throws that error. Constructed and used without the GIL.
class Interruptible {
 public:
  Interruptible() : watch_(&poll, this) {}
  void raise() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static bool poll(void* self);

  Watch watch_;
  std::exception_ptr error_;
};

// `function` for module_::def: released from the GIL, and interruptible.
template <class Result, class... Arguments>
auto interruptible(Result (*function)(Arguments...)) {
  return [function](Arguments... arguments) -> Result {
    const nanobind::gil_scoped_release released;
    const Interruptible interruptible;
    if constexpr (std::is_void_v<Result>) {
      function(arguments...);
      interruptible.raise();
    } else {
      Result result = function(arguments...);
      interruptible.raise();
      return result;
    }
  };
}

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
