// The memory that waits between calls: as large as asked for, aligned, one owner at a time.
#include "../cpu/memory.hpp"

#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "check.hpp"

namespace robustft {
namespace {

constexpr int64_t kMega = int64_t{1} << 20;

bool is_aligned(const void* p, uintptr_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; }

}  // namespace

TEST(memory_is_large_enough_and_aligned) {
  for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{63}, int64_t{64}, int64_t{4097},
                              4 * kMega - 1, 4 * kMega, 5 * kMega + 1}) {
    const MemoryBlock block(bytes);
    CHECK(block.bytes >= bytes, std::to_string(bytes) + " bytes");
    CHECK(is_aligned(block.memory.get(), bytes < 4 * kMega ? 64 : 2 * kMega),
          std::to_string(bytes) + " bytes");
    std::memset(block.memory.get(), 1, static_cast<size_t>(block.bytes));
  }
}

TEST(memory_waits_for_its_next_use) {
  Spare spare;
  MemoryBlock first = spare.take(kMega);
  const void* const at = first.memory.get();
  MemoryBlock second = spare.take(kMega);
  CHECK(second.memory.get() != at, "two owners at once");
  spare.give_back(std::move(first));
  MemoryBlock again = spare.take(kMega / 2);
  CHECK(again.memory.get() == at, "what came back serves a smaller one");
  spare.give_back(std::move(again));
  MemoryBlock larger = spare.take(2 * kMega);
  CHECK(larger.memory.get() != at && larger.bytes >= 2 * kMega, "what waits is too small");
  const void* const large = larger.memory.get();
  spare.give_back(std::move(larger));
  spare.give_back(std::move(second));
  CHECK(spare.take(kMega).memory.get() == large, "the larger of two stays");
}

TEST(memory_has_one_owner) {
  Spare spare;
  std::vector<std::thread> callers;
  std::vector<int> wrong(4);
  for (size_t t = 0; t < wrong.size(); ++t) {
    callers.emplace_back([&, t] {
      for (int i = 0; i < 500; ++i) {
        MemoryBlock block = spare.take(64 * (1 + i % 7));
        auto* value = static_cast<volatile size_t*>(block.memory.get());
        *value = t;
        std::this_thread::yield();
        wrong[t] += *value != t;
        spare.give_back(std::move(block));
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const int count : wrong) CHECK(count == 0, "another thread wrote here");
}

TEST(memory_of_a_large_workspace_is_not_kept) {
  const void* small = nullptr;
  {
    const Workspace workspace(kMega);
    small = workspace.data();
  }
  {
    const Workspace workspace(Workspace::kMostKept + kMega);
  }
  const Workspace workspace(kMega);
  CHECK(workspace.data() == small, "the small one is there, the large one went");
}

}  // namespace robustft
