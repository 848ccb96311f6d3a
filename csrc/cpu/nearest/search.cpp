// The search over the sweeps of nearest.cpp. For a batch of queries:
//
// 1. A strided sample of the bank is screened. From its j-th smallest distance comes a threshold τ
//    below which the whole bank should have a little more than k rows.
// 2. The bank is swept. Rows that may be within τ are compared exactly, those that are, are kept.
//    After an eighth of the bank τ is estimated anew, from exact distances and more of them.
// 3. All rows within τ are known now: if they are k or more, the k-th smallest is the answer. With
//    fewer, τ was too small; with more than there is room for, the k-th smallest of those stored is
//    a better τ. Such queries are swept again, and compared with all rows in the end.
//
// What is kept is a set, and the answer an order statistic of it: neither knows of threads.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "../parallel.hpp"
#include "buffers.hpp"

namespace robustft {
namespace {

constexpr int64_t kHitBytes = int64_t{1} << 26;  // of a batch's keys
constexpr int64_t kScanKeys = int64_t{1} << 21;
constexpr int kAttempts = 5;
// Sixteenths of the bank after which the thresholds are estimated anew.
constexpr int kStages[] = {2, 5, 10, 16};
constexpr int64_t kStagedPanels = 256;  // of smaller banks they are not
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::atomic<int64_t> queries_seen{0}, rows_checked{0}, queries_retried{0}, queries_scanned{0};

// Memory that is written before it is read, so it is not cleared.
template <class T>
std::unique_ptr<T[]> uninitialised(int64_t n) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(n)]);
}

// A rank in a sample, `share` of the whole, that is above rank k of the whole almost surely: how
// many of the k are in it is hypergeometric, and three standard deviations are left.
int64_t sample_rank(int64_t k, double share) {
  const double expected = static_cast<double>(k) * share;
  return static_cast<int64_t>(std::ceil(expected + 3 * std::sqrt(expected * (1 - share)) + 2));
}

float distance_of(uint64_t key) {
  const uint32_t bits = static_cast<uint32_t>(key >> 32);
  float distance;
  std::memcpy(&distance, &bits, sizeof distance);
  return distance;
}

// The order of a sweep, n·step mod panels: steps of the golden section, so that any stretch of it
// is spread over the bank, periodic ones too.
int64_t golden_step(int64_t panels) {
  int64_t step =
      std::max<int64_t>(1, static_cast<int64_t>(0.6180339887 * static_cast<double>(panels)));
  while (std::gcd(step, panels) != 1) --step;
  return step;
}

class Searcher {
 public:
  explicit Searcher(const NearestSearch& search)
      : s_(search),
        panels_(nearest_panels(s_.kernels, s_.bank.count)),
        words_(nearest_words(s_.kernels, s_.bank.dim)) {
    const int64_t wanted = std::max(s_.bank.count / 16, std::min<int64_t>(s_.bank.count, 2048));
    const int64_t some = (wanted + s_.kernels.cols - 1) / s_.kernels.cols;
    step_ = std::max<int64_t>(1, panels_ / some);
    sampled_ = (panels_ + step_ - 1) / step_;
    // One more than k would be a bound, but for the rounding of screened distances.
    rank_ = std::min(s_.k + 1, sample_rank(s_.k, 1.0 / static_cast<double>(step_)));
    capacity_ = 5 * s_.k / 2 + 128;
    // At most D/8 + 8 roundings of half an ulp in nearest.cpp's sums; twice that.
    error_ = (static_cast<double>(s_.bank.dim) / 8 + 8) * 0x1p-23;
    tiny_ = static_cast<double>(s_.bank.dim) * 0x1p-125;
  }

  void run() {
    queries_seen += s_.count;
    std::vector<int32_t> all;
    const bool usable = finite(s_.bank.mean);
    for (int64_t q = 0; q < s_.count; ++q) {
      if (usable && finite(s_.queries + q * s_.stride)) {
        all.push_back(static_cast<int32_t>(q));
      } else {
        answer_nan(q);
      }
    }
    // Screening pays where most rows can be discarded.
    if (s_.bank.panels == nullptr || 2 * rank_ > sampled_ * s_.kernels.cols) {
      return scan(all);
    }
    const int64_t size =
        std::clamp<int64_t>(kHitBytes / (8 * capacity_) / 64 * 64, 64, kBatchQueries);
    std::vector<int32_t> left;
    for (size_t first = 0; first < all.size(); first += static_cast<size_t>(size)) {
      const size_t last = std::min(all.size(), first + static_cast<size_t>(size));
      if (stopping()) return;
      screen({all.begin() + static_cast<int64_t>(first), all.begin() + static_cast<int64_t>(last)},
             left);
    }
    scan(left);
  }

 private:
  // Queries in whole tiles.
  int64_t padded(int64_t count) const {
    return (count + s_.kernels.rows - 1) / s_.kernels.rows * s_.kernels.rows;
  }

  bool finite(const float* x) const {
    return std::all_of(x, x + s_.bank.dim, [](float y) { return std::isfinite(y); });
  }

  void answer_nan(int64_t q) const {
    const int64_t width = s_.indices == nullptr ? 1 : s_.k;
    std::fill_n(s_.distances + q * width, width, std::numeric_limits<float>::quiet_NaN());
    if (s_.indices != nullptr) std::fill_n(s_.indices + q * width, width, int64_t{-1});
  }

  // The k-th smallest distance of query q, exact, from `count` keys with float32 distances. The k
  // first keys are the answer then, the k-th in its place.
  //
  // x within e of its true distance, relative: rows below (1 − 2e)·x_k are surely among the first
  // k, rows above (1 + 2e)·x_k surely not; what is between is ordered by exact distances.
  float settle(int64_t q, uint64_t* keys, int64_t count) const {
    const int64_t k = s_.k;
    std::nth_element(keys, keys + k - 1, keys + count);
    const double x = distance_of(keys[k - 1]);
    const double finite = std::min<double>(x, std::numeric_limits<float>::max());
    const double low = finite * (1 - 2 * error_) - 2 * tiny_,
                 high = x * (1 + 2 * error_) + 2 * tiny_;
    uint64_t* first =
        std::partition(keys, keys + k, [&](uint64_t y) { return distance_of(y) < low; });
    uint64_t* last =
        std::partition(keys + k, keys + count, [&](uint64_t y) { return distance_of(y) <= high; });
    s_.kernels.refine(s_.bank, s_.queries + q * s_.stride, first, last - first);
    std::nth_element(first, keys + k - 1, last);
    return distance_of(keys[k - 1]);
  }

  // Write the answer to query q: its k first keys, the k-th in its place.
  void answer(int64_t q, uint64_t* keys, bool are_exact) const {
    if (s_.indices == nullptr) {
      s_.distances[q] = distance_of(keys[s_.k - 1]);
      return;
    }
    if (!are_exact) s_.kernels.refine(s_.bank, s_.queries + q * s_.stride, keys, s_.k);
    std::sort(keys, keys + s_.k);
    for (int64_t i = 0; i < s_.k; ++i) {
      s_.distances[q * s_.k + i] = distance_of(keys[i]);
      s_.indices[q * s_.k + i] = static_cast<int64_t>(keys[i] & 0xffffffffu);
    }
  }

  // Answer the queries of `which`; those that resist go to `left`.
  void screen(std::vector<int32_t> which, std::vector<int32_t>& left) const {
    std::vector<float> thresholds;
    const int64_t most = static_cast<int64_t>(which.size());
    const NearestBuffers buffers(most * capacity_, std::max(1, s_.threads), padded(most) * words_);
    for (int attempt = 0; attempt < kAttempts && !which.empty() && !stopping(); ++attempt) {
      const int64_t count = static_cast<int64_t>(which.size());
      if (attempt > 0) queries_retried += count;
      const int64_t rows = padded(count);
      std::vector<NearestQuery> query(static_cast<size_t>(rows));
      const NearestBatch batch{s_.queries, s_.stride,      which.data(),
                               count,      buffers.panels, query.data()};
      pack(batch);
      if (attempt == 0) thresholds = estimate(batch);
      for (int64_t q = 0; q < rows; ++q) set(query[q], q < count ? thresholds[q] : -1);
      std::vector<int64_t> found(which.size(), 0);
      int64_t checked = 0;
      const NearestHits hits{buffers.keys, capacity_, found.data(), &checked};
      sweep(batch, hits, buffers.sweeps, attempt == 0);
      rows_checked += checked;

      std::vector<char> done(which.size());
      auto finish = [&](int64_t q, int) {
        uint64_t* mine = buffers.keys + q * capacity_;
        float& threshold = query[q].threshold;
        done[q] = false;
        if (found[q] > capacity_) {
          // What is stored is a sample of what was found.
          const double share = static_cast<double>(capacity_) / static_cast<double>(found[q]);
          uint64_t* at = mine + std::min(s_.k, sample_rank(s_.k, share)) - 1;
          std::nth_element(mine, at, mine + capacity_);
          threshold = std::min(threshold, distance_of(*at));
        } else if (found[q] >= s_.k && settle(which[q], mine, found[q]) <= threshold) {
          answer(which[q], mine, false);
          done[q] = true;
        } else if (attempt == 0 && threshold < thresholds[static_cast<size_t>(q)]) {
          threshold = thresholds[static_cast<size_t>(q)];  // it was the later ones that failed
        } else {
          const double root = std::sqrt(threshold) * 1.1 + 2 * query[q].residual;
          threshold = static_cast<float>(root * root);
        }
      };
      parallel(count, s_.threads, finish);

      std::vector<int32_t> rest;
      thresholds.clear();
      for (int64_t q = 0; q < count; ++q) {
        if (done[q]) continue;
        rest.push_back(which[q]);
        thresholds.push_back(query[q].threshold);
      }
      which = std::move(rest);
    }
    left.insert(left.end(), which.begin(), which.end());
  }

  void pack(const NearestBatch& batch) const {
    const int64_t width = (s_.bank.dim + 63) / 64 * 64;
    std::vector<float> scratch(static_cast<size_t>(2 * width * std::max(1, s_.threads)));
    s_.packing.queries(s_.bank, batch, scratch.data(), s_.threads);
  }

  // Thresholds from the sample.
  std::vector<float> estimate(const NearestBatch& batch) const {
    const int64_t count = batch.count;
    // Few queries: cut the sample, so that all threads have work.
    const int64_t lefts = (count + s_.kernels.rows - 1) / s_.kernels.rows;
    const int64_t parts = std::min<int64_t>(std::max<int64_t>(1, 16 / lefts), (sampled_ + 7) / 8);
    const int64_t capacity = 2 * rank_ + 32;
    auto values = uninitialised<float>(count * parts * capacity);
    auto found = uninitialised<int32_t>(count * parts);
    s_.kernels.sample(s_.bank, batch,
                      {sampled_, step_, parts, rank_, capacity, values.get(), found.get()},
                      s_.threads);
    std::vector<float> thresholds(static_cast<size_t>(count));
    auto body = [&](int64_t q, int) {
      float* mine = values.get() + q * parts * capacity;
      int64_t total = 0;
      for (int64_t part = 0; part < parts; ++part) {
        const float* from = mine + part * capacity;
        std::copy(from, from + found[q * parts + part], mine + total);
        total += found[q * parts + part];
      }
      const int64_t rank = std::min(rank_, total);
      float value = kInfinity;
      if (rank > 0) {
        std::nth_element(mine, mine + rank - 1, mine + total);
        value = mine[rank - 1];
      }
      thresholds[q] = std::max(0.0f, value + batch.query[q].norm);
    };
    parallel(count, s_.threads, body);
    return thresholds;
  }

  // The test of nearest.cpp for a threshold; a negative one keeps nothing.
  void set(NearestQuery& query, float threshold) const {
    query.threshold = threshold;
    query.reach = 0;
    query.floor = kInfinity;
    query.limit = threshold;
    if (threshold < 0) return;
    const double c = s_.packing.slack(s_.bank.dim);
    query.limit = static_cast<float>(threshold * (1 + error_) + tiny_);
    const double reach =
        (std::sqrt(static_cast<double>(threshold)) + query.residual) * (1 + 0x1p-20);
    if (!(reach * reach < kNearestLargest)) {
      query.floor = -kInfinity;
      return;
    }
    query.reach = static_cast<float>(2 * reach);
    query.floor = static_cast<float>(query.norm * (1 - c) - reach * reach * (1 + c) - kNearestTiny);
  }

  void sweep(const NearestBatch& batch, const NearestHits& hits, uint64_t* scratch,
             bool estimate) const {
    const int64_t step = golden_step(panels_);
    if (panels_ < kStagedPanels || !estimate) {
      s_.kernels.sweep(s_.bank, batch, step, 0, panels_, hits, scratch, s_.threads);
      return;
    }
    int64_t first = 0;
    for (const int stage : kStages) {
      const int64_t last = panels_ * stage / 16;
      s_.kernels.sweep(s_.bank, batch, step, first, last, hits, scratch, s_.threads);
      if (last == panels_) return;
      // The k-th distance found is a bound, and the rank-th an estimate.
      const int64_t rank = std::min(
          s_.k, sample_rank(s_.k, static_cast<double>(last) / static_cast<double>(panels_)));
      auto tighten = [&](int64_t q, int) {
        const int64_t found = hits.found[q];
        if (found < rank || found > hits.capacity) return;
        uint64_t* mine = hits.keys + q * hits.capacity;
        std::nth_element(mine, mine + rank - 1, mine + found);
        const double bound = distance_of(mine[rank - 1]) * (1 + error_) + tiny_;
        set(batch.query[q], std::min(batch.query[q].threshold, static_cast<float>(bound)));
      };
      parallel(batch.count, s_.threads, tighten);
      first = last;
    }
  }

  // Compare the queries of `which` with every row.
  void scan(const std::vector<int32_t>& which) const {
    if (which.empty()) return;
    const int64_t total = static_cast<int64_t>(which.size()), rows = s_.bank.count;
    if (s_.bank.panels != nullptr) queries_scanned += total;
    rows_checked += total * rows;
    const int64_t group = std::min(total, std::max<int64_t>(8, kScanKeys / rows));
    auto keys = uninitialised<uint64_t>(group * rows);
    for (int64_t first = 0; first < total && !stopping(); first += group) {
      const int64_t count = std::min(group, total - first);
      const NearestBatch batch{s_.queries, s_.stride, which.data() + first,
                               count,      nullptr,   nullptr};
      s_.kernels.scan(s_.bank, batch, keys.get(), s_.threads);
      auto body = [&](int64_t q, int) {
        uint64_t* mine = keys.get() + q * rows;
        std::nth_element(mine, mine + s_.k - 1, mine + rows);
        answer(which[static_cast<size_t>(first + q)], mine, true);
      };
      parallel(count, s_.threads, body);
    }
  }

  const NearestSearch& s_;
  int64_t panels_, words_;
  int64_t step_, sampled_, rank_;  // the sample: every step-th panel
  int64_t capacity_;               // keys of a query
  double error_, tiny_;            // of a float32 distance: relative, and what underflow takes
};

}  // namespace

bool nearest_pack(const NearestKernels&, const NearestPacking& packing, const NearestBank& bank,
                  int threads) {
  const int64_t width = (bank.dim + 63) / 64 * 64;
  std::vector<float> scratch(static_cast<size_t>(2 * width * std::max(1, threads)));
  return packing.bank(bank, scratch.data(), threads);
}

void nearest_search(const NearestSearch& search) { Searcher(search).run(); }

NearestStatistics nearest_statistics() {
  return {queries_seen, rows_checked, queries_retried, queries_scanned};
}

}  // namespace robustft
