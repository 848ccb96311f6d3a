// Labels become ids: the same pairs, and the same counts, as comparing all labels finds; with
// labels that meet in their low or high 32 bits, at the ends of int64, and where a table is full.
#include "../cpu/mpm_nce/positives.hpp"

#include <limits>
#include <string>

#include "check.hpp"

namespace robustft {
namespace {

using Labels = std::vector<int64_t>;

void check(const Labels& rows, const Labels& columns, int64_t ignored, const std::string& what) {
  const int64_t r = static_cast<int64_t>(rows.size()), c = static_cast<int64_t>(columns.size());
  const Positives p(rows.data(), columns.data(), r, c, ignored, false);
  std::vector<int32_t> by_row(rows.size()), by_column(columns.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    for (size_t j = 0; j < columns.size(); ++j) {
      const bool is = rows[i] == columns[j] && rows[i] != ignored;
      by_row[i] += is;
      by_column[j] += is;
      CHECK((p.row_ids()[i] == p.column_ids()[j]) == is, what + ": the ids of a pair");
    }
    CHECK(p.row_counts()[i] == by_row[i], what + ": positives of a row");
    // The columns are padded with an id of no row.
    for (int64_t j = c; j < c + 32; ++j) {
      CHECK(p.column_ids()[j] != p.row_ids()[i], what + ": a padded column is of no row");
    }
  }
  for (size_t j = 0; j < columns.size(); ++j) {
    CHECK(p.column_counts()[j] == by_column[j], what + ": positives of a column");
  }
}

// The product's low 64 bits: labels are any integers.
int64_t wrapped(int64_t factor, int64_t step) {
  return static_cast<int64_t>(static_cast<uint64_t>(factor) * static_cast<uint64_t>(step));
}

}  // namespace

TEST(positives_of_labels) {
  constexpr int64_t kLeast = std::numeric_limits<int64_t>::min(),
                    kMost = std::numeric_limits<int64_t>::max(), kWide = int64_t{1} << 32;
  check({7}, {7}, -100, "one pair");
  check({7}, {8}, -100, "no pair");
  check({1, 1 + kWide, -1, kWide - 1}, {1 + kWide, 1, -1, 1 - kWide}, -100, "equal low bits");
  check({kWide, 2 * kWide, 0}, {0, kWide, 3 * kWide}, -100, "equal low bits, zero");
  check({kLeast, kMost, 0, -1}, {kMost, kLeast, -1, 0}, -100, "the ends of int64");
  check({-100, 3, -100}, {-100, 3, 3}, -100, "ignored labels");
  check({-100 + kWide, -100}, {-100, -100 + kWide}, -100, "ignored by all bits of a label");
  check({-1, -2, 5}, {-2, -1, 5}, 5, "labels that look like ids of none");
}

TEST(positives_of_many_labels) {
  Random random(5);
  for (const int64_t step : {int64_t{1}, int64_t{64}, int64_t{1} << 32, int64_t{1} << 56}) {
    // All different, as many as the table is for; then ones that come again.
    for (const int kinds : {1000, 40}) {
      Labels rows, columns;
      for (int i = 0; i < 256; ++i) {
        rows.push_back(wrapped(kinds == 1000 ? i : random.below(kinds), step));
        columns.push_back(wrapped(random.below(2 * kinds), step));
      }
      check(rows, columns, wrapped(3, step), "steps of " + std::to_string(step));
    }
  }
}

TEST(positives_of_a_mask) {
  Random random(6);
  std::vector<uint8_t> mask(5 * 9);
  for (uint8_t& bit : mask) bit = random.below(3) == 0;
  const Positives p(mask.data(), 5, 9, false);
  for (int64_t i = 0; i < 5; ++i) {
    int32_t count = 0;
    for (int64_t j = 0; j < 9; ++j) count += mask[static_cast<size_t>(i * 9 + j)];
    CHECK(p.row_counts()[i] == count, "positives of a row");
  }
  for (int64_t j = 0; j < 9; ++j) {
    int32_t count = 0;
    for (int64_t i = 0; i < 5; ++i) count += mask[static_cast<size_t>(i * 9 + j)];
    CHECK(p.column_counts()[j] == count, "positives of a column");
  }
  const Positives diagonal(nullptr, nullptr, 3, 4, -100, false);
  for (int64_t i = 0; i < 3; ++i) CHECK(diagonal.row_counts()[i] == 1, "one of each row");
}

TEST(labels_have_ids_in_order) {
  LabelTable table(4);
  CHECK(table.find(9) == LabelTable::kNone, "an empty table");
  const int64_t labels[] = {9, -4, int64_t{9} + (int64_t{1} << 32), 0};
  for (int32_t id = 0; id < 4; ++id) CHECK(table.insert(labels[id]) == id, "a new label");
  for (int32_t id = 0; id < 4; ++id) {
    CHECK(table.insert(labels[id]) == id && table.find(labels[id]) == id, "a known label");
  }
  CHECK(table.find(1) == LabelTable::kNone, "a label that was never inserted");
}

TEST(positives_without_the_own_pair) {
  const std::vector<int64_t> rows = {5, 5, -100, 7, 5}, columns = {5, 9, -100, 7, 5};
  const Positives p(rows.data(), columns.data(), 5, 5, -100, true);
  const int32_t by_row[] = {1, 2, 0, 0, 1}, by_column[] = {2, 0, 0, 0, 2};
  std::vector<uint8_t> mask(25);
  for (size_t i = 0; i < 5; ++i) {
    for (size_t j = 0; j < 5; ++j) mask[i * 5 + j] = i == j || (rows[i] == 5 && columns[j] == 5);
  }
  const Positives q(mask.data(), 5, 5, true);
  for (int i = 0; i < 5; ++i) {
    for (const Positives* each : {&p, &q}) {
      CHECK(each->row_counts()[i] == by_row[i], "row " + std::to_string(i));
      CHECK(each->column_counts()[i] == by_column[i], "column " + std::to_string(i));
    }
  }
}

}  // namespace robustft
