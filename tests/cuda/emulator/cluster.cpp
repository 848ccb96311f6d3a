// A cluster of blocks: fibers take turns, and wait for each other.
#include "cluster.hpp"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "order.hpp"

namespace emulator {

const Place* current = nullptr;
Block blocks[kMaxBlocks];
int cluster_size = 1, threads;
Fiber* running = nullptr;
std::string failure;

namespace {

Fiber fibers[kMaxFibers];
Context scheduler;
void (*kernel)(void**);
void** kernel_arguments;

void to_scheduler(bool for_good) { running->context.switch_to(scheduler, for_good); }

void to_fiber(Fiber& fiber) {
  running = &fiber;
  current = &fiber.place;
  scheduler.switch_to(fiber.context);
}

void wake(Fiber& fiber) {
  fiber.state = State::ready;
  fiber.block->ready[fiber.index / 32] |= 1u << fiber.index % 32;
}

// The running fiber is not to be called.
void stop(State state) {
  running->state = state;
  running->block->ready[running->index / 32] &= ~(1u << running->index % 32);
}

void wait(State state) {
  stop(state);
  to_scheduler(false);
}

// All threads of some blocks that wait in this state, where all that have not ended do; else none.
std::vector<Fiber*> complete(State state, Block* first, int count) {
  std::vector<Fiber*> found;
  int live = 0, arrived = 0;
  for (Block* block = first; block < first + count; ++block) {
    live += block->live;
    arrived += state == State::at_barrier ? block->arrived : block->arrived_in_cluster;
  }
  if (arrived == 0 || arrived < live) return found;
  for (Block* block = first; block < first + count; ++block) {
    for (int i = 0; i < threads; ++i) {
      if (block->fibers[i].state == state) found.push_back(block->fibers + i);
    }
  }
  const Fiber& a = *found.front();
  for (const Fiber* b : found) {
    if (b->site.line != a.site.line || b->site.what != a.site.what ||
        std::strcmp(b->site.file, a.site.file) != 0) {
      fail("threads %d and %d are at different barriers: %s at %s:%d, %s at %s:%d", a.index,
           b->index, a.site.what, a.site.file, a.site.line, b->site.what, b->site.file,
           b->site.line);
    }
  }
  return found;
}

void open_barrier_if_complete(Block& block) {
  const auto all = complete(State::at_barrier, &block, 1);
  if (all.empty()) return;
  int count = 0;
  for (const Fiber* fiber : all) count += fiber->predicate;
  for (Fiber* fiber : all) {
    fiber->result = fiber->reduce == Reduce::count ? count
                    : fiber->reduce == Reduce::any ? count > 0
                                                   : count == int(all.size());
    wake(*fiber);
  }
  block.arrived = 0;
}

void open_cluster_if_complete() {
  for (Fiber* fiber : complete(State::at_cluster_barrier, blocks, cluster_size)) {
    wake(*fiber);
    fiber->block->arrived_in_cluster = 0;
  }
}

void enter() {
  Context::begun(scheduler);
  kernel(kernel_arguments);
  stop(State::done);
  Block& block = *running->block;
  if (--block.live == 0) end_barriers();
  // Those that wait at a barrier wait for the others only.
  open_barrier_if_complete(block);
  open_cluster_if_complete();
  to_scheduler(true);
}

void explain_deadlock() {
  std::string text = "deadlock:";
  char line[512];
  for (int b = 0; b < cluster_size; ++b) {
    const Fiber* const of_block = blocks[b].fibers;
    if (cluster_size > 1) text += " block " + std::to_string(b) + " of the cluster:";
    for (int i = 0; i < threads;) {
      int end = i + 1;
      const Fiber& a = of_block[i];
      while (end < threads && of_block[end].state == a.state && of_block[end].mask == a.mask &&
             (a.state == State::done ||
              (of_block[end].site.line == a.site.line && of_block[end].site.what == a.site.what))) {
        ++end;
      }
      if (a.state == State::done) {
        std::snprintf(line, sizeof line, " threads %d-%d have ended;", i, end - 1);
      } else if (a.state == State::in_collective) {
        std::snprintf(line, sizeof line, " threads %d-%d wait in %s for lanes %08x at %s:%d;", i,
                      end - 1, a.site.what, a.mask, a.site.file, a.site.line);
      } else {
        std::snprintf(line, sizeof line, " threads %d-%d wait in %s at %s:%d;", i, end - 1,
                      a.site.what, a.site.file, a.site.line);
      }
      text += line;
      i = end;
    }
  }
  failure = text;
}

// Thread i of block `rank`, which is the one at `at`.
void prepare(Block& block, int i, uint3 at, int rank) {
  const unsigned x = unsigned(i) % block_dim.x, rest = unsigned(i) / block_dim.x;
  Fiber& fiber = block.fibers[i];
  fiber.place = {{x, rest % block_dim.y, rest / block_dim.y}, at, unsigned(rank), block.shared};
  fiber.block = &block;
  fiber.index = i;
  fiber.mask = 0;
  fiber.copies.clear();
  fiber.groups = 0;
  fiber.context.prepare(int(&fiber - fibers), enter);
  wake(fiber);
}

}  // namespace

void run_cluster(uint3 first, void (*function)(void**), void** arguments,
                 unsigned char* const (&shared)[kMaxBlocks]) {
  kernel = function;
  kernel_arguments = arguments;
  begin_barriers();
  const int warps = (threads + 31) / 32;
  for (int rank = 0; rank < cluster_size; ++rank) {
    Block& block = blocks[rank];
    block.fibers = fibers + rank * threads;
    block.live = threads;
    block.arrived = block.arrived_in_cluster = 0;
    std::memset(block.ready, 0, sizeof block.ready);
    block.shared = shared[rank];
    for (int i = 0; i < threads; ++i)
      prepare(block, i, {first.x + unsigned(rank), first.y, first.z}, rank);
  }
  for (bool progress = true; progress && failure.empty();) {
    progress = false;
    Order turns(u64(warps * cluster_size));
    for (int turn = 0; turn < warps * cluster_size && failure.empty(); ++turn) {
      const int at = int(turns.next()), warp = at % warps;
      Block& block = blocks[at / warps];
      while (block.ready[warp] != 0 && failure.empty()) {
        progress = true;
        to_fiber(block.fibers[warp * 32 + pick(block.ready[warp])]);
      }
    }
  }
  for (int rank = 0; rank < cluster_size; ++rank) {
    Block& block = blocks[rank];
    if (failure.empty() && block.live != 0) explain_deadlock();
    for (const Array& array : block.arrays) std::free(array.at);
    block.arrays.clear();
  }
}

void fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  failure = text;
  to_scheduler(true);
  std::abort();  // never run again
}

int lane() { return running->index % 32; }

void* shared(const void* name, std::size_t bytes, std::size_t alignment) {
  auto& arrays = running->block->arrays;
  for (const Array& array : arrays) {
    if (array.name == name) return array.at;
  }
  alignment = std::max<std::size_t>(alignment, sizeof(void*));
  auto* at = static_cast<unsigned char*>(
      std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment));
  std::memset(at, 0xff, bytes);
  arrays.push_back({name, at});
  return at;
}

void collective(u32 mask, const Site& site, void* payload, Finish finish) {
  Fiber& me = *running;
  const int warp = me.index / 32 * 32;
  Fiber* const lanes_of_warp = me.block->fibers + warp;
  if (!(mask >> lane() & 1)) {
    fail("lane %d calls %s at %s:%d for lanes %08x, without itself", lane(), site.what, site.file,
         site.line, mask);
  }
  me.site = site;
  me.mask = mask;
  me.payload = payload;
  me.state = State::in_collective;
  // A full mask stands for the lanes that there are, in a block's last, shorter warp too.
  const u32 present = threads - warp >= 32 ? ~0u : (1u << (threads - warp)) - 1;
  const u32 lanes = mask == ~0u ? present : mask;
  void* payloads[32] = {};
  for (int i = 0; i < 32; ++i) {
    if (!(lanes >> i & 1)) continue;
    const Fiber& other = lanes_of_warp[i];
    if (!(present >> i & 1) || other.state != State::in_collective || other.mask != mask) {
      wait(State::in_collective);
      return;
    }
    if (other.site.what != site.what) {
      fail("lanes %d and %d meet in different collectives: %s at %s:%d, %s at %s:%d", lane(), i,
           site.what, site.file, site.line, other.site.what, other.site.file, other.site.line);
    }
    payloads[i] = other.payload;
  }
  finish(payloads, lanes);
  for (int i = 0; i < 32; ++i) {
    if (lanes >> i & 1) wake(lanes_of_warp[i]);
  }
}

int block_barrier(const Site& site, Reduce reduce, bool predicate) {
  Fiber& me = *running;
  me.site = site;
  me.predicate = predicate;
  me.reduce = reduce;
  stop(State::at_barrier);
  ++me.block->arrived;
  open_barrier_if_complete(*me.block);
  if (me.state == State::at_barrier) to_scheduler(false);
  return me.result;
}

void cluster_barrier(const Site& site) {
  running->site = site;
  stop(State::at_cluster_barrier);
  ++running->block->arrived_in_cluster;
  open_cluster_if_complete();
  if (running->state == State::at_cluster_barrier) to_scheduler(false);
}

void sleep(const void* event, const Site& site) {
  running->site = site;
  running->mask = 0;
  running->payload = const_cast<void*>(event);
  wait(State::asleep);
}

void wake(const void* event) {
  for (int rank = 0; rank < cluster_size; ++rank) {
    for (int i = 0; i < threads; ++i) {
      Fiber& fiber = blocks[rank].fibers[i];
      if (fiber.state == State::asleep && fiber.payload == event) wake(fiber);
    }
  }
}

}  // namespace emulator
