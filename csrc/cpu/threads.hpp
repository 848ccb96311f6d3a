// A small pool of parked threads. Each has a stretch of the blocks first, those of neighbouring
// numbers, and then takes others'; which thread takes which block is open, so a kernel keeps what
// it adds up per block and merges in block order.
#pragma once

#include <cstdint>

namespace robustft {

using Task = void (*)(void* context, int64_t block, int worker);

// How many workers `parallel_blocks` can use; worker indices stay below it.
int worker_count(int64_t blocks, int threads);

// Run task(context, block, worker) for every block in [0, blocks) on up to `threads` threads, the
// caller among them; returns when all are done, or those begun when work is stopped (watch.hpp).
// A task must not throw. When the pool is in use by another caller, the blocks run on the calling
// thread alone. Works in a forked child.
void parallel_blocks(int64_t blocks, int threads, Task task, void* context);

// Whether the caller of this work will throw its result away (watch.hpp): to be asked within blocks
// that can take longer than a tenth of a second, and then to return. Takes a few ns.
bool stopping();

}  // namespace robustft
