#include "positives.hpp"

#include "../threads.hpp"

namespace robustft {
namespace {

constexpr int32_t kNoColumn = LabelTable::kNone, kNoRow = -2;  // equal to no id, nor to each other

}  // namespace

LabelTable::LabelTable(int64_t labels) {
  while ((int64_t{1} << bits_) < 2 * labels) ++bits_;
  slots_.assign(std::size_t{1} << bits_, {0, kNone});
}

int32_t LabelTable::insert(int64_t label) {
  Slot& slot = slots_[place(label)];
  if (slot.id < 0) slot = {label, count_++};
  return slot.id;
}

int32_t LabelTable::find(int64_t label) const { return slots_[place(label)].id; }

std::size_t LabelTable::place(int64_t label) const {
  // Fibonacci hashing: the upper bits of a product with 2^64 over the golden ratio.
  std::size_t at = static_cast<uint64_t>(label) * 0x9e3779b97f4a7c15u >> (64 - bits_);
  while (slots_[at].id >= 0 && slots_[at].label != label) {
    at = (at + 1) & (slots_.size() - 1);
  }
  return at;
}

Positives::Positives(const int64_t* row_labels, const int64_t* column_labels, int64_t rows,
                     int64_t columns, int64_t ignore_index, bool exclude_self)
    : row_counts_(rows, 1), column_counts_(columns, 1) {
  if (row_labels == nullptr) return;
  // Ids count the rows' labels; an ignored row has kNoRow, other columns kNoColumn.
  LabelTable table(rows);
  row_ids_.resize(rows);
  std::vector<int32_t> rows_of(rows, 0), columns_of(rows, 0);  // by id
  for (int64_t i = 0; i < rows; ++i) {
    row_ids_[i] = row_labels[i] == ignore_index ? kNoRow : table.insert(row_labels[i]);
    if (row_ids_[i] >= 0) ++rows_of[row_ids_[i]];
  }
  column_ids_.assign(columns + 32, kNoColumn);  // padded to whole panels
  for (int64_t j = 0; j < columns; ++j) {
    if (column_labels[j] != ignore_index) column_ids_[j] = table.find(column_labels[j]);
    if (column_ids_[j] >= 0) ++columns_of[column_ids_[j]];
  }
  for (int64_t i = 0; i < rows; ++i) {
    row_counts_[i] = row_ids_[i] >= 0 ? columns_of[row_ids_[i]] : 0;
  }
  for (int64_t j = 0; j < columns; ++j) {
    column_counts_[j] = column_ids_[j] >= 0 ? rows_of[column_ids_[j]] : 0;
  }
  for (int64_t i = 0; exclude_self && i < rows; ++i) {
    const int32_t mine = row_ids_[i] == column_ids_[i];
    row_counts_[i] -= mine;
    column_counts_[i] -= mine;
  }
}

Positives::Positives(const uint8_t* mask, int64_t rows, int64_t columns, bool exclude_self)
    : row_counts_(rows, 0), column_counts_(columns, 0) {
  for (int64_t i = 0; i < rows && !stopping(); ++i) {
    int32_t count = 0;
    for (int64_t j = 0; j < columns; ++j) {
      const int32_t is = exclude_self && i == j ? 0 : mask[i * columns + j];
      count += is;
      column_counts_[j] += is;
    }
    row_counts_[i] = count;
  }
}

}  // namespace robustft
