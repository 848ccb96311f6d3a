// Asynchronous copies of a thread (cp.async): nothing is there before its wait.
#include "cluster.hpp"

namespace emulator {

void copy_async(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<std::uintptr_t>(shared) % 16 != 0 ||
      (valid && reinterpret_cast<std::uintptr_t>(global) % 16 != 0)) {
    fail("cp_async_16 from %p to %p: both must be aligned to 16 bytes", global, shared);
  }
  std::memset(shared, 0xff, 16);
  running->copies.push_back({shared, valid ? global : nullptr, running->groups});
}

void copy_commit() { ++running->groups; }

void copy_wait(int under_way) {
  auto& copies = running->copies;
  std::size_t kept = 0;
  for (const Copy& copy : copies) {
    if (copy.group >= running->groups - under_way) {
      copies[kept++] = copy;
    } else if (copy.from != nullptr) {
      std::memcpy(copy.to, copy.from, 16);
    } else {
      std::memset(copy.to, 0, 16);
    }
  }
  copies.resize(kept);
}

}  // namespace emulator
