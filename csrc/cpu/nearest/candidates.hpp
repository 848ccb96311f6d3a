// The rows of a block that the screen leaves, and which of them are kept.
#pragma once

#include "distances.hpp"

namespace robustft {
namespace {

// The panels that a worker has in hand, and which of their lanes are rows of the bank. A row's
// entry is panel of the block << 5 | lane.
struct Block {
  int64_t panels;  // of the bank
  int64_t count, panel[kBlockPanels];
  uint32_t lanes[kBlockPanels];

  int64_t row(int64_t entry) const { return panel[entry >> 5] + (entry & 31) * panels; }
};

// A worker's candidates of one block. Those of a left panel have a place each, so that nothing is
// sorted; then they are moved to a log, query by query.
class Candidates {
 public:
  static constexpr int64_t kMost = kBlockPanels * kTileCols;  // of a query
  static_assert(kTileCols <= 32 && kMost <= kBlockRows && Tile::kRows <= kMostTileRows);
  uint64_t* keys;  // [kMost]

  explicit Candidates(uint64_t* scratch)
      : keys(scratch),
        queries_(reinterpret_cast<Query*>(scratch + kBlockRows)),
        log_(reinterpret_cast<uint16_t*>(queries_ + kBatchQueries)),
        entries_(log_ + kLogged) {}

  void add(int r, int64_t panel, uint32_t lanes) {
    uint16_t* entries = entries_ + r * kMost;
    int32_t n = count_[r];
    for (; lanes != 0; lanes &= lanes - 1) {
      entries[n++] = static_cast<uint16_t>(panel << 5 | lowest_bit(lanes));
    }
    count_[r] = n;
  }

  // Log those of a left panel whose first query is `first`.
  void log(int64_t first) {
    for (int r = 0; r < Tile::kRows; ++r) {
      const int32_t count = count_[r];
      if (count == 0) continue;
      queries_[listed_++] = {static_cast<int32_t>(first) + r, count};
      std::memcpy(log_ + logged_, entries_ + r * kMost, static_cast<size_t>(2 * count));
      logged_ += count;
      count_[r] = 0;
    }
  }
  bool full() const { return logged_ + Tile::kRows * kMost > kLogged; }

  // Call body(query, its entries, their number, the next query or −1) for all that is logged.
  template <class Body>
  void drain(Body& body) {
    const uint16_t* entries = log_;
    for (int64_t n = 0; n < listed_; ++n) {
      const auto [query, count] = queries_[n];
      body(query, entries, count, n + 1 < listed_ ? queries_[n + 1].query : -1);
      entries += count;
    }
    listed_ = logged_ = 0;
  }

 private:
  struct Query {
    int32_t query, count;
  };
  Query* queries_;
  uint16_t *log_, *entries_;
  int64_t listed_ = 0, logged_ = 0;
  int32_t count_[Tile::kRows] = {};
};

inline void fetch(const float* x, int64_t dim) {
  for (int64_t i = 0; i < dim; i += 16) __builtin_prefetch(x + i);
}

// Takes the distances of candidates, and keeps those within their query's threshold.
struct Check {
  const NearestBank& bank;
  const NearestBatch& batch;
  const Block& block;
  const NearestHits& hits;
  uint64_t* keys;
  int64_t checked = 0;

  // Queries and their lists are more than the second cache holds.
  void fetch_query(int64_t q) const {
    const int64_t stored = __atomic_load_n(hits.found + q, __ATOMIC_RELAXED);
    __builtin_prefetch(hits.keys + q * hits.capacity + stored, 1);
    __builtin_prefetch(hits.keys + q * hits.capacity + stored + 7, 1);
    fetch(batch.values + batch.which[q] * batch.stride, bank.dim);
  }

  template <int R>
  int64_t compare(int64_t q, const uint16_t* entries, int64_t kept) const {
    int64_t row[R];
    const float* v[R];
    float distances[R];
    for (int i = 0; i < R; ++i) {
      row[i] = block.row(entries[i]);
      v[i] = bank.rows + row[i] * bank.stride;
    }
    approximate<R>(batch.values + batch.which[q] * batch.stride, v, bank.dim, distances);
    for (int i = 0; i < R; ++i) {
      keys[kept] = key(distances[i], row[i]);
      kept += !(distances[i] > batch.query[q].limit);
    }
    return kept;
  }

  void operator()(int64_t q, const uint16_t* entries, int64_t count, int64_t next) {
    if (next >= 0) fetch_query(next);
    int64_t n = 0, kept = 0;
    for (; n + 4 <= count; n += 4) kept = compare<4>(q, entries + n, kept);
    for (; n < count; ++n) kept = compare<1>(q, entries + n, kept);
    checked += count;
    int64_t slot = __atomic_fetch_add(hits.found + q, kept, __ATOMIC_RELAXED);
    for (int64_t i = 0; i < kept && slot < hits.capacity; ++i) {
      hits.keys[q * hits.capacity + slot++] = keys[i];
    }
  }
};

}  // namespace
}  // namespace robustft
