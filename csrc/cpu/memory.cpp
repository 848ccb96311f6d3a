#include "memory.hpp"

#include <new>
#include <utility>

#include "pages.hpp"

namespace robustft {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

}  // namespace

MemoryBlock::MemoryBlock(int64_t wanted) {
  const int64_t unit = wanted < 2 * kHugePage ? 64 : kHugePage;
  bytes = (wanted + unit) / unit * unit;
  memory.reset(std::aligned_alloc(static_cast<std::size_t>(unit), static_cast<std::size_t>(bytes)));
  if (memory == nullptr) throw std::bad_alloc();
  advise(memory.get(), static_cast<std::size_t>(bytes));
}

MemoryBlock Spare::take(int64_t bytes) {
  MemoryBlock block;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (waiting_.bytes >= bytes) block = std::exchange(waiting_, MemoryBlock());
  }
  return block.bytes >= bytes && block.memory != nullptr ? std::move(block) : MemoryBlock(bytes);
}

void Spare::give_back(MemoryBlock block) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (block.bytes > waiting_.bytes) std::swap(block, waiting_);
}

Spare& spare_workspace() {
  static Spare& spare = *new Spare;
  return spare;
}
Spare& spare_products() {
  static Spare& spare = *new Spare;
  return spare;
}

Workspace::~Workspace() {
  if (block_.bytes <= kMostKept) spare_workspace().give_back(std::move(block_));
}

}  // namespace robustft
