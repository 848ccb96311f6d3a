#include "memory.hpp"

#include <cstdlib>
#include <new>
#include <utility>

#ifdef _WIN32
#include <malloc.h>
#endif

#include "pages.hpp"

namespace robustft {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

void* allocate(std::size_t unit, std::size_t bytes) {
#ifdef _WIN32
  return _aligned_malloc(bytes, unit);
#else
  return std::aligned_alloc(unit, bytes);
#endif
}

// Made when the module is loaded: at the first call, another thread might fork meanwhile.
Spare& workspace = *new Spare;
Spare& products = *new Spare;

}  // namespace

void MemoryBlock::Free::operator()(void* memory) const {
#ifdef _WIN32
  _aligned_free(memory);
#else
  std::free(memory);
#endif
}

MemoryBlock::MemoryBlock(int64_t wanted) {
  const int64_t unit = wanted < 2 * kHugePage ? 64 : kHugePage;
  bytes = (wanted + unit) / unit * unit;
  memory.reset(allocate(static_cast<std::size_t>(unit), static_cast<std::size_t>(bytes)));
  if (memory == nullptr) throw std::bad_alloc();
  advise(memory.get(), static_cast<std::size_t>(bytes));
}

MemoryBlock Spare::take(int64_t bytes) {
  MemoryBlock block;
  {
    // Nobody waits for it: in a child forked while it was held it stays so.
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock && waiting_.bytes >= bytes) block = std::exchange(waiting_, MemoryBlock());
  }
  return block.bytes >= bytes && block.memory != nullptr ? std::move(block) : MemoryBlock(bytes);
}

void Spare::give_back(MemoryBlock block) {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (lock && block.bytes > waiting_.bytes) std::swap(block, waiting_);
}

Spare& spare_workspace() { return workspace; }
Spare& spare_products() { return products; }

Workspace::~Workspace() {
  if (block_.bytes <= kMostKept) spare_workspace().give_back(std::move(block_));
}

}  // namespace robustft
