// What the kernels of all ops share. An op's header (dive.hpp, ...) holds its inputs and its table
// of functions; each compilation of its source fills one table. Plain structs and function pointers
// only: code that is compiled for several instruction sets must not share inline functions with the
// rest, or the linker may keep the wrong copy and an old processor meets an instruction that it
// does not have.
#pragma once

#include <cstdint>

namespace robustft {

enum class DType : int { float32 = 0, bfloat16 = 1, float16 = 2 };

// Rows of `stride` elements, unit column stride.
struct Matrix {
  const void* data;
  int64_t stride;
};

// Row blocks. They follow from the shape alone, never from the number of threads, so that sums
// merged block by block have the same bits on any number of threads.
struct Blocks {
  int64_t count, rows;
};

// The widest vector has 16 lanes: workspace rows are padded to it.
static inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

// ROBUSTFT_ISA names a compilation: its tables are dive_<isa>, vrf_<isa>, ...
#define ROBUSTFT_JOIN_(a, b) a##b
#define ROBUSTFT_JOIN(a, b) ROBUSTFT_JOIN_(a, b)

}  // namespace robustft
