// Memory that stays with the process from call to call.
//
// Fresh pages cost as much as a small product (64 MB: from 10 ms to a tenth of a second), huge ones
// less. So memory of some size has huge pages, and waits for the next call or step.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

namespace robustft {

// `bytes` or more, aligned to 64 bytes, large ones to huge pages. Throws std::bad_alloc.
struct MemoryBlock {
  struct Free {
    void operator()(void* memory) const;
  };
  std::unique_ptr<void, Free> memory;
  int64_t bytes = 0;

  MemoryBlock() = default;
  explicit MemoryBlock(int64_t wanted);
};

// One block that waits for its next use. Who finds none, one too small, or another at it, makes a
// new one; the larger of two that come back stays. Any number of threads may take and give back.
class Spare {
 public:
  MemoryBlock take(int64_t bytes);
  void give_back(MemoryBlock block);

 private:
  std::mutex mutex_;
  MemoryBlock waiting_;
};

// Of the calls' workspaces and of kept products. Never destroyed: tensors may outlive the module's
// statics.
Spare& spare_workspace();
Spare& spare_products();

// A call's workspace, from spare_workspace(), where it returns if it is at most kMostKept bytes.
class Workspace {
 public:
  static constexpr int64_t kMostKept = int64_t{192} << 20;

  explicit Workspace(int64_t bytes) : block_(spare_workspace().take(bytes)) {}
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const { return block_.memory.get(); }

 private:
  MemoryBlock block_;
};

}  // namespace robustft
