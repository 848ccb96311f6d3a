// What mpm_nce.cpp provides for each instruction set.
#pragma once

#include "../kernels.hpp"

namespace robustft {

enum class Pairs : int { diagonal = 0, labels = 1, mask = 2 };

struct MpmNceInput {
  Matrix x, y;  // images [rows, dim], texts [columns, dim]
  int64_t rows, columns, dim;
  DType dtype;
  Pairs pairs;
  const int32_t *row_ids, *column_ids;              // labels: equal ids are a positive pair
  const uint8_t* mask;                              // mask: [rows, columns], contiguous
  const int32_t *row_positives, *column_positives;  // how many positives each anchor has
  double scale, margin, smoothing;
  bool symmetric;
  // Row i is no candidate of column i: labels or a mask, and as many rows as columns, or more
  // columns in one direction.
  bool exclude_self;
  int threads;

  // Candidates of a row and of a column.
  int64_t row_candidates() const { return columns - (exclude_self ? 1 : 0); }
  int64_t column_candidates() const { return rows - (exclude_self ? 1 : 0); }
  // Whether a product of both takes at most so many products of numbers.
  bool within(int64_t products) const { return rows <= products / columns / dim; }
};

// What backward needs to know of an anchor: four rows of n floats.
//     shift      of the exponents, in powers of two
//     inverse    1 / Σ 2^(t − shift) over all candidates, t = Z·log2 e
//     negatives  the share of the negatives in that sum
//     positives  how many there are
constexpr int64_t kMpmNceStatistics = 4;

struct MpmNceKernels {
  // Bytes of workspace for the forward and the backward pass.
  int64_t (*forward_workspace)(const MpmNceInput&);
  int64_t (*backward_workspace)(const MpmNceInput&, bool kept, bool need_x, bool need_y);
  // kept: null, or room for mpm_nce_kept() floats. column_statistics: unused in one direction.
  void (*forward)(const MpmNceInput&, void* workspace, float* kept, float* loss,
                  float* row_statistics, float* column_statistics);
  // grad_x, grad_y: contiguous, null where not needed. kept: what forward wrote, or null.
  void (*backward)(const MpmNceInput&, void* workspace, const float* kept,
                   const float* row_statistics, const float* column_statistics, double grad,
                   void* grad_x, void* grad_y, float* grad_scale);
};

// Products are kept as whole tiles; 96 rows and 32 columns are a multiple of every build's, so that
// the size is the same on every processor (robustft/backends/cpu/mpm_nce.py computes it too).
static inline int64_t mpm_nce_kept(int64_t rows, int64_t columns) {
  return (rows + 95) / 96 * 96 * ((columns + 31) / 32 * 32);
}

}  // namespace robustft
