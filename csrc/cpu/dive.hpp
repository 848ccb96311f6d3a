// What dive.cpp provides for each instruction set.
#pragma once

#include "kernels.hpp"

namespace robustft {

struct DiveInput {
  Matrix f, f0, g, g0;  // image, its pre-trained twin, text, its pre-trained twin: [rows, dim]
  int64_t rows, dim;
  DType dtype;
  bool normalize;
  int threads;
};

struct DiveKernels {
  void (*forward)(const DiveInput&, const float* mean, double momentum, double* workspace,
                  float* avl, float* pvl, float* new_mean);
  void (*backward)(const DiveInput&, const float* mean, double grad_avl, double grad_pvl,
                   void* grad_f, void* grad_g);
};

// At most 64 blocks (their sums are kept), of at least 2^15 elements each (about 10 µs of work,
// what waking a thread costs), in multiples of 32 rows.
static inline Blocks dive_blocks(int64_t rows, int64_t dim) {
  int64_t size = (rows + 63) / 64;
  const int64_t least = ((int64_t{1} << 15) + dim - 1) / dim;
  if (size < least) size = least;
  size = (size + 31) / 32 * 32;
  return {(rows + size - 1) / size, size};
}

// Doubles: the centre and one float row per worker (as halves of doubles), then per block the
// column sums and two scalars.
static inline int64_t dive_workspace(int64_t rows, int64_t dim, int workers) {
  return padded(dim) / 2 * (1 + workers) + dive_blocks(rows, dim).count * (padded(dim) + 2);
}

}  // namespace robustft
