// Shared by the bindings of all ops.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
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

// Of what a kernel cannot look at itself: ValueError "name: got X, expected Y".
inline void require(bool holds, const char* name, int64_t got, const std::string& expected) {
  if (holds) return;
  throw std::invalid_argument(std::string(name) + ": got " + std::to_string(got) + ", expected " +
                              expected);
}
inline void require_at_least(int64_t least, const char* name, int64_t got) {
  require(got >= least, name, got, std::to_string(least) + " or more");
}
inline DType dtype_of(int code) {
  require(code >= 0 && code <= 2, "dtype", code, "0 (float32), 1 (bfloat16) or 2 (float16)");
  return DType(code);
}
inline void require_address(const char* name, Address address) {
  require(address != 0, name, 0, "an address");
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
