// The memory that a batch of queries is searched in, from call to call the same.
#pragma once

#include "../memory.hpp"
#include "nearest.hpp"

namespace robustft {

struct NearestBuffers {
  const Workspace memory;
  uint64_t* keys;    // [queries][capacity]
  uint64_t* sweeps;  // kSweepScratch a worker
  uint32_t* panels;  // words of the queries

  NearestBuffers(int64_t of_keys, int64_t workers, int64_t of_panels)
      : memory(8 * (whole(of_keys) + workers * kSweepScratch) + 4 * of_panels),
        keys(static_cast<uint64_t*>(memory.data())),
        sweeps(keys + whole(of_keys)),
        panels(reinterpret_cast<uint32_t*>(sweeps + workers * kSweepScratch)) {}

 private:
  static int64_t whole(int64_t words) { return (words + 7) / 8 * 8; }  // lines of 64 bytes
};
static_assert(kSweepScratch % 8 == 0);

}  // namespace robustft
