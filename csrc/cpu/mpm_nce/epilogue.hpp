// What mpm_nce does with a register tile of dot products: sums of exponentials forward, ∂loss/∂Z
// backward. All exponents are powers of two: t = Z·log2 e − shift.
//
// Positives are taken apart from negatives. A row with one positive has the loss log(1 + n/p) and
// the gradient −n/(n + p) at that positive, n the sum of the negatives' exponentials and p its own:
// both keep their digits where n is far below the rounding of p, as it is in a fitted batch.
#pragma once

#include "../simd.hpp"
#include "../tile.hpp"
#include "mpm_nce.hpp"
#if defined(ROBUSTFT_HAS_AMX) || defined(ROBUSTFT_HAS_BF16)
#include "blocks.hpp"
#else
#include "registers.hpp"
#endif

namespace robustft {
namespace {

constexpr int kTileSize = kSweepRows * kTileCols;  // of products, as the sweep meets them

// 2^t for t < 127, within 2 ulp; 0 from −127 down; NaN stays NaN. Minimax on [−½, ½], 2e-9.
inline Vec exp2(Vec t) {
  const Vec z = select(t < -127.0f, splat(-127.0f), t);
  // Adding 1.5·2^23 leaves the nearest integer in the low mantissa bits; 127 biases the exponent.
  constexpr float kRound = 12582912.0f + 127.0f;
  const Vec shifted = z + kRound;
  const Vec r = z - (shifted - kRound);
  Vec p = fma(r, splat(1.53541957e-4f), splat(1.33984932e-3f));
  p = fma(p, r, splat(9.61844157e-3f));
  p = fma(p, r, splat(5.55033237e-2f));
  p = fma(p, r, splat(2.40226477e-1f));
  p = fma(p, r, splat(6.93147182e-1f));
  p = fma(p, r, splat(1.0f));
  return p * as_float(as_bits(shifted) << 23);
}

inline IVec load_ints(const int32_t* p) {
  IVec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

// Which of the pairs (row i, columns j … j + kTileCols) are positive: −1 in their lanes.
struct Found {
  IVec at[2];
  bool any;
};

struct NoPairs {
  Found find(int64_t, int64_t) const { return {{}, false}; }
};

struct DiagonalPairs {
  Found find(int64_t i, int64_t j) const {
    const IVec want = IVec{} + static_cast<int32_t>(i - j);
    return {{lanes() == want, lanes() + W == want}, i >= j && i < j + kTileCols};
  }
};

struct LabelPairs {
  const int32_t *rows, *columns;  // columns padded to whole panels with an id of no row
  Found find(int64_t i, int64_t j) const {
    const IVec id = IVec{} + rows[i];
    Found found{{load_ints(columns + j) == id, load_ints(columns + j + W) == id}, false};
    found.any = any(found.at[0] | found.at[1]);
    return found;
  }
};

struct MaskPairs {
  const uint8_t* mask;
  int64_t columns;
  Found find(int64_t i, int64_t j) const {
    typedef uint8_t Bytes __attribute__((vector_size(W)));
    uint8_t bytes[kTileCols] = {};
    std::memcpy(bytes, mask + i * columns + j, smaller(kTileCols, columns - j));
    Found found{};
    for (int h = 0; h < 2; ++h) {
      Bytes half;
      std::memcpy(&half, bytes + h * W, sizeof half);
      found.at[h] = __builtin_convertvector(half, IVec) != 0;
    }
    found.any = any(found.at[0] | found.at[1]);
    return found;
  }
};

// The same in a tile that the diagonal crosses, where (i, i) is no pair.
template <class P>
struct WithoutSelf {
  P pairs;
  Found find(int64_t i, int64_t j) const {
    Found found = pairs.find(i, j);
    const Found self = DiagonalPairs{}.find(i, j);
    for (int h = 0; h < 2; ++h) found.at[h] &= ~self.at[h];
    found.any = any(found.at[0] | found.at[1]);
    return found;
  }
};
template <class P>
constexpr bool kExcludes = false;
template <class P>
constexpr bool kExcludes<WithoutSelf<P>> = true;

// `x`, but `there` at the pairs (i, i) that are none.
template <class P>
Vec without_self(Vec x, float there, int64_t i, int64_t j, int h) {
  if constexpr (kExcludes<P>) x = select(DiagonalPairs{}.find(i, j).at[h], splat(there), x);
  return x;
}

// Call body(pairs) with the kind of pairs that the tile at (i, j) can meet.
template <class Body>
void with_pairs(const MpmNceInput& in, int64_t i, int64_t j, Body body) {
  const bool crossed = i < j + kTileCols && j < i + kSweepRows;
  const auto call = [&](auto pairs) {
    if (in.exclude_self && crossed) return body(WithoutSelf<decltype(pairs)>{pairs});
    body(pairs);
  };
  if (in.pairs == Pairs::labels) return call(LabelPairs{in.row_ids, in.column_ids});
  if (in.pairs == Pairs::mask) return call(MaskPairs{in.mask, in.columns});
  if (crossed) return body(DiagonalPairs{});
  body(NoPairs{});
}

// From dot products to exponents: t = dot·slope + offset, where the offset of a negative holds the
// margin, and that of a column beyond the last is −Inf, so that 2^t = 0. The slope, s·log2 e, has
// two parts: rounded to one it would change the scale.
constexpr float kNowhere = -__builtin_inff();

struct Line {
  float slope, slope_low;
  float positive;         // offset
  const float* negative;  // offsets of columns

  Vec operator()(Vec dot, Vec offset) const {
    return fma(dot, splat(slope), fma(dot, splat(slope_low), offset));
  }
};

// Sums over candidates: Σ 2^t of the negatives and of the positives, Σ t of the positives and of
// all. As lanes of vectors while a panel of rows is swept; for columns, every lane is one.
struct AnchorSums {  // [anchors]
  float *negative, *positive, *all;
  double* weighted;
};
struct RowSums {
  Vec negative[kSweepRows], positive[kSweepRows], all[kSweepRows];
  DVec weighted[kSweepRows];
  bool met;  // a positive

  // Those of row k to anchor i: added, or the first ones.
  void move(int k, const AnchorSums& to, int64_t i, bool first) const {
    put(to.negative[i], sum(negative[k]), first);
    put(to.positive[i], met ? sum(positive[k]) : 0, first);
    put(to.all[i], sum(all[k]), first);
    put(to.weighted[i], met ? sum(weighted[k]) : 0, first);
  }

 private:
  template <class T>
  static void put(T& to, double x, bool first) {
    to = static_cast<T>(first ? x : static_cast<double>(to) + x);
  }
};

inline void add_to(float* p, Vec x) { store(p, load(p) + x); }
inline void add_to(double* p, Vec x) {
  DVec sum;
  std::memcpy(&sum, p, sizeof sum);
  sum += widen(x);
  std::memcpy(p, &sum, sizeof sum);
}

// Row and column shifts of the general sweep; the common one has both in the offsets.
struct Shifts {
  const float *row, *column;
};

// The tile at (i, j) added to `rows` and `columns`; `count` of its rows exist.
template <bool kSmooth, bool kGeneral, class P>
void add_tile(const float* dots, int64_t count, int64_t i, int64_t j, const P& pairs,
              const Line& line, const Shifts& shifts, RowSums& rows, const AnchorSums& columns) {
  Vec negative[2] = {}, all[2] = {}, offset[2], shift[2] = {};
  for (int h = 0; h < 2; ++h) {
    offset[h] = load(line.negative + j + h * W);
    if (kGeneral) shift[h] = load(shifts.column + j + h * W);
  }
  for (int64_t r = 0; r < count; ++r) {
    const Found found = pairs.find(i + r, j);
    for (int h = 0; h < 2; ++h) {
      const Vec dot = load(dots + r * kTileCols + h * W);
      Vec t = line(dot, offset[h]);
      if (__builtin_expect(found.any, 0))
        t = select(found.at[h], line(dot, splat(line.positive)), t);
      t = without_self<P>(t, kNowhere, i + r, j, h);
      const Vec t_row = kGeneral ? t - shifts.row[i + r] : t;
      const Vec t_column = kGeneral ? t - shift[h] : t;
      Vec e_row = exp2(t_row);
      Vec e_column = kGeneral ? exp2(t_column) : e_row;
      if (kSmooth) {
        rows.all[r] += without_self<P>(select(offset[h] > kNowhere, t_row, Vec{}), 0, i + r, j, h);
        all[h] += without_self<P>(t_column, 0, i + r, j, h);
      }
      if (__builtin_expect(found.any, 0)) {
        const IVec is = found.at[h];
        rows.met = true;
        rows.positive[r] += select(is, e_row, Vec{});
        rows.weighted[r] += widen(select(is, t_row, Vec{}));
        add_to(columns.positive + j + h * W, select(is, e_column, Vec{}));
        add_to(columns.weighted + j + h * W, select(is, t_column, Vec{}));
        e_row = select(is, Vec{}, e_row);
        e_column = select(is, Vec{}, e_column);
      }
      rows.negative[r] += e_row;
      negative[h] += e_column;
    }
  }
  for (int h = 0; h < 2; ++h) {
    add_to(columns.negative + j + h * W, negative[h]);
    if (kSmooth) add_to(columns.all + j + h * W, all[h]);
  }
}

// The largest t of each row (by lane) and column.
template <class P>
void raise_to_tile(const float* dots, int64_t count, int64_t i, int64_t j, const P& pairs,
                   const Line& line, Vec* rows, float* columns) {
  for (int64_t r = 0; r < count; ++r) {
    const Found found = pairs.find(i + r, j);
    for (int h = 0; h < 2; ++h) {
      const Vec dot = load(dots + r * kTileCols + h * W);
      const Vec negative = line(dot, load(line.negative + j + h * W));
      const Vec t = without_self<P>(select(found.at[h], line(dot, splat(line.positive)), negative),
                                    kNowhere, i + r, j, h);
      rows[r] = max(rows[r], t);
      store(columns + j + h * W, max(load(columns + j + h * W), t));
    }
  }
}

// What an anchor adds to ∂loss/∂Z, up to a common factor: 2^t·inverse − weight, with other numbers
// at a positive. Where the positive is the only one, those are 0 and −(share of the negatives).
struct Coefficients {
  float *inverse, *weight;
  float *positive_inverse, *positive_weight;
};

// ∂loss/∂Z of the tile at (i, j), up to a common factor, to `out` [kSweepRows][kTileCols], zeros in
// rows that do not exist; Σ ∂Z·dot added to `along`, Σ ∂Z of the positives to `at_positives`.
template <bool kGeneral, class P>
void grad_tile(const float* dots, int64_t count, int64_t i, int64_t j, const P& pairs,
               const Line& line, const Shifts& shifts, const Coefficients& row,
               const Coefficients& column, float* out, DVec& along, DVec& at_positives) {
  Vec offset[2], shift[2] = {}, inverse[2], weight[2], sum{};
  for (int h = 0; h < 2; ++h) {
    offset[h] = load(line.negative + j + h * W);
    inverse[h] = load(column.inverse + j + h * W);
    weight[h] = load(column.weight + j + h * W);
    if (kGeneral) shift[h] = load(shifts.column + j + h * W);
  }
  for (int64_t r = 0; r < count; ++r) {
    const Found found = pairs.find(i + r, j);
    for (int h = 0; h < 2; ++h) {
      const Vec dot = load(dots + r * kTileCols + h * W);
      Vec t = line(dot, offset[h]);
      if (__builtin_expect(found.any, 0))
        t = select(found.at[h], line(dot, splat(line.positive)), t);
      t = without_self<P>(t, kNowhere, i + r, j, h);
      const Vec e_row = exp2(kGeneral ? t - shifts.row[i + r] : t);
      const Vec e_column = kGeneral ? exp2(t - shift[h]) : e_row;
      const auto gradient = [&](Vec by_row, Vec by_column, Vec less) {
        if (kGeneral) return fma(e_row, by_row, fma(e_column, by_column, -less));
        return fma(e_row, by_row + by_column, -less);
      };
      Vec g = gradient(splat(row.inverse[i + r]), inverse[h], row.weight[i + r] + weight[h]);
      if (__builtin_expect(found.any, 0)) {
        const int64_t k = j + h * W;
        const Vec at =
            gradient(splat(row.positive_inverse[i + r]), load(column.positive_inverse + k),
                     row.positive_weight[i + r] + load(column.positive_weight + k));
        g = select(found.at[h], at, g);
        at_positives += widen(select(found.at[h], at, Vec{}));
      }
      g = without_self<P>(g, 0, i + r, j, h);
      store(out + r * kTileCols + h * W, g);
      sum = fma(g, dot, sum);
    }
  }
  along += widen(sum);
  for (int64_t k = count * kTileCols; k < kTileSize; ++k) out[k] = 0;
}

}  // namespace
}  // namespace robustft
