// The sweeps of the nearest-row search: screening in panels, and exact distances of what is left.
// search.cpp says how they make a search; docs/kernels/nearest.md derives the test.
//
// A row may be as near as the threshold τ only if  |q̃ − ṽ|² ≤ (√τ + ρ_q + ρ_v)²,  that is, with
// t = √τ + ρ_q and the integer product I of the rounded rows,
//
//     2·s_q·s_v·I + 2t·ρ_v − near ≥ floor,   near = |ṽ|² − ρ_v²,   floor = |q̃|² − t²
//
// near and floor are lowered by what float32 loses in this sum; whatever is not below the floor,
// NaN too, is a candidate. Candidates' distances are taken in float32, and those within the
// threshold and their own error are kept. Where their order matters it is that of distances in
// double, rounded once: the numbers that are returned.
#include "nearest.hpp"

#include "../parallel.hpp"
#include "candidates.hpp"

namespace robustft {
namespace {

using Sum = Tile::Sum;

[[maybe_unused]] inline Vec to_float(Vec x) { return x; }
[[maybe_unused]] inline Vec to_float(IVec x) { return __builtin_convertvector(x, Vec); }

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

// Bits of the lanes of a panel that are rows of the bank.
inline uint32_t lanes_of(int64_t panel, const Shape& shape, int64_t rows) {
  const int64_t lanes = (rows - panel + shape.panels - 1) / shape.panels;
  return lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1;
}

void sweep_bank(const NearestBank& bank, const NearestBatch& batch, int64_t step, int64_t first,
                int64_t last, const NearestHits& hits, uint64_t* scratch, int threads) {
  const Shape shape(bank, batch);
  // Fewer panels at a time where threads would have nothing to do.
  int64_t width = kBlockPanels;
  while (width > 1 && (last - first + width - 1) / width < 4 * threads) width /= 2;
  auto body = [&](int64_t task, int worker) {
    const Tile::Scope scope;
    const int64_t begin = first + task * width;
    Block block;
    block.panels = shape.panels;
    block.count = begin + width < last ? width : last - begin;
    for (int64_t i = 0; i < block.count; ++i) {
      block.panel[i] = (begin + i) * step % shape.panels;
      block.lanes[i] = lanes_of(block.panel[i], shape, bank.count);
    }
    Candidates list(scratch + worker * kSweepScratch);
    Check check{bank, batch, block, hits, list.keys};
    for (int64_t left = 0; left < shape.lefts && !stopping(); ++left) {
      const Word* words = left_panel(batch, shape, left);
      const NearestQuery* queries = batch.query + left * Tile::kRows;
      for (int64_t i = 0; i < block.count; ++i) {
        const int64_t p = block.panel[i];
        const Panel panel(constants_of(bank, p));
        Tile::multiply(
            words, right_panel(bank, shape, p), shape.words, panel.start[0], panel.start[1],
            [&](int r, Sum x0, Sum x1) {
              const NearestQuery& query = queries[r];
              const Vec reach = splat(query.reach), floor = splat(query.floor);
              const Vec c0 = fma(reach, panel.residual[0], panel.closeness(query, x0, 0));
              const Vec c1 = fma(reach, panel.residual[1], panel.closeness(query, x1, 1));
              uint32_t lanes = (not_below(c0, floor) | not_below(c1, floor) << W) & block.lanes[i];
              if (__builtin_expect(lanes == 0, 1)) return;
              if (left * Tile::kRows + r < batch.count) list.add(r, i, lanes);
            });
      }
      list.log(left * Tile::kRows);
      if (list.full()) list.drain(check);
    }
    list.drain(check);
    if (check.checked > 0) __atomic_fetch_add(hits.checked, check.checked, __ATOMIC_RELAXED);
  };
  parallel((last - first + width - 1) / width, threads, body);
}

// Replace the distances of `count` keys by exact ones.
void refine(const NearestBank& bank, const float* query, uint64_t* keys, int64_t count) {
  for (int64_t n = 0; n < count; ++n) {
    const int64_t row = static_cast<int64_t>(keys[n] & 0xffffffffu);
    if (n + 1 < count) {
      fetch(bank.rows + static_cast<int64_t>(keys[n + 1] & 0xffffffffu) * bank.stride, bank.dim);
    }
    keys[n] = key(exact(query, bank.rows + row * bank.stride, bank.dim), row);
  }
}

void scan(const NearestBank& bank, const NearestBatch& batch, uint64_t* keys, int threads) {
  auto body = [&](int64_t block, int) {
    const int64_t first = block * kScanRows;
    const int64_t last = first + kScanRows < bank.count ? first + kScanRows : bank.count;
    for (int64_t q = 0; q < batch.count && !stopping(); ++q) {
      const float* x = batch.values + batch.which[q] * batch.stride;
      for (int64_t row = first; row < last; ++row) {
        keys[q * bank.count + row] = key(exact(x, bank.rows + row * bank.stride, bank.dim), row);
      }
    }
  };
  parallel((bank.count + kScanRows - 1) / kScanRows, threads, body);
}

}  // namespace

constexpr const char* kFormat = kInt8     ? kLargest == 127 ? "cpu-int8-32-1"
                                            : W == 16       ? "cpu-int7-32-1"
                                                            : "cpu-int7-16-1"
                                : W == 16 ? "cpu-fp32-32-1"
                                : W == 8  ? "cpu-fp32-16-1"
                                          : "cpu-fp32-8-1";

extern const NearestKernels ROBUSTFT_JOIN(nearest_, ROBUSTFT_ISA);
const NearestKernels ROBUSTFT_JOIN(nearest_, ROBUSTFT_ISA) = {
    kFormat, Tile::kRows, kTileCols, Tile::kElements, kMultiple, sample, sweep_bank, refine, scan};

}  // namespace robustft
