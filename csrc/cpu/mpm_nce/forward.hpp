// The forward pass of mpm_nce: one sweep of the product gives the sums of every row and column.
//
// One exponential 2^(t − c) serves rows and columns. c comes from a bound of |Z| (Cauchy–Schwarz),
// which it puts at 2^90: sums then stay below 2^127, and an anchor's sum is right while it is above
// 2^-80, since what underflows below 2^-126 cannot matter. At s = 100 and unit rows that covers
// every anchor whose largest cosine is above −0.18. If one anchor's is not, or the bound is too
// large, the general sweep follows, about each row's and each column's own largest t, which a
// sweep before it finds.
#pragma once

#include "sweep.hpp"

namespace robustft {
namespace {

constexpr double kRoomAbove = 90, kLeastSum = 0x1p-80, kMostSum = 0x1p126;
constexpr double kLargestBound = 256;    // beyond, 24 bits of t are too few for shift and digits
constexpr double kLargestSum = 1e38;     // of exponents, which float32 must hold
constexpr int64_t kFinishAnchors = 256;  // a task of the merge

// Sums of anchors over one part of the candidates each: [part][anchors].
struct Partials {
  float *negative, *positive, *all;
  double* weighted;
  int64_t parts, anchors;

  Partials(Carver& carver, int64_t parts_, int64_t anchors_)
      : negative(carver.take<float>(parts_ * anchors_)),
        positive(carver.take<float>(parts_ * anchors_)),
        all(carver.take<float>(parts_ * anchors_)),
        weighted(carver.take<double>(parts_ * anchors_)),
        parts(parts_),
        anchors(anchors_) {}

  AnchorSums part(int64_t k) const {
    const int64_t at = k * anchors;
    return {negative + at, positive + at, all + at, weighted + at};
  }
};

struct Forward {
  const MpmNceInput& in;
  Shape shape;
  Cut row_cut, column_cut;  // panels by task; a task is a part of each
  Packed packed;
  Partials rows, columns;
  float *row_shift, *column_shift, *offsets;
  double* losses;  // by task of the merge
  int64_t bytes;

  Forward(const MpmNceInput& input, Carver carver)
      : in(input),
        shape(input),
        row_cut(cut(shape.row_panels, 16, 512 / kSweepRows)),
        column_cut(cut(shape.column_panels, 8, shape.block)),
        packed(carve_packed(carver, shape)),
        rows(carver, column_cut.count, shape.rows),
        columns(carver, row_cut.count, shape.columns),
        row_shift(carver.take<float>(shape.rows)),
        column_shift(carver.take<float>(shape.columns)),
        offsets(carver.take<float>(shape.columns)),
        losses(carver.take<double>(finish_tasks(in.rows) + finish_tasks(in.columns))),
        bytes(carver.bytes()) {}

  static int64_t finish_tasks(int64_t n) { return ceil_div(n, kFinishAnchors); }

  int64_t tasks() const { return row_cut.count * column_cut.count; }

  // Tasks that share columns are neighbours.
  template <class Body>
  void for_tasks(Body body) const {
    auto task = [&](int64_t index, int) { body(index % row_cut.count, index / row_cut.count); };
    parallel(tasks(), in.threads, task);
  }

  // The sums of one task. Its columns pass in blocks that stay in the cache.
  template <bool kSmooth, bool kGeneral>
  void add_part(const Products& products, const Line& line, int64_t row_part,
                int64_t column_part) const {
    alignas(64) float scratch[kTileSize];
    const SweepScope scope;
    const Range down = row_cut.part(row_part), across = column_cut.part(column_part);
    const AnchorSums column = columns.part(row_part), row = rows.part(column_part);
    for (int64_t j = across.begin * kTileCols; j < across.end * kTileCols; ++j) {
      column.negative[j] = column.positive[j] = column.all[j] = 0;
      column.weighted[j] = 0;
    }
    for (int64_t c0 = across.begin; c0 < across.end; c0 += shape.block) {
      const int64_t c1 = smaller(across.end, c0 + shape.block);
      for (int64_t r = down.begin; r < down.end; ++r) {
        if (r % kRowsBetweenStops == 0 && stopping()) return;
        const int64_t i = r * kSweepRows, count = smaller(kSweepRows, in.rows - i);
        RowSums sums{};
        for (int64_t c = c0; c < c1; ++c) {
          const float* dots = products.tile(r, c, scratch);
          with_pairs(in, i, c * kTileCols, [&](auto pairs) {
            add_tile<kSmooth, kGeneral>(dots, count, i, c * kTileCols, pairs, line,
                                        {row_shift, column_shift}, sums, column);
          });
        }
        for (int64_t k = 0; k < count; ++k)
          sums.move(static_cast<int>(k), row, i + k, c0 == across.begin);
      }
    }
  }

  // The largest exponents of one task, in the place of the negatives' sums.
  void raise_part(const Products& products, const Line& line, int64_t row_part,
                  int64_t column_part) const {
    alignas(64) float scratch[kTileSize];
    const SweepScope scope;
    const Range down = row_cut.part(row_part), across = column_cut.part(column_part);
    float *row = rows.part(column_part).negative, *column = columns.part(row_part).negative;
    const float lowest = -__builtin_inff();
    for (int64_t i = down.begin * kSweepRows; i < down.end * kSweepRows; ++i) row[i] = lowest;
    for (int64_t j = across.begin * kTileCols; j < across.end * kTileCols; ++j) column[j] = lowest;
    for (int64_t c0 = across.begin; c0 < across.end; c0 += shape.block) {
      const int64_t c1 = smaller(across.end, c0 + shape.block);
      for (int64_t r = down.begin; r < down.end; ++r) {
        if (r % kRowsBetweenStops == 0 && stopping()) return;
        const int64_t i = r * kSweepRows, count = smaller(kSweepRows, in.rows - i);
        Vec top[kSweepRows];
        for (Vec& lane : top) lane = splat(lowest);
        for (int64_t c = c0; c < c1; ++c) {
          const float* dots = products.tile(r, c, scratch);
          with_pairs(in, i, c * kTileCols, [&](auto pairs) {
            raise_to_tile(dots, count, i, c * kTileCols, pairs, line, top, column);
          });
        }
        for (int64_t k = 0; k < count; ++k) {
          const float highest = max(top[k]);
          row[i + k] = highest > row[i + k] ? highest : row[i + k];
        }
      }
    }
  }

  void find_shifts(const Products& products, const Line& line) const {
    for_tasks([&](int64_t row_part, int64_t column_part) {
      raise_part(products, line, row_part, column_part);
    });
    merge_maxima(rows, in.rows, row_shift);
    merge_maxima(columns, in.columns, column_shift);
  }

  static void merge_maxima(const Partials& partials, int64_t n, float* shift) {
    for (int64_t k = 0; k < n; ++k) {
      shift[k] = partials.negative[k];
      for (int64_t part = 1; part < partials.parts; ++part) {
        const float other = partials.negative[part * partials.anchors + k];
        shift[k] = other > shift[k] ? other : shift[k];
      }
    }
    for (int64_t k = n; k < partials.anchors; ++k) shift[k] = 0;
  }

  template <bool kGeneral>
  void add_all(const Products& products, const Line& line) const {
    for_tasks([&](int64_t row_part, int64_t column_part) {
      if (in.smoothing > 0) {
        add_part<true, kGeneral>(products, line, row_part, column_part);
      } else {
        add_part<false, kGeneral>(products, line, row_part, column_part);
      }
    });
  }

  // Merge the parts, write the statistics, return the mean loss of one direction; `right` says
  // whether every anchor's sum is one that the shift suits.
  double finish(const Partials& partials, const int32_t* positives, int64_t n, int64_t candidates,
                const float* shifts, double shift, float* statistics, bool& right) const {
    auto task = [&](int64_t index, int) {
      losses[index] = 0;
      const Range some = Cut(n, kFinishAnchors).part(index);
      for (int64_t k = some.begin; k < some.end; ++k) {
        double negative = 0, positive = 0, all = 0, weighted = 0;
        for (int64_t part = 0; part < partials.parts; ++part) {
          const int64_t at = part * partials.anchors + k;
          negative += static_cast<double>(partials.negative[at]);
          positive += static_cast<double>(partials.positive[at]);
          all += static_cast<double>(partials.all[at]);
          weighted += partials.weighted[at];
        }
        const double sum = negative + positive;
        statistics[k] = shifts != nullptr ? shifts[k] : static_cast<float>(shift);
        statistics[n + k] = static_cast<float>(1 / sum);
        statistics[2 * n + k] = static_cast<float>(negative / sum);
        statistics[3 * n + k] = static_cast<float>(positives[k]);
        if (positives[k] == 0) continue;
        const double count = positives[k], others = static_cast<double>(candidates) - count;
        const double epsilon = others > 0 ? in.smoothing : 0;
        const double of_positives = positives[k] == 1 && positive > negative
                                        ? std::log1p(negative / positive)
                                        : std::log(sum) - kLn2 * weighted / count;
        losses[index] += (1 - epsilon) * of_positives;
        if (epsilon > 0) {
          losses[index] += epsilon * (std::log(sum) - kLn2 * (all - weighted) / others);
        }
        // A NaN may not be overlooked.
        if (!(sum > kLeastSum && sum < kMostSum)) losses[index] = __builtin_nan("");
      }
    };
    parallel(finish_tasks(n), in.threads, task);
    double loss = 0;
    for (int64_t index = 0; index < finish_tasks(n); ++index) loss += losses[index];
    if (loss != loss) right = false;
    return loss / static_cast<double>(anchors(positives, n));
  }

  // One sweep (general: two) with its loss; false if the shift does not suit it.
  template <bool kGeneral>
  bool run(const Products& products, double shift, float* loss, float* row_statistics,
           float* column_statistics) const {
    const Line line = make_line(in, shift, offsets, shape.columns);
    if (kGeneral) find_shifts(products, line);
    Products again = products;
    again.filled |= kGeneral && products.kept != nullptr;
    add_all<kGeneral>(again, line);
    bool right = true;
    double total = finish(rows, in.row_positives, in.rows, in.row_candidates(),
                          kGeneral ? row_shift : nullptr, shift, row_statistics, right);
    if (in.symmetric) {
      total += finish(columns, in.column_positives, in.columns, in.column_candidates(),
                      kGeneral ? column_shift : nullptr, shift, column_statistics, right);
      total /= 2;
    }
    *loss = static_cast<float>(total);
    return right;
  }
};

inline void fill_nan(float* p, int64_t count) {
  for (int64_t k = 0; k < count; ++k) p[k] = __builtin_nanf("");
}

inline int64_t forward_workspace(const MpmNceInput& in) {
  return Forward(in, Carver(nullptr)).bytes;
}

inline void forward(const MpmNceInput& in, void* workspace, float* kept, float* loss,
                    float* row_statistics, float* column_statistics) {
  const Forward pass(in, Carver(workspace));
  const double bound = pack(in, pass.shape, pass.packed);
  const double highest = std::fabs(in.scale) * kLog2E * (bound + std::fabs(in.margin));
  const double candidates = static_cast<double>(larger(in.rows, in.columns));
  if (!(highest * candidates < kLargestSum)) {  // a NaN too
    *loss = __builtin_nanf("");
    fill_nan(row_statistics, kMpmNceStatistics * in.rows);
    if (in.symmetric) fill_nan(column_statistics, kMpmNceStatistics * in.columns);
    return;
  }
  Products products = pass.packed.products(in, pass.shape, kept, false);
  if (kept != nullptr) {  // what lies beyond this build's tiles
    const int64_t used = pass.shape.rows * pass.shape.columns;
    std::memset(kept + used, 0, sizeof(float) * (mpm_nce_kept(in.rows, in.columns) - used));
  }
  if (highest <= kLargestBound) {
    const double above = std::ceil(highest) - kRoomAbove;
    const double shift = above > 0 ? above : 0;
    if (pass.run<false>(products, shift, loss, row_statistics, column_statistics)) return;
    products.filled = kept != nullptr;
  }
  pass.run<true>(products, 0, loss, row_statistics, column_statistics);
}

}  // namespace
}  // namespace robustft
