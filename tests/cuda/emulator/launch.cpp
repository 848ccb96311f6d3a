// Launches by name: what robustft/backends/cuda/launcher.py calls.
#include <cstdlib>
#include <mutex>

#include "cluster.hpp"
#include "order.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace emulator {

dim3 block_dim, grid_dim;

namespace {

Kernel* kernels = nullptr;
std::mutex one_launch;

bool same_name(const char* a, const char* b) {
  for (;; ++a, ++b) {
    while (*a == ' ') ++a;
    while (*b == ' ') ++b;
    if (*a != *b) return false;
    if (*a == 0) return true;
  }
}

// "dive" of "/…/dive.cu".
std::string stem(const char* path) {
  std::string name(path);
  name = name.substr(name.find_last_of('/') + 1);
  return name.substr(0, name.find_last_of('.'));
}

// Runs all blocks; `failure` says what went wrong.
void run(const Kernel& kernel, unsigned shared_bytes, void** arguments) {
  // Exactly as large as asked, so that a sanitizer sees what lies beyond.
  unsigned char* memory[kMaxBlocks] = {};
  for (int rank = 0; rank < cluster_size && shared_bytes != 0; ++rank) {
    void* at = nullptr;
    if (posix_memalign(&at, 1024, shared_bytes) != 0) std::abort();
    memory[rank] = static_cast<unsigned char*>(at);
  }
  const unsigned across = grid_dim.x / unsigned(cluster_size);
  const u64 clusters = u64(across) * grid_dim.y * grid_dim.z;
  Order turns(clusters);
  for (u64 i = 0; i < clusters && failure.empty(); ++i) {
    const u64 turn = turns.next();
    for (int rank = 0; rank < cluster_size && shared_bytes != 0; ++rank)
      std::memset(memory[rank], 0xff, shared_bytes);
    run_cluster({unsigned(turn % across) * unsigned(cluster_size),
                 unsigned(turn / across % grid_dim.y), unsigned(turn / across / grid_dim.y)},
                kernel.run, arguments, memory);
    if (!failure.empty()) {
      const uint3 at = running->place.block;
      failure = stem(kernel.source) + ".cu, " + kernel.name + ", block (" + std::to_string(at.x) +
                ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + "): " + failure;
    }
  }
  for (unsigned char* at : memory) std::free(at);
}

}  // namespace

Kernel::Kernel(const char* source, const char* name, void (*run)(void**))
    : source(source), name(name), run(run), next(kernels) {
  kernels = this;
}

}  // namespace emulator

#define EXPORT extern "C" __attribute__((visibility("default")))

// 0: threads and blocks in order; 1: reversed; else a seed to shuffle them with.
EXPORT void emulator_order(unsigned long long seed) { emulator::choose_order(seed); }

// Runs a kernel with `cluster` neighbouring blocks of x at a time; the result is null, or what went
// wrong, valid until the next launch.
EXPORT const char* emulator_launch(const char* source, const char* name, const unsigned* grid,
                                   const unsigned* block, unsigned cluster, unsigned shared_bytes,
                                   void** arguments) {
  using namespace emulator;
  const std::lock_guard<std::mutex> alone(one_launch);
  make_stacks();
  failure.clear();
  const Kernel* found = kernels;
  while (found != nullptr && !(stem(found->source) == source && same_name(found->name, name))) {
    found = found->next;
  }
  threads = int(block[0] * block[1] * block[2]);
  cluster_size = int(cluster);
  const u64 count = u64(grid[0]) * grid[1] * grid[2];
  if (found == nullptr) {
    failure = std::string("no INSTANTIATE(") + name + ") in " + source + ".cu";
  } else if (threads < 1 || threads > kMaxThreads || count < 1 || grid[1] > 65535 ||
             grid[2] > 65535 || grid[0] > 0x7fffffff || shared_bytes > 227 << 10 ||
             cluster_size < 1 || cluster_size > kMaxBlocks || grid[0] % cluster != 0 ||
             cluster_size * threads > kMaxFibers) {
    failure = "a grid of " + std::to_string(count) + " blocks of " + std::to_string(threads) +
              " threads with " + std::to_string(shared_bytes) + " bytes, in clusters of " +
              std::to_string(cluster) + ", is no launch";
  }
  if (!failure.empty()) return failure.c_str();
  begin_order();
  grid_dim = {grid[0], grid[1], grid[2]};
  block_dim = {block[0], block[1], block[2]};
#if defined(__x86_64__)
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);  // subnormals are zero: CuPy compiles with -ftz=true
#endif
  run(*found, shared_bytes, arguments);
#if defined(__x86_64__)
  _mm_setcsr(before);
#endif
  return failure.empty() ? nullptr : failure.c_str();
}
