// What a CPU instruction set provides: a table of kernels an op, filled by each compilation of its
// file. Plain structs and function pointers only: code that is compiled for several
// instruction sets must not share inline functions with the rest, or the linker may keep the wrong
// copy and an old processor meets an instruction that it does not have.
#pragma once

#include <cstdint>

namespace robustft {

enum class DType : int { float32 = 0, bfloat16 = 1, float16 = 2 };

// Rows of `stride` elements, unit column stride.
struct Matrix {
  const void* data;
  int64_t stride;
};

struct DiveInput {
  Matrix f, f0, g, g0;  // image, its pre-trained twin, text, its pre-trained twin: [rows, dim]
  int64_t rows, dim;
  DType dtype;
  bool normalize;
  int threads;
};

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

struct DiveKernels {
  void (*forward)(const DiveInput&, const float* mean, double momentum, double* workspace,
                  float* avl, float* pvl, float* new_mean);
  void (*backward)(const DiveInput&, const float* mean, double grad_avl, double grad_pvl,
                   void* grad_f, void* grad_g);
};

struct VrfKernels {
  void (*forward)(const VrfInput&, float* workspace, void* out);
  void (*backward)(const VrfInput&, Matrix grad_out, float* workspace, void* grad_finetuned,
                   void* grad_zeroshot, float* grad_distance);
};

// Row blocks. They follow from the shape alone, never from the number of threads, so that sums
// merged block by block have the same bits on any number of threads.
struct Blocks {
  int64_t count, rows;
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

// Rows do not meet in vrf_mix: blocks of about 2^14 elements, the work that pays for a wake-up when
// every element costs two exponentials.
static inline Blocks vrf_blocks(int64_t rows, int64_t classes) {
  int64_t size = (int64_t{1} << 14) / classes;
  if (size < 1) size = 1;
  return {(rows + size - 1) / size, size};
}

// The widest vector has 16 lanes: workspace rows are padded to it.
static inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

// Doubles: the centre and one float row per worker (as halves of doubles), then per block the
// column sums and two scalars.
static inline int64_t dive_workspace(int64_t rows, int64_t dim, int workers) {
  return padded(dim) / 2 * (1 + workers) + dive_blocks(rows, dim).count * (padded(dim) + 2);
}

// Floats: two rows per worker.
static inline int64_t vrf_workspace(int64_t classes, int workers) {
  return 2 * padded(classes) * workers;
}

// ROBUSTFT_ISA names a compilation: its tables are dive_<isa> and vrf_<isa>.
#define ROBUSTFT_JOIN_(a, b) a##b
#define ROBUSTFT_JOIN(a, b) ROBUSTFT_JOIN_(a, b)

}  // namespace robustft
