// nearest*.cpp against all distances in double, on every instruction set and on 1 to 4 threads.
// Values are multiples of 1/64: every distance is exact in double, in any order of its sum, so
// results have one right value, to the last bit.
#include "../cpu/nearest/nearest.hpp"

#include <algorithm>
#include <limits>

#include "matrices.hpp"

namespace robustft {
namespace {

struct Found {
  std::vector<float> distances;
  std::vector<int64_t> indices;

  // By bits: a NaN equals itself.
  bool operator==(const Found& other) const {
    return indices == other.indices && distances.size() == other.distances.size() &&
           std::memcmp(distances.data(), other.distances.data(), 4 * distances.size()) == 0;
  }
};

struct Case {
  std::string name;
  Stored rows, queries;
  int64_t count, query_count, dim;
};

double grid(double x) { return std::nearbyint(64 * x) / 64; }

// Rows about `clusters` centres, each one `copies` times; the first queries are rows.
Case clustered(const std::string& name, int64_t count, int64_t query_count, int64_t dim,
               int64_t clusters, int64_t copies) {
  Random random(static_cast<uint32_t>(count + dim));
  const Stored centres = normal(clusters, dim, DType::float32, 0, 4, random);
  Case c{name + " " + std::to_string(query_count) + " of " + std::to_string(count) + " x " +
             std::to_string(dim),
         Stored(count, dim, DType::float32, 3),
         Stored(query_count, dim, DType::float32, 1),
         count,
         query_count,
         dim};
  const int64_t distinct = (count + copies - 1) / copies;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < dim; ++j) {
      c.rows.set(i, j,
                 i < distinct ? grid(centres.at(i % clusters, j) + 0.5 * random.normal())
                              : c.rows.at(i % distinct, j));
    }
  }
  for (int64_t q = 0; q < query_count; ++q) {
    for (int64_t j = 0; j < dim; ++j) {
      c.queries.set(q, j,
                    q < 2 ? c.rows.at(q % count, j)
                          : grid(centres.at(q % clusters, j) + 0.5 * random.normal()));
    }
  }
  return c;
}

// All rows in the order of their distances, equal ones by index.
std::vector<Found> truth(const Case& c) {
  std::vector<Found> all;
  for (int64_t q = 0; q < c.query_count; ++q) {
    std::vector<std::pair<float, int64_t>> order;
    for (int64_t i = 0; i < c.count; ++i) {
      double square = 0;
      for (int64_t j = 0; j < c.dim; ++j) {
        const double d = c.queries.at(q, j) - c.rows.at(i, j);
        square += d * d;
      }
      order.emplace_back(static_cast<float>(square), i);
    }
    std::sort(order.begin(), order.end());
    all.emplace_back();
    for (const auto& [distance, i] : order) {
      all.back().distances.push_back(distance);
      all.back().indices.push_back(i);
    }
  }
  return all;
}

// A packed bank: its memory has the size that the binding gives it, to the byte.
struct Bank {
  std::vector<float> mean;
  std::vector<uint32_t> panels;
  std::vector<int32_t> constants;
  NearestBank bank;
  bool finite;

  Bank(const Isa& isa, Case& c, int threads)
      : mean(static_cast<size_t>(c.dim)),
        panels(size(isa, c, nearest_words(*isa.nearest, c.dim))),
        constants(size(isa, c, kNearestConstants)),
        bank{static_cast<const float*>(c.rows.data()),
             c.rows.matrix().stride,
             c.count,
             c.dim,
             mean.data(),
             panels.data(),
             constants.data()},
        finite(nearest_pack(*isa.nearest, *isa.nearest_packing, bank, threads)) {}

 private:
  static size_t size(const Isa& isa, const Case& c, int64_t each) {
    return static_cast<size_t>(nearest_panels(*isa.nearest, c.count) * each * isa.nearest->cols);
  }
};

Found search(const Isa& isa, const NearestBank& bank, Case& c, int64_t k, int threads,
             bool indices) {
  const size_t size = static_cast<size_t>(c.query_count * (indices ? k : 1));
  Found found{std::vector<float>(size, -1), std::vector<int64_t>(indices ? size : 0, -2)};
  nearest_search({*isa.nearest, *isa.nearest_packing, bank,
                  static_cast<const float*>(c.queries.data()), c.queries.matrix().stride,
                  c.query_count, k, threads, found.distances.data(),
                  indices ? found.indices.data() : nullptr});
  return found;
}

// The answer to all queries, k rows each or the k-th distance alone.
Found answer(const std::vector<Found>& truth, int64_t k, bool indices) {
  Found all;
  for (const Found& one : truth) {
    all.distances.insert(all.distances.end(), one.distances.begin() + (indices ? 0 : k - 1),
                         one.distances.begin() + k);
    if (indices)
      all.indices.insert(all.indices.end(), one.indices.begin(), one.indices.begin() + k);
  }
  return all;
}

void check(const Isa& isa, Case& c, const std::vector<Found>& truth,
           const std::vector<int64_t>& ks) {
  const Bank first(isa, c, 1);
  for (int threads = 1; threads <= 4; ++threads) {
    const Bank packed(isa, c, threads);
    const std::string where =
        std::string(isa.name) + ", " + c.name + ", " + std::to_string(threads) + " threads";
    CHECK(packed.finite, where);
    CHECK(packed.panels == first.panels && packed.constants == first.constants,
          where + ": threads change a bit of the panels");
    NearestBank bare = packed.bank;
    bare.panels = nullptr;
    bare.constants = nullptr;
    for (const int64_t k : ks) {
      for (const bool indices : {false, true}) {
        const std::string what = where + ", k = " + std::to_string(k);
        const Found want = answer(truth, k, indices);
        CHECK(search(isa, packed.bank, c, k, threads, indices) == want, what + ", packed");
        CHECK(search(isa, bare, c, k, threads, indices) == want, what + ", not packed");
      }
    }
  }
}

}  // namespace

TEST(nearest) {
  Case cases[] = {
      clustered("one", 1, 1, 1, 1, 1),
      clustered("few", 129, 7, 3, 5, 1),
      clustered("wide", 509, 33, 127, 9, 1),
      // Copies are more than the keys that are stored, so that sweeps end in a scan.
      clustered("copies", 1021, 19, 31, 3, 340),
      // Enough blocks of panels for every instruction set to sweep in stages, and distances so
      // even that a bound 2 % too low misses rows.
      clustered("even", 8209, 31, 61, 1, 1),
  };
  for (Case& c : cases) {
    const std::vector<Found> all = truth(c);
    std::vector<int64_t> ks = {1};
    if (c.count > 7) ks.push_back(7);
    if (c.count > 1 && c.count < 2000) ks.push_back(c.count);
    for (const Isa& isa : isas()) check(isa, c, all, ks);
  }
}

// Screening has to discard, or it is no screening.
TEST(nearest_screens) {
  Case c = clustered("many", 8209, 29, 33, 40, 1);
  for (const Isa& isa : isas()) {
    const Bank packed(isa, c, 2);
    const NearestStatistics before = nearest_statistics();
    search(isa, packed.bank, c, 7, 2, false);
    const NearestStatistics after = nearest_statistics();
    CHECK(after.queries - before.queries == c.query_count, isa.name);
    CHECK(after.scanned == before.scanned, isa.name);
    const int64_t checked = after.checked - before.checked;
    CHECK(checked < c.query_count * c.count / 10,
          std::string(isa.name) + " compared " + std::to_string(checked));
  }
}

TEST(nearest_not_finite) {
  for (const Isa& isa : isas()) {
    Case c = clustered("not finite", 300, 9, 37, 5, 1);
    std::vector<Found> all = truth(c);
    c.queries.set(4, 36, std::nan(""));
    const float nan = std::numeric_limits<float>::quiet_NaN();
    all[4] = {std::vector<float>(300, nan), std::vector<int64_t>(300, -1)};
    check(isa, c, all, {7, 300});
    c.rows.set(299, 0, std::numeric_limits<double>::infinity());
    CHECK(!Bank(isa, c, 2).finite, isa.name);
  }
}

}  // namespace robustft
