// The sweeps of the nearest-row search: screening in panels, and exact distances of what is left.
// nearest_search.cpp says how they make a search; docs/kernels/nearest.md derives the test.
//
// A row may be as near as the threshold τ only if  |q̃ − ṽ|² ≤ (√τ + ρ_q + ρ_v)²,  that is, with
// t = √τ + ρ_q and the integer product I of the rounded rows,
//
//     2·s_q·s_v·I + 2t·ρ_v − near ≥ floor,   near = |ṽ|² − ρ_v²,   floor = |q̃|² − t²
//
// near and floor are lowered by what float32 loses in this sum; whatever is not below the floor,
// NaN too, is a candidate. A candidate's distance is taken in float32, and if that is within the
// threshold and its own error, in double, rounded once: the number that is returned.
#include "nearest.hpp"

#include "nearest_tile.hpp"
#include "parallel.hpp"

namespace robustft {
namespace {

using Sum = Tile::Sum;

inline Vec to_float(Vec x) { return x; }
inline Vec to_float(IVec x) { return __builtin_convertvector(x, Vec); }

// What a panel's rows are known by.
struct Panel {
  Vec scale[2], near[2], residual[2];
  Sum start[2];

  explicit Panel(const int32_t* constants) {
    for (int h = 0; h < 2; ++h) {
      std::memcpy(&scale[h], constants + h * W, sizeof(Vec));
      std::memcpy(&near[h], constants + kTileCols + h * W, sizeof(Vec));
      std::memcpy(&residual[h], constants + 2 * kTileCols + h * W, sizeof(Vec));
      std::memcpy(&start[h], constants + 3 * kTileCols + h * W, sizeof(Vec));
    }
  }

  // 2·s_q·s_v·I − near, whose negative is |q̃ − ṽ|² − |q̃|².
  Vec closeness(const NearestQuery& query, Sum sum, int h) const {
    const Vec product = kInt8 ? to_float(sum) * scale[h] : to_float(sum);
    return fma(splat(query.scale), product, -near[h]);
  }
};

struct Shape {
  int64_t panels, words, lefts;
  Shape(const NearestBank& bank, const NearestBatch& batch)
      : panels(panels_of(bank.count)),
        words(words_of(bank.dim)),
        lefts((batch.count + Tile::kRows - 1) / Tile::kRows) {}
};

const Word* left_panel(const NearestBatch& batch, const Shape& s, int64_t left) {
  return static_cast<const Word*>(batch.panels) + left * s.words * Tile::kRows;
}
const Word* right_panel(const NearestBank& bank, const Shape& s, int64_t p) {
  return static_cast<const Word*>(bank.panels) + p * s.words * kTileCols;
}
const int32_t* constants_of(const NearestBank& bank, int64_t p) {
  return bank.constants + p * kNearestConstants * kTileCols;
}

// Σ(q − v)² in float32: four sums a lane, so D/(4·W) + 8 roundings at most.
float approximate(const float* q, const float* v, int64_t dim) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= dim; i += 4 * W) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Vec d = load(q + i + k * W) - load(v + i + k * W);
      sums[k] = fma(d, d, sums[k]);
    }
  }
  sweep(i, dim, [&](int64_t j, auto part) {
    const Vec d = load(q + j, part) - load(v + j, part);
    sums[0] = fma(d, d, sums[0]);
  });
  const Vec total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return static_cast<float>(sum(total));
}

// Σ(q − v)² in double, rounded once.
float exact(const float* q, const float* v, int64_t dim) {
  DVec sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * W <= dim; i += 2 * W) {
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      const DVec d = widen(load(q + i + k * W)) - widen(load(v + i + k * W));
      sums[k] += d * d;
    }
  }
  sweep(i, dim, [&](int64_t j, auto part) {
    const DVec d = widen(load(q + j, part)) - widen(load(v + j, part));
    sums[0] += d * d;
  });
  return static_cast<float>(sum(sums[0] + sums[1]));
}

inline uint64_t key(float distance, int64_t row) {
  uint32_t bits;
  std::memcpy(&bits, &distance, sizeof bits);
  return static_cast<uint64_t>(bits) << 32 | static_cast<uint64_t>(row);
}

// Move the `keep` smallest values to the front and return the largest of them.
float keep_smallest(float* x, int64_t count, int64_t keep) {
  int64_t low = 0, high = count - 1;
  const int64_t at = keep - 1;
  while (low < high) {
    const float pivot = x[(low + high) / 2];
    int64_t i = low, j = high;
    while (i <= j) {
      while (x[i] < pivot) ++i;
      while (pivot < x[j]) --j;
      if (i <= j) {
        const float swapped = x[i];
        x[i++] = x[j];
        x[j--] = swapped;
      }
    }
    if (at <= j) {
      high = j;
    } else if (at >= i) {
      low = i;
    } else {
      break;
    }
  }
  return x[at];
}

void sample(const NearestBank& bank, const NearestBatch& batch, const NearestSample& out,
            int threads) {
  const Shape shape(bank, batch);
  const int64_t part_panels = (out.panels + out.parts - 1) / out.parts;
  auto body = [&](int64_t task, int) {
    const Tile::Scope scope;
    const int64_t left = task / out.parts, part = task % out.parts;
    const int64_t first = part * part_panels;
    const int64_t last = first + part_panels < out.panels ? first + part_panels : out.panels;
    float bound[Tile::kRows];
    int64_t found[Tile::kRows];
    float* lists[Tile::kRows];
    const NearestQuery* queries = batch.query + left * Tile::kRows;
    for (int r = 0; r < Tile::kRows; ++r) {
      const int64_t q = left * Tile::kRows + r;
      bound[r] = q < batch.count ? -static_cast<float>(kNearestLargest) : __builtin_inff();
      found[r] = 0;
      lists[r] = out.values + (q * out.parts + part) * out.capacity;
    }
    for (int64_t n = first; n < last; ++n) {
      const int64_t p = n * out.step;
      const Panel panel(constants_of(bank, p));
      Tile::multiply(left_panel(batch, shape, left), right_panel(bank, shape, p), shape.words,
                     panel.start[0], panel.start[1], [&](int r, Sum x0, Sum x1) {
                       const Vec c0 = panel.closeness(queries[r], x0, 0);
                       const Vec c1 = panel.closeness(queries[r], x1, 1);
                       const Vec least = splat(bound[r]);
                       uint32_t lanes = not_below(c0, least) | not_below(c1, least) << W;
                       if (lanes == 0) return;
                       float closeness[kTileCols];
                       store(closeness, c0);
                       store(closeness + W, c1);
                       for (; lanes != 0; lanes &= lanes - 1) {
                         const float value = -closeness[lowest_bit(lanes)];
                         if (!(value > -kNearestLargest && value < kNearestLargest)) continue;
                         lists[r][found[r]++] = value;
                         if (found[r] < out.capacity) continue;
                         bound[r] = -keep_smallest(lists[r], out.capacity, out.keep);
                         found[r] = out.keep;
                       }
                     });
    }
    for (int r = 0; r < Tile::kRows; ++r) {
      const int64_t q = left * Tile::kRows + r;
      if (q < batch.count) out.found[q * out.parts + part] = static_cast<int32_t>(found[r]);
    }
  };
  parallel(shape.lefts * out.parts, threads, body);
}

// A worker's candidates of one block: query << 8 | panel in the block << 5 | lane.
struct Candidates {
  uint32_t* entries;
  int64_t count = 0;
};

void check(const NearestBank& bank, const NearestBatch& batch, int64_t block,
           const Shape& shape, const NearestHits& hits, Candidates& list) {
  for (int64_t n = 0; n < list.count; ++n) {
    const uint32_t entry = list.entries[n];
    const int64_t q = entry >> 8;
    const int64_t row =
        block * kBlockPanels + (entry >> 5 & 7) + static_cast<int64_t>(entry & 31) * shape.panels;
    const NearestQuery& query = batch.query[q];
    const float* x = batch.values + batch.which[q] * batch.stride;
    const float* v = bank.rows + row * bank.stride;
    if (approximate(x, v, bank.dim) > query.limit) continue;
    const float distance = exact(x, v, bank.dim);
    if (!(distance <= query.threshold)) continue;
    const int64_t slot = __atomic_fetch_add(hits.found + q, 1, __ATOMIC_RELAXED);
    if (slot < hits.capacity) hits.keys[q * hits.capacity + slot] = key(distance, row);
  }
  __atomic_fetch_add(hits.checked, list.count, __ATOMIC_RELAXED);
  list.count = 0;
}

void sweep_bank(const NearestBank& bank, const NearestBatch& batch, int first, int last,
                const NearestHits& hits, uint32_t* scratch, int threads) {
  const Shape shape(bank, batch);
  constexpr int64_t kMost = kBlockPanels * kTileCols * Tile::kRows;  // that a left panel can add
  static_assert(kTileCols <= 32 && kBlockPanels <= 8 && 2 * kMost <= kCandidates);
  auto body = [&](int64_t block, int worker) {
    const Tile::Scope scope;
    Candidates list{scratch + worker * kCandidates};
    const int64_t begin = block * kBlockPanels + first;
    int64_t end = block * kBlockPanels + last;
    if (end > shape.panels) end = shape.panels;
    for (int64_t left = 0; left < shape.lefts && begin < end; ++left) {
      const Word* words = left_panel(batch, shape, left);
      const NearestQuery* queries = batch.query + left * Tile::kRows;
      for (int64_t p = begin; p < end; ++p) {
        const Panel panel(constants_of(bank, p));
        const uint32_t label = static_cast<uint32_t>(p - block * kBlockPanels) << 5;
        Tile::multiply(
            words, right_panel(bank, shape, p), shape.words, panel.start[0], panel.start[1],
            [&](int r, Sum x0, Sum x1) {
              const NearestQuery& query = queries[r];
              const Vec reach = splat(query.reach), floor = splat(query.floor);
              const Vec c0 = fma(reach, panel.residual[0], panel.closeness(query, x0, 0));
              const Vec c1 = fma(reach, panel.residual[1], panel.closeness(query, x1, 1));
              uint32_t lanes = not_below(c0, floor) | not_below(c1, floor) << W;
              if (__builtin_expect(lanes == 0, 1)) return;
              const int64_t q = left * Tile::kRows + r;
              if (q >= batch.count) return;
              for (; lanes != 0; lanes &= lanes - 1) {
                const int lane = lowest_bit(lanes);
                if (p + lane * shape.panels >= bank.count) return;
                list.entries[list.count++] =
                    static_cast<uint32_t>(q) << 8 | label | static_cast<uint32_t>(lane);
              }
            });
      }
      if (list.count + kMost > kCandidates) check(bank, batch, block, shape, hits, list);
    }
    check(bank, batch, block, shape, hits, list);
  };
  parallel((shape.panels + kBlockPanels - 1) / kBlockPanels, threads, body);
}

void scan(const NearestBank& bank, const NearestBatch& batch, uint64_t* keys, int threads) {
  auto body = [&](int64_t block, int) {
    const int64_t first = block * kScanRows;
    const int64_t last = first + kScanRows < bank.count ? first + kScanRows : bank.count;
    for (int64_t q = 0; q < batch.count; ++q) {
      const float* x = batch.values + batch.which[q] * batch.stride;
      for (int64_t row = first; row < last; ++row) {
        keys[q * bank.count + row] = key(exact(x, bank.rows + row * bank.stride, bank.dim), row);
      }
    }
  };
  parallel((bank.count + kScanRows - 1) / kScanRows, threads, body);
}

}  // namespace

extern const NearestKernels ROBUSTFT_JOIN(nearest_, ROBUSTFT_ISA);
const NearestKernels ROBUSTFT_JOIN(nearest_, ROBUSTFT_ISA) = {
    kInt8 ? "cpu-int8-32-1" : W == 16 ? "cpu-fp32-32-1" : W == 8 ? "cpu-fp32-16-1" : "cpu-fp32-8-1",
    Tile::kRows, kTileCols, Tile::kElements, kInt8 ? 16 : 1, sample, sweep_bank, scan};

}  // namespace robustft
