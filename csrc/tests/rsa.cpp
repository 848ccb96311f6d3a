// rsa.cpp against sums over all pairs in double, on every instruction set and on 1 to 4 threads.
#include "../cpu/rsa.hpp"

#include <algorithm>
#include <limits>

#include "../cpu/threads.hpp"
#include "matrices.hpp"

namespace robustft {
namespace {

using Values = std::vector<double>;

constexpr int kBins = 8, kCells = 32, kDrop = 21;  // a cell is a quarter of an octave

// Rows with a trend, so that distances vary; of every five, one is almost the row before.
Stored features(int64_t rows, int64_t dim, DType dtype, int64_t gap, Random& random) {
  Stored x(rows, dim, dtype, gap);
  for (int64_t i = 0; i < rows; ++i) {
    const double length = 1 + static_cast<double>(i % 7) / 3;
    for (int64_t j = 0; j < dim; ++j) {
      x.set(i, j,
            i % 5 == 4 ? x.at(i - 1, j) + 1e-3 * random.normal() : 0.3 + length * random.normal());
    }
  }
  return x;
}

// What is packed for one set, and its true distances.
struct Space {
  Values mean, factors;
  double scale, shift = 0;
  Values distances;  // of all pairs i < j

  Space(const Stored& x, int64_t rows, int64_t dim, bool cosine)
      : mean(static_cast<size_t>(dim)),
        factors(static_cast<size_t>(rows), 1),
        scale(cosine ? 1 : 0.5) {
    const auto of = [](int64_t i) { return static_cast<size_t>(i); };
    for (int64_t i = 0; i < rows; ++i) {
      double square = 0;
      for (int64_t k = 0; k < dim; ++k) square += x.at(i, k) * x.at(i, k);
      if (cosine) factors[of(i)] = 1 / std::sqrt(square);
      for (int64_t k = 0; k < dim; ++k) {
        mean[of(k)] += factors[of(i)] * x.at(i, k) / static_cast<double>(rows);
      }
    }
    const Values values = x.values();
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = i + 1; j < rows; ++j) {
        double square = 0;
        for (int64_t k = 0; k < dim; ++k) {
          const double d =
              factors[of(i)] * values[of(i * dim + k)] - factors[of(j)] * values[of(j * dim + k)];
          square += d * d;
        }
        distances.push_back(cosine ? square / 2 : scale * std::sqrt(square));
        shift += distances.back();
      }
    }
    shift = static_cast<float>(shift / static_cast<double>(distances.size()));
  }
};

struct Packed {
  std::vector<float> panels, squares;

  Packed(const Isa& isa, const Stored& x, DType dtype, const Space& space, int threads) {
    const int64_t rows = static_cast<int64_t>(space.factors.size());
    const int64_t dim = static_cast<int64_t>(space.mean.size()), panel = isa.rsa->panel;
    const int64_t padded = (rows + panel - 1) / panel * panel;
    panels.assign(static_cast<size_t>(padded * dim), std::nanf(""));
    squares.assign(static_cast<size_t>(padded), std::nanf(""));
    isa.rsa->pack(x.matrix(), dtype, rows, dim, space.mean.data(), space.factors.data(),
                  space.scale, threads, panels.data(), squares.data());
  }
  RsaSet set(const Space& space) const {
    return {panels.data(), squares.data(), static_cast<int64_t>(space.mean.size()),
            static_cast<float>(space.shift)};
  }
};

// Bins whose edges lie in the middle of gaps: float32 distances fall where the true ones do.
struct Bins {
  std::vector<float> edges = std::vector<float>(2 * kBins, std::numeric_limits<float>::infinity());
  std::vector<uint16_t> starts = std::vector<uint16_t>(kCells);
  std::vector<float> ranks;
  int64_t base = 0;
  Values counts = Values(kBins);

  explicit Bins(Values distances, double sign) {
    std::sort(distances.begin(), distances.end());
    const size_t n = distances.size(), near = std::max<size_t>(1, n / (4 * kBins));
    for (size_t b = 1; b < kBins; ++b) {
      size_t best = b * n / kBins;
      for (size_t at = best; at < std::min(n, best + near); ++at) {
        if (at == 0) continue;
        const auto gap = [&](size_t k) { return k == 0 ? 0 : distances[k] - distances[k - 1]; };
        if (gap(at) > gap(best)) best = at;
      }
      edges[b - 1] = static_cast<float>(best == 0 ? distances[0] / 2
                                                  : (distances[best - 1] + distances[best]) / 2);
    }
    for (int b = 0; b < kBins; ++b) ranks.push_back(static_cast<float>(sign * (b * b - 11) / 64));
    base = pattern(edges[0]) >> kDrop;
    for (int cell = 1; cell < kCells; ++cell) {
      const int32_t lowest = static_cast<int32_t>((base + cell) << kDrop);
      float least;
      std::memcpy(&least, &lowest, sizeof least);
      starts[static_cast<size_t>(cell)] = static_cast<uint16_t>(
          std::lower_bound(edges.begin(), edges.begin() + kBins - 1, least) - edges.begin());
    }
    for (const double d : distances) ++counts[static_cast<size_t>(bin(d))];
  }

  int bin(double d) const {
    return static_cast<int>(
        std::lower_bound(edges.begin(), edges.begin() + kBins - 1, static_cast<float>(d)) -
        edges.begin());
  }
  RsaBins view() const {
    return {edges.data(), starts.data(), ranks.data(), base, kCells, kDrop, kBins};
  }

 private:
  static int32_t pattern(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
  }
};

// The five sums of values x and y, per pair.
Values means(const Values& x, const Values& y) {
  Values sums(kRsaSums);
  const double pairs = static_cast<double>(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double all[kRsaSums] = {x[i], y[i], x[i] * x[i], y[i] * y[i], x[i] * y[i]};
    for (size_t k = 0; k < kRsaSums; ++k) sums[k] += all[k] / pairs;
  }
  return sums;
}

void check(const Isa& isa, DType dtype, int64_t rows, int64_t dim_a, int64_t dim_b, bool cosine,
           const std::string& what) {
  Random random(static_cast<uint32_t>(rows * 1000 + dim_a));
  const Stored a = features(rows, dim_a, dtype, 3, random);
  const Stored b = features(rows, dim_b, dtype, 0, random);
  const Space of_a(a, rows, dim_a, cosine), of_b(b, rows, dim_b, cosine);
  const bool binned = rows < 1000;  // gaps among more distances are too small for float32
  const Bins bins_a(of_a.distances, 1), bins_b(of_b.distances, -1);
  const RsaBins bins[2] = {bins_a.view(), bins_b.view()};
  const double pairs = static_cast<double>(of_a.distances.size());
  Values x, y, rank_x, rank_y;
  for (size_t i = 0; i < of_a.distances.size(); ++i) {
    const double p = of_a.distances[i], q = of_b.distances[i];
    x.push_back(p - of_a.shift);
    y.push_back(q - of_b.shift);
    rank_x.push_back(static_cast<double>(bins_a.ranks[static_cast<size_t>(bins_a.bin(p))]));
    rank_y.push_back(static_cast<double>(bins_b.ranks[static_cast<size_t>(bins_b.bin(q))]));
  }
  const Values truth = means(x, y), rank_truth = means(rank_x, rank_y);

  Values first, first_ranks;
  for (int threads = 1; threads <= 4; ++threads) {
    const Packed packed_a(isa, a, dtype, of_a, threads), packed_b(isa, b, dtype, of_b, threads);
    RsaInput in{{packed_a.set(of_a), packed_b.set(of_b)}, rows, cosine, threads};
    const int64_t jobs = rsa_jobs(rows);
    const int workers = worker_count(jobs, threads);
    std::vector<float> workspace(static_cast<size_t>(rsa_workspace(dim_a, dim_b, workers)),
                                 std::nanf(""));
    Values sums(static_cast<size_t>(jobs * kRsaSums), std::nan(""));
    isa.rsa->moments(in, nullptr, workspace.data(), sums.data());
    sums.resize(kRsaSums);
    if (threads == 1) first = sums;
    CHECK(sums == first, what + ": threads change a bit");
    for (double& sum : sums) sum /= pairs;
    check_near(sums, truth, 0, 1e-6, what + ", sums");
    if (!binned) continue;

    in.set[0].shift = in.set[1].shift = 0;
    Values ranks(static_cast<size_t>(jobs * kRsaSums), std::nan(""));
    isa.rsa->moments(in, bins, workspace.data(), ranks.data());
    ranks.resize(kRsaSums);
    if (threads == 1) first_ranks = ranks;
    CHECK(ranks == first_ranks, what + ": threads change a bit of the ranks' sums");
    for (double& sum : ranks) sum /= pairs;
    check_near(ranks, rank_truth, 1e-6, 0, what + ", ranks");

    std::vector<int64_t> counts(static_cast<size_t>(2 * kBins * workers));
    isa.rsa->count(in, bins, kBins, workspace.data(), counts.data());
    Values total(2 * kBins), want = bins_a.counts;
    for (size_t k = 0; k < counts.size(); ++k) {
      total[k % (2 * kBins)] += static_cast<double>(counts[k]);
    }
    want.insert(want.end(), bins_b.counts.begin(), bins_b.counts.end());
    check_near(total, want, 0, 0, what + ", counts");
  }
}

}  // namespace

TEST(rsa) {
  struct Size {
    int rows, a, b;
  };
  for_every_kernel([](const Isa& isa, DType dtype, const std::string& name) {
    for (const bool cosine : {false, true}) {
      for (const Size& s : {Size{2, 3, 1}, {3, 5, 129}, {97, 31, 2}, {197, 67, 13}}) {
        const std::string size = std::to_string(s.rows) + " x " + std::to_string(s.a);
        // Of one number a row, the cosine distance is 0 or 2.
        const int b = cosine && s.b == 1 ? 2 : s.b;
        check(isa, dtype, s.rows, s.a, b, cosine, name + " " + size + (cosine ? " cosine" : ""));
      }
    }
  });
}

// More than one chunk of columns.
TEST(rsa_chunks) {
  for (const Isa& isa : isas()) {
    check(isa, DType::float32, 2081, 3, 5, false, std::string(isa.name) + " 2081 x 3");
  }
}

}  // namespace robustft
