// What rsa.cpp provides for each instruction set.
#pragma once

#include "kernels.hpp"

namespace robustft {

// One of the two sets of rows: centred (and scaled to unit length before, for "cosine"), in the
// panels that `pack` writes, with their squared lengths.
struct RsaSet {
  const float* panels;
  const float* squares;  // [rows], padded with 0 to whole panels
  int64_t dim;
  float shift;  // distances are added up about this
};

// Bins of distances: bin(d) = number of edges below d. The upper bits of d, as a float's pattern,
// name a cell; bin(d) lies in [starts[cell], starts[cell] + width).
struct RsaBins {
  const float* edges;  // ascending, then `width` times +Inf
  const uint16_t* starts;
  const float* ranks;  // what stands for a distance of each bin
  int64_t base, cells;
  int drop;   // bits below a cell's
  int width;  // a power of two
};

struct RsaInput {
  RsaSet set[2];
  int64_t rows;
  bool cosine;  // distances are ½|a − b|², otherwise |a − b|
  int threads;
};

constexpr int kRsaSums = 5;  // Σx, Σy, Σx², Σy², Σxy

struct RsaKernels {
  int64_t panel;  // rows side by side in a panel
  // panels(row, k) = scale·(lengths[row]·rows(row, k) − mean[k]), and their squared lengths.
  void (*pack)(Matrix rows, DType dtype, int64_t count, int64_t dim, const double* mean,
               const double* factors, double scale, int threads, float* panels, float* squares);
  // Sums over all pairs, x and y being the shifted distances; if `bins` (two of them) are given,
  // the ranks. `sums` holds rsa_jobs × kRsaSums doubles, the total comes first.
  void (*moments)(const RsaInput&, const RsaBins* bins, float* workspace, double* sums);
  // counts: per worker, per set, per bin; zero before.
  void (*count)(const RsaInput&, const RsaBins* bins, int64_t count, float* workspace,
                int64_t* counts);
};

// A job is a block of rows against a chunk of columns. 96 rows of both sets stay in the
// second-level cache at D = 512 (400 KB); 2,048 columns pay for copying the rows there. 96 and
// 2,048 are multiples of every tile.
constexpr int64_t kRsaRows = 96, kRsaCols = 2048;

static inline int64_t rsa_chunks(int64_t rows) { return (rows + kRsaCols - 1) / kRsaCols; }
static inline int64_t rsa_jobs(int64_t rows) {
  return (rows + kRsaRows - 1) / kRsaRows * rsa_chunks(rows);
}

// Floats: the row blocks of both sets, per worker.
static inline int64_t rsa_workspace(int64_t dim_a, int64_t dim_b, int workers) {
  return kRsaRows * (dim_a + dim_b) * workers;
}

}  // namespace robustft
