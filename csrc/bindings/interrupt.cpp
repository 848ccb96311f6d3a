#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "common.hpp"

namespace robustft {
namespace {

// Python runs signal handlers on its main thread alone, which other threads need not wait for.
bool may_run_handlers() {
#ifdef __linux__
  return syscall(SYS_gettid) == getpid();
#else
  return true;
#endif
}

}  // namespace

bool Interruptible::poll(void* self) {
  if (!may_run_handlers()) return false;
  const nanobind::gil_scoped_acquire acquired;
  if (PyErr_CheckSignals() == 0) return false;
  static_cast<Interruptible*>(self)->error_ = std::make_exception_ptr(nanobind::python_error());
  return true;
}

}  // namespace robustft
