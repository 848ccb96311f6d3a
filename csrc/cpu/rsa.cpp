// The correlation of two sets of pairwise distances, streamed by tiles: for each tile of pairs
// i < j one product a side, the distances in its epilogue, and their sums, so that no distance is
// ever kept. Tiles below the diagonal are left out.
//
// Numerics: |a − b|² = |a|² + |b|² − 2<a, b> of centred float32 rows. Where it is below 1/64 of
// |a|² + |b|², the product has lost six bits or more, and the tile's row is summed anew as
// Σ(a − b)². Within a tile sums are float32 about a shift, the root mean square of all distances
// (known beforehand: the mean of |a − b|² is twice that of |a|²), then double, in fixed order.
#include "rsa.hpp"

#include "parallel.hpp"
#include "simd.hpp"
#include "tile.hpp"

namespace robustft {
namespace {

constexpr int kRows = Fp32Tile::kRows, kCols = kTileCols;
constexpr float kClose = 1.0f / 64;
static_assert(kRsaRows % kRows == 0 && kRsaCols % kCols == 0, "jobs are whole tiles");

template <class T>
void pack_panel(Matrix rows, int64_t begin, int64_t count, int64_t dim, const double* mean,
                const double* factors, double scale, float* panel, float* squares) {
  for (int c = 0; c < kCols; ++c) {
    const int64_t i = begin + c;
    if (i >= count) {
      for (int64_t k = 0; k < dim; ++k) panel[k * kCols + c] = 0;
      squares[i] = 0;
      continue;
    }
    const T* x = static_cast<const T*>(rows.data) + i * rows.stride;
    const double factor = factors[i];
    double square = 0;
    sweep(0, dim, [&](int64_t k, auto part) {
      float lanes[W];
      store(lanes, load(x + k, part));
      for (int lane = 0; lane < W && k + lane < dim; ++lane) {
        const float y = static_cast<float>(scale * (factor * lanes[lane] - mean[k + lane]));
        panel[(k + lane) * kCols + c] = y;
        square += static_cast<double>(y) * y;
      }
    });
    squares[i] = static_cast<float>(square);
  }
}

void rsa_pack(Matrix rows, DType dtype, int64_t count, int64_t dim, const double* mean,
              const double* factors, double scale, int threads, float* panels, float* squares) {
  ROBUSTFT_DISPATCH(dtype, T, {
    auto body = [&](int64_t index, int) {
      pack_panel<T>(rows, index * kCols, count, dim, mean, factors, scale,
                    panels + index * kCols * dim, squares);
    };
    parallel((count + kCols - 1) / kCols, threads, body);
  })
}

// Rows begin … begin + kRows of a set as a left panel.
void copy_left(const RsaSet& set, int64_t rows, int64_t begin, float* left) {
  const int64_t whole = (rows + kCols - 1) / kCols * kCols;
  for (int r = 0; r < kRows;) {
    const int64_t i = begin + r, offset = i % kCols;
    int n = static_cast<int>(kCols - offset < kRows - r ? kCols - offset : kRows - r);
    if (i >= whole) n = kRows - r;
    const float* panel = set.panels + (i - offset) * set.dim + offset;
    for (int64_t k = 0; k < set.dim; ++k) {
      for (int q = 0; q < n; ++q) left[k * kRows + r + q] = i < whole ? panel[k * kCols + q] : 0;
    }
    r += n;
  }
}

// A tile of distances, row by row.
struct Tile {
  alignas(64) float at[kRows * kCols];
};

// Σ(a − b)² of one row of a tile.
void sum_anew(const float* left, const float* right, int64_t dim, Vec& sum0, Vec& sum1) {
  Vec a{}, b{}, c{}, d{};  // two steps at once: each sum waits four cycles for itself
  int64_t k = 0;
  const auto step = [&](int64_t at, Vec& x, Vec& y) {
    const Vec l = splat(left[at * kRows]);
    const Vec p = l - load(right + at * kCols), q = l - load(right + at * kCols + W);
    x = fma(p, p, x);
    y = fma(q, q, y);
  };
  for (; k + 2 <= dim; k += 2) {
    step(k, a, b);
    step(k + 1, c, d);
  }
  if (k < dim) step(k, a, b);
  sum0 = a + c;
  sum1 = b + d;
}

void distances(const RsaSet& set, bool cosine, const float* left, int64_t i0, int64_t j0,
               int64_t rows, Tile& tile) {
  const float* right = set.panels + j0 * set.dim;
  const Vec size0 = load(set.squares + j0), size1 = load(set.squares + j0 + W);
  const auto size = [&](int r) { return i0 + r < rows ? set.squares[i0 + r] : 0.0f; };
  IVec close{};
  Fp32Tile::multiply(left, right, set.dim, Vec{}, Vec{}, [&](int r, Vec sum0, Vec sum1) {
    const Vec s0 = size0 + size(r), s1 = size1 + size(r);
    const Vec d0 = fma(sum0, splat(-2), s0), d1 = fma(sum1, splat(-2), s1);
    close |= (d0 < s0 * kClose) | (d1 < s1 * kClose);
    store(tile.at + r * kCols, d0);
    store(tile.at + r * kCols + W, d1);
  });
  if (any(close)) {
    for (int r = 0; r < kRows; ++r) {
      float* row = tile.at + r * kCols;
      const IVec close0 = load(row) < (size0 + size(r)) * kClose;
      const IVec close1 = load(row + W) < (size1 + size(r)) * kClose;
      if (!any(close0 | close1)) continue;
      Vec sum0, sum1;
      sum_anew(left + r, right, set.dim, sum0, sum1);
      store(row, select(close0, sum0, load(row)));
      store(row + W, select(close1, sum1, load(row + W)));
    }
  }
  if (cosine) {
    for (float& x : tile.at) x *= 0.5f;
  } else {
    for (float& x : tile.at) x = __builtin_sqrtf(x > 0 ? x : 0);
  }
}

// Call visit(x, y, i0, j0) with both sets' distances for the tiles of a job that hold pairs.
template <class Visit>
void walk(const RsaInput& in, int64_t job, float* left, Visit visit) {
  const int64_t begin = job / rsa_chunks(in.rows) * kRsaRows;
  const int64_t end = begin + kRsaRows < in.rows ? begin + kRsaRows : in.rows;
  int64_t j0 = job % rsa_chunks(in.rows) * kRsaCols;
  const int64_t stop = j0 + kRsaCols < in.rows ? j0 + kRsaCols : in.rows;
  if (stop <= begin + 1) return;  // below the diagonal
  const int64_t first = (begin + 1) / kCols * kCols;
  if (j0 < first) j0 = first;
  float* both[2] = {left, left + kRsaRows * in.set[0].dim};
  for (int s = 0; s < 2; ++s) {
    for (int64_t i = begin; i < end; i += kRows) {
      copy_left(in.set[s], in.rows, i, both[s] + (i - begin) * in.set[s].dim);
    }
  }
  const Fp32Tile::Scope scope;
  Tile x, y;
  for (; j0 < stop && !stopping(); j0 += kCols) {
    for (int64_t i0 = begin; i0 < end && j0 + kCols > i0 + 1; i0 += kRows) {
      const int64_t at = i0 - begin;
      distances(in.set[0], in.cosine, both[0] + at * in.set[0].dim, i0, j0, in.rows, x);
      distances(in.set[1], in.cosine, both[1] + at * in.set[1].dim, i0, j0, in.rows, y);
      visit(x, y, i0, j0);
    }
  }
}

// Whether every entry of a tile is a pair i < j.
bool is_full(int64_t i0, int64_t j0, int64_t rows) {
  return j0 >= i0 + kRows && j0 + kCols <= rows;
}

// Lanes of row i at columns j, j + 1, ... that are pairs i < j.
IVec pairs(int64_t i, int64_t j, int64_t rows) {
  const IVec lane = lanes();
  const int64_t skip = i - j < W ? i - j : W, keep = rows - j < W ? rows - j : W;
  return (lane > static_cast<int32_t>(skip > -1 ? skip : -1)) &
         (lane < static_cast<int32_t>(i < rows ? keep : 0));
}

struct Moments {
  DVec sums[kRsaSums] = {};

  template <bool full>
  void add(const Tile& x, const Tile& y, Vec shift_x, Vec shift_y, int64_t i0, int64_t j0,
           int64_t rows) {
    Vec part[kRsaSums] = {};
    for (int at = 0; at < kRows * kCols; at += W) {
      Vec p = load(x.at + at) - shift_x, q = load(y.at + at) - shift_y;
      if (!full) {
        const IVec mask = pairs(i0 + at / kCols, j0 + at % kCols, rows);
        p = select(mask, p, Vec{});
        q = select(mask, q, Vec{});
      }
      part[0] += p;
      part[1] += q;
      part[2] = fma(p, p, part[2]);
      part[3] = fma(q, q, part[3]);
      part[4] = fma(p, q, part[4]);
    }
    for (int k = 0; k < kRsaSums; ++k) sums[k] += widen(part[k]);
  }
};

// The bins of a tile's distances: a search without branches, so that the waits for the tables
// overlap. Distances are not negative, so their patterns are in their order.
struct TileBins {
  int32_t at[kRows * kCols];

  TileBins(const RsaBins& bins, const Tile& tile) {
    const int32_t base = static_cast<int32_t>(bins.base);
    const int32_t top = static_cast<int32_t>(bins.cells - 1);
    for (int e = 0; e < kRows * kCols; ++e) {
      const float d = tile.at[e];
      int32_t bits;
      std::memcpy(&bits, &d, sizeof d);
      int32_t cell = (bits >> bins.drop) - base;
      cell = cell < 0 ? 0 : cell;
      cell = cell < top ? cell : top;
      int32_t low = bins.starts[cell];
      for (int half = bins.width / 2; half > 0; half /= 2) {
        low += bins.edges[low + half - 1] < d ? half : 0;
      }
      at[e] = low;
    }
  }
};

void to_ranks(const RsaBins& bins, Tile& tile) {
  const TileBins found(bins, tile);
  for (int e = 0; e < kRows * kCols; ++e) tile.at[e] = bins.ranks[found.at[e]];
}

void rsa_moments(const RsaInput& in, const RsaBins* bins, float* workspace, double* sums) {
  const int64_t jobs = rsa_jobs(in.rows);
  const Vec shift_x = splat(in.set[0].shift), shift_y = splat(in.set[1].shift);
  auto body = [&](int64_t job, int worker) {
    float* left = workspace + rsa_workspace(in.set[0].dim, in.set[1].dim, worker);
    Moments moments;
    walk(in, job, left, [&](Tile& x, Tile& y, int64_t i0, int64_t j0) {
      if (bins != nullptr) {
        to_ranks(bins[0], x);
        to_ranks(bins[1], y);
      }
      if (is_full(i0, j0, in.rows)) {
        moments.add<true>(x, y, shift_x, shift_y, i0, j0, in.rows);
      } else {
        moments.add<false>(x, y, shift_x, shift_y, i0, j0, in.rows);
      }
    });
    for (int k = 0; k < kRsaSums; ++k) sums[job * kRsaSums + k] = sum(moments.sums[k]);
  };
  parallel(jobs, in.threads, body);
  for (int64_t job = 1; job < jobs; ++job) {
    for (int k = 0; k < kRsaSums; ++k) sums[k] += sums[job * kRsaSums + k];
  }
}

void rsa_count(const RsaInput& in, const RsaBins* bins, int64_t count, float* workspace,
               int64_t* counts) {
  auto body = [&](int64_t job, int worker) {
    float* left = workspace + rsa_workspace(in.set[0].dim, in.set[1].dim, worker);
    int64_t* own[2] = {counts + 2 * worker * count, counts + (2 * worker + 1) * count};
    walk(in, job, left, [&](const Tile& x, const Tile& y, int64_t i0, int64_t j0) {
      const TileBins p(bins[0], x), q(bins[1], y);
      for (int e = 0; e < kRows * kCols; ++e) {
        const int64_t i = i0 + e / kCols, j = j0 + e % kCols;
        if (i >= j || j >= in.rows) continue;
        ++own[0][p.at[e]];
        ++own[1][q.at[e]];
      }
    });
  };
  parallel(rsa_jobs(in.rows), in.threads, body);
}

}  // namespace

extern const RsaKernels ROBUSTFT_JOIN(rsa_, ROBUSTFT_ISA);
const RsaKernels ROBUSTFT_JOIN(rsa_, ROBUSTFT_ISA) = {kCols, rsa_pack, rsa_moments, rsa_count};

}  // namespace robustft
