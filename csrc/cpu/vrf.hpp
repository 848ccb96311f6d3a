// What vrf.cpp provides for each instruction set.
#pragma once

#include "kernels.hpp"

namespace robustft {

struct VrfInput {
  Matrix finetuned, zeroshot;  // logits [rows, classes]
  const float* distance;       // [rows]
  int64_t rows, classes;
  double a, b;
  double temperature_finetuned, temperature_zeroshot;
  DType dtype;
  bool log;
  int threads;
};

struct VrfKernels {
  void (*forward)(const VrfInput&, float* workspace, void* out);
  void (*backward)(const VrfInput&, Matrix grad_out, float* workspace, void* grad_finetuned,
                   void* grad_zeroshot, float* grad_distance);
};

// Rows do not meet in vrf_mix: blocks of about 2^14 elements, the work that pays for a wake-up when
// every element costs two exponentials.
static inline Blocks vrf_blocks(int64_t rows, int64_t classes) {
  int64_t size = (int64_t{1} << 14) / classes;
  if (size < 1) size = 1;
  return {(rows + size - 1) / size, size};
}

// Floats: two rows per worker.
static inline int64_t vrf_workspace(int64_t classes, int workers) {
  return 2 * padded(classes) * workers;
}

}  // namespace robustft
