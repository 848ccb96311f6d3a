#include "context.hpp"

#include <sys/mman.h>

#include <cstring>

#ifdef EMULATED_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {
namespace {

#ifdef EMULATED_ASAN
constexpr std::size_t kStack = 512 << 10;
#else
constexpr std::size_t kStack = 64 << 10;
#endif
constexpr std::size_t kGuard = 64 << 10;  // no access: a multiple of any page size in use

unsigned char* stacks = nullptr;

unsigned char* stack_of(int i) { return stacks + i * (kStack + kGuard) + kGuard; }

#if defined(__x86_64__)
// Saves what the System V ABI says a call preserves, no signal mask: some 2 ns.
extern "C" void emulated_switch(void** save, void* load);
asm(R"(
.text
.type emulated_switch, @function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_switch, .-emulated_switch
)");
#endif

}  // namespace

void make_stacks() {
  if (stacks != nullptr) return;
  const std::size_t bytes = kMaxFibers * (kStack + kGuard);
  stacks = static_cast<unsigned char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  for (int i = 0; i < kMaxFibers; ++i) mprotect(stack_of(i) - kGuard, kGuard, PROT_NONE);
}

void Context::prepare(int stack, void (*entry)()) {
  unsigned char* const bottom = stack_of(stack);
  bottom_ = bottom;
  size_ = kStack;
#if defined(__x86_64__)
  auto* words = reinterpret_cast<void**>(bottom + kStack) - 2;  // the ABI's alignment at entry
  *words = reinterpret_cast<void*>(entry);
  top_ = words - 6;
  std::memset(top_, 0, 6 * sizeof(void*));
#else
  getcontext(&state_);
  state_.uc_stack.ss_sp = bottom;
  state_.uc_stack.ss_size = kStack;
  state_.uc_link = nullptr;
  makecontext(&state_, entry, 0);
#endif
}

void Context::switch_to(Context& to, [[maybe_unused]] bool for_good) {
#ifdef EMULATED_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, to.bottom_, to.size_);
#endif
#if defined(__x86_64__)
  emulated_switch(&top_, to.top_);
#else
  swapcontext(&state_, &to.state_);
#endif
#ifdef EMULATED_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void Context::begun([[maybe_unused]] Context& from) {
#ifdef EMULATED_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &from.bottom_, &from.size_);
#endif
}

}  // namespace emulator
