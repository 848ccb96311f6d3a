// Which pairs are positive, as the kernels read it: labels as small ids by which they compare, and
// how many positives each anchor has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace robustft {

// Label → id, counted from 0 in the order of their first insertion: open addressing, at most half
// full.
class LabelTable {
 public:
  static constexpr int32_t kNone = -1;

  // For at most `labels` different ones.
  explicit LabelTable(int64_t labels);
  int32_t insert(int64_t label);
  int32_t find(int64_t label) const;  // kNone if it was never inserted

 private:
  struct Slot {
    int64_t label;
    int32_t id;
  };
  std::size_t place(int64_t label) const;

  int bits_ = 1;
  int32_t count_ = 0;
  std::vector<Slot> slots_;
};

class Positives {
 public:
  // Equal labels are a positive pair, unless they are ignore_index; both null: row i belongs to
  // column i. exclude_self: row i and column i are no pair (with labels, no more rows than
  // columns).
  Positives(const int64_t* row_labels, const int64_t* column_labels, int64_t rows, int64_t columns,
            int64_t ignore_index, bool exclude_self);
  // [rows, columns], of zeros and ones.
  Positives(const uint8_t* mask, int64_t rows, int64_t columns, bool exclude_self);

  const int32_t* row_ids() const { return row_ids_.data(); }
  const int32_t* column_ids() const { return column_ids_.data(); }
  const int32_t* row_counts() const { return row_counts_.data(); }
  const int32_t* column_counts() const { return column_counts_.data(); }

 private:
  std::vector<int32_t> row_ids_, column_ids_, row_counts_, column_counts_;
};

}  // namespace robustft
