// What nearest.cpp and pack.cpp provide for each instruction set, and the search over them
// (search.cpp, compiled once).
//
// The bank lies in panels of `cols` rows. Lane l of panel p holds row p + l·P, P panels in all:
// every panel, and every strided choice of panels, is a sample spread over the bank.
#pragma once

#include "../kernels.hpp"

namespace robustft {

constexpr int kNearestConstants = 4;  // of a bank row: scale, near, residual, start
// Panels at work together: every block reads the queries anew, once for the products and once for
// the distances of what they leave. 32 panels of width 512 take 512 KB of a core's second cache,
// and then their float32 rows all of it.
constexpr int kBlockPanels = 32;

struct NearestBank {
  const float* rows;  // [count, dim]
  int64_t stride, count, dim;
  float* mean;         // [dim]; NaN if a row is not finite
  void* panels;        // [panels][words][cols], words of 4 bytes
  int32_t* constants;  // [panels][kNearestConstants][cols], float32 but for `start`
};

// What one query's screening knows: 2·scale, |q̃|², the residual norm; and, once a threshold is
// set, twice the reach t and what the sum must not be below.
struct NearestQuery {
  float scale, norm, residual, reach, floor;
  float threshold;  // on exact squared distances
  float limit;      // the threshold, and what float32 distances may err
};

// A batch: row `which[i]` of `values` is query i.
struct NearestBatch {
  const float* values;
  int64_t stride;
  const int32_t* which;
  int64_t count;
  void* panels;         // [panels][words · rows]
  NearestQuery* query;  // [panels · rows]
};

// The rows found, as keys that sort by distance, then by row: float32 bits << 32 | row.
struct NearestHits {
  uint64_t* keys;  // [count][capacity]
  int64_t capacity;
  int64_t* found;    // [count]; beyond `capacity` the keys are lost
  int64_t* checked;  // one counter: exact distances taken
};

// The smallest screened squared distances of a sample, for every query and part.
struct NearestSample {
  int64_t panels, step;  // panels 0, step, 2·step, ...
  int64_t parts;         // the sample is cut into, for parallelism
  int64_t keep, capacity;
  float* values;   // [count][parts][capacity]
  int32_t* found;  // [count][parts]
};

// By pack.cpp.
struct NearestPacking {
  double (*slack)(int64_t dim);  // share of the squares that a float32 test may lose
  bool (*bank)(const NearestBank&, float* scratch, int threads);  // whether all rows are finite
  void (*queries)(const NearestBank&, const NearestBatch&, float* scratch, int threads);
};

// By nearest.cpp.
struct NearestKernels {
  const char* format;
  int64_t rows, cols;          // queries and bank rows of a tile
  int64_t elements, multiple;  // of a word; of words, to which panels are padded
  void (*sample)(const NearestBank&, const NearestBatch&, const NearestSample&, int threads);
  // Over panels [first, last) of the order n·step mod panels; scratch has kSweepScratch a thread.
  void (*sweep)(const NearestBank&, const NearestBatch&, int64_t step, int64_t first, int64_t last,
                const NearestHits&, uint64_t* scratch, int threads);
  // Replace the distances of keys by exact ones.
  void (*refine)(const NearestBank&, const float* query, uint64_t* keys, int64_t count);
  // All distances as keys, [count][bank rows]; no panels needed.
  void (*scan)(const NearestBank&, const NearestBatch&, uint64_t* keys, int threads);
};

// Rows of larger squared norm are not screened: no sum of a test may overflow.
constexpr double kNearestLargest = 1e37;
constexpr double kNearestTiny = 0x1p-120;    // more than underflow can take from a screening sum
constexpr int64_t kNearestWidest = 1 << 17;  // where int8 sums still fit 32 bits

constexpr int64_t kScanRows = 256;  // a block of a scan

constexpr int64_t kBatchQueries = 2048;  // at most: each batch reads the bank's rows once

// Candidates of a block: keys of one query, eight bytes a query, and two for each row that is
// logged, or may be of a tile.
constexpr int64_t kBlockRows = kBlockPanels * 32, kMostTileRows = 32;
constexpr int64_t kLogged = int64_t{1} << 17;
constexpr int64_t kSweepScratch =
    kBlockRows + kBatchQueries + (kLogged + kBlockRows * kMostTileRows) / 4;

static inline int64_t nearest_words(int64_t elements, int64_t multiple, int64_t dim) {
  const int64_t step = elements * multiple;
  return (dim + step - 1) / step * multiple;
}
static inline int64_t nearest_words(const NearestKernels& k, int64_t dim) {
  return nearest_words(k.elements, k.multiple, dim);
}
static inline int64_t nearest_panels(int64_t cols, int64_t rows) {
  return (rows + cols - 1) / cols;
}
static inline int64_t nearest_panels(const NearestKernels& k, int64_t rows) {
  return nearest_panels(k.cols, rows);
}

// What searches met since the module was loaded.
struct NearestStatistics {
  int64_t queries, checked, retried, scanned;
};

struct NearestSearch {
  const NearestKernels& kernels;
  const NearestPacking& packing;
  NearestBank bank;  // no panels: every row is compared exactly
  const float* queries;
  int64_t stride, count, k;
  int threads;
  float* distances;  // [count], or [count][k] with indices
  int64_t* indices;  // [count][k], or null for the k-th distance alone
};

bool nearest_pack(const NearestKernels&, const NearestPacking&, const NearestBank&, int threads);
void nearest_search(const NearestSearch&);
NearestStatistics nearest_statistics();

}  // namespace robustft
