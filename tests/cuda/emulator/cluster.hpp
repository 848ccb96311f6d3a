// The cluster of blocks that runs: its fibers and its shared memory. Of the emulator's own files.
#pragma once

#include <string>
#include <vector>

#include "context.hpp"
#include "emulator.hpp"

namespace emulator {

constexpr int kMaxThreads = 1024;  // of a block
constexpr int kMaxBlocks = 8;      // of a cluster, on every card that has them

// What a thread does: a barrier is the block's or the cluster's.
enum class State { ready, in_collective, at_barrier, at_cluster_barrier, asleep, done };

struct Copy {
  void* to;
  const void* from;
  int group;
};

struct Block;

struct Fiber {
  Place place;
  Context context;
  Block* block;
  int index;  // in the block
  State state;
  Site site;
  u32 mask;
  void* payload;
  Reduce reduce;
  bool predicate;
  int result;
  std::vector<Copy> copies;
  int groups;  // committed
};

struct Array {
  const void* name;
  unsigned char* at;
};

struct Block {
  Fiber* fibers;                          // [threads]
  int live, arrived, arrived_in_cluster;  // not ended; at its barrier; at the cluster's
  u32 ready[kMaxThreads / 32];            // by warp, by lane
  unsigned char* shared;                  // dynamic
  std::vector<Array> arrays;              // SHARED ones
};

extern Block blocks[kMaxBlocks];
extern int cluster_size, threads;  // blocks that run; threads of each
extern Fiber* running;
extern std::string failure;  // what went wrong: nothing runs any more

// Runs the blocks from `first` on, each with shared[i] as its dynamic shared memory.
void run_cluster(uint3 first, void (*kernel)(void**), void** arguments,
                 unsigned char* const (&shared)[kMaxBlocks]);

// Of hopper.cpp: nothing is under way; the block of the thread that runs has ended.
void begin_barriers();
void end_barriers();

}  // namespace emulator
