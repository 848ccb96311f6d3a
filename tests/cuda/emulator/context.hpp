// A stack of its own for each fiber, and switching from one to another.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#define EMULATED_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATED_ASAN
#endif
#endif

namespace emulator {

constexpr int kMaxFibers = 2048;  // of a cluster

// Where a fiber goes on; or, without a stack of its own, the scheduler.
class Context {
 public:
  // To begin with `entry` on the stack of this number.
  void prepare(int stack, void (*entry)());
  // From this context to another one; returns when that one switches back. for_good: never.
  void switch_to(Context& to, bool for_good = false);
  // First of all in `entry`, with where it was switched from.
  static void begun(Context& from);

 private:
#if defined(__x86_64__)
  void* top_ = nullptr;
#else
  ucontext_t state_;
#endif
  const void* bottom_ = nullptr;  // of its stack, for the address sanitizer
  std::size_t size_ = 0;
};

// Before the first use.
void make_stacks();

}  // namespace emulator
