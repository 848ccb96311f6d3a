#include "../cpu/mpm_nce.hpp"

#include <nanobind/ndarray.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "../cpu/pages.hpp"
#include "common.hpp"

namespace robustft {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
// Fresh pages cost as much as a small product (64 MB: from 10 ms to a tenth of a second), huge ones
// less. So memory of some size has huge pages, and stays for the next call or step.
struct Block {
  std::unique_ptr<void, Free> memory;
  int64_t bytes = 0;

  Block() = default;
  explicit Block(int64_t wanted) {
    const int64_t unit = wanted < 2 * kHugePage ? 64 : kHugePage;
    bytes = (wanted + unit) / unit * unit;
    memory.reset(std::aligned_alloc(static_cast<size_t>(unit), static_cast<size_t>(bytes)));
    if (memory == nullptr) throw std::bad_alloc();
    advise(memory.get(), static_cast<std::size_t>(bytes));
  }
};

// One block that waits for its next use. Who finds none, or one too small, makes a new one; the
// larger of two that come back stays.
class Spare {
 public:
  Block take(int64_t bytes) {
    Block block;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (waiting_.bytes >= bytes) block = std::exchange(waiting_, Block());
    }
    return block.bytes >= bytes && block.memory != nullptr ? std::move(block) : Block(bytes);
  }
  void give_back(Block block) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (block.bytes > waiting_.bytes) std::swap(block, waiting_);
  }

 private:
  std::mutex mutex_;
  Block waiting_;
};

// Of the calls' workspaces (up to kMostKept bytes) and of kept products. Never destroyed: tensors
// may outlive the module's statics.
Spare& spare_workspace() {
  static Spare& spare = *new Spare;
  return spare;
}
Spare& spare_products() {
  static Spare& spare = *new Spare;
  return spare;
}

class Workspace {
 public:
  explicit Workspace(int64_t bytes) : block_(spare_workspace().take(bytes)) {}
  ~Workspace() {
    if (block_.bytes <= kMostKept) spare_workspace().give_back(std::move(block_));
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const { return block_.memory.get(); }

 private:
  static constexpr int64_t kMostKept = int64_t{192} << 20;
  Block block_;
};

// A float32 tensor of `count` elements, not initialised, whose memory serves the next one after it.
auto products_room(int64_t count) {
  auto* block = new Block(spare_products().take(4 * count));
  const nanobind::capsule owner(block, [](void* p) noexcept {
    spare_products().give_back(std::move(*static_cast<Block*>(p)));
    delete static_cast<Block*>(p);
  });
  return nanobind::ndarray<nanobind::pytorch, float, nanobind::ndim<1>>(
      block->memory.get(), {static_cast<size_t>(count)}, owner);
}

// Labels as small ids by which the kernels compare, and how many positives each anchor has.
class Positives {
 public:
  // Both null: row i belongs to column i.
  Positives(const int64_t* row_labels, const int64_t* column_labels, int64_t rows, int64_t columns,
            int64_t ignore_index)
      : row_counts_(rows, 1), column_counts_(columns, 1) {
    if (row_labels == nullptr) return;
    // Ids count the rows' labels; an ignored row has kNoRow, other columns kNoColumn.
    Table table(rows);
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
  }

  Positives(const uint8_t* mask, int64_t rows, int64_t columns)
      : row_counts_(rows, 0), column_counts_(columns, 0) {
    for (int64_t i = 0; i < rows; ++i) {
      int32_t count = 0;
      for (int64_t j = 0; j < columns; ++j) {
        count += mask[i * columns + j];
        column_counts_[j] += mask[i * columns + j];
      }
      row_counts_[i] = count;
    }
  }

  const int32_t* row_ids() const { return row_ids_.data(); }
  const int32_t* column_ids() const { return column_ids_.data(); }
  const int32_t* row_counts() const { return row_counts_.data(); }
  const int32_t* column_counts() const { return column_counts_.data(); }

 private:
  static constexpr int32_t kNoColumn = -1, kNoRow = -2;

  // Label → id, by open addressing, at most half full.
  class Table {
   public:
    explicit Table(int64_t labels) {
      while ((int64_t{1} << bits_) < 2 * labels) ++bits_;
      slots_.assign(size_t{1} << bits_, {0, kNoColumn});
    }
    int32_t insert(int64_t label) {
      Slot& slot = slots_[place(label)];
      if (slot.id < 0) slot = {label, count_++};
      return slot.id;
    }
    int32_t find(int64_t label) const { return slots_[place(label)].id; }

   private:
    struct Slot {
      int64_t label;
      int32_t id;
    };
    size_t place(int64_t label) const {
      // Fibonacci hashing: the upper bits of a product with 2^64 over the golden ratio.
      size_t at = static_cast<uint64_t>(label) * 0x9e3779b97f4a7c15u >> (64 - bits_);
      while (slots_[at].id >= 0 && slots_[at].label != label) {
        at = (at + 1) & (slots_.size() - 1);
      }
      return at;
    }
    int bits_ = 1;
    int32_t count_ = 0;
    std::vector<Slot> slots_;
  };

  std::vector<int32_t> row_ids_, column_ids_, row_counts_, column_counts_;
};

struct Problem {
  Positives positives;
  MpmNceInput in;

  Problem(Address x, int64_t x_stride, Address y, int64_t y_stride, int64_t rows, int64_t columns,
          int64_t dim, int dtype, Address row_labels, Address column_labels, Address mask,
          int64_t ignore_index, double scale, double margin, double smoothing, bool symmetric,
          int threads)
      : positives(mask != 0 ? Positives(at<uint8_t>(mask), rows, columns)
                            : Positives(at<int64_t>(row_labels), at<int64_t>(column_labels), rows,
                                        columns, ignore_index)),
        in{{at(x), x_stride},
           {at(y), y_stride},
           rows,
           columns,
           dim,
           DType(dtype),
           mask != 0         ? Pairs::mask
           : row_labels != 0 ? Pairs::labels
                             : Pairs::diagonal,
           positives.row_ids(),
           positives.column_ids(),
           at<uint8_t>(mask),
           positives.row_counts(),
           positives.column_counts(),
           scale,
           margin,
           smoothing,
           symmetric,
           threads} {}
};

void mpm_nce_forward(Address x, int64_t x_stride, Address y, int64_t y_stride, int64_t rows,
                     int64_t columns, int64_t dim, int dtype, Address row_labels,
                     Address column_labels, Address mask, int64_t ignore_index, double scale,
                     double margin, double smoothing, bool symmetric, int threads, Address kept,
                     Address loss, Address row_statistics, Address column_statistics) {
  const Problem problem(x, x_stride, y, y_stride, rows, columns, dim, dtype, row_labels,
                        column_labels, mask, ignore_index, scale, margin, smoothing, symmetric,
                        threads);
  const MpmNceKernels& kernels = *isa().mpm_nce;
  const Workspace workspace(kernels.forward_workspace(problem.in));
  kernels.forward(problem.in, workspace.data(), at<float>(kept), at<float>(loss),
                  at<float>(row_statistics), at<float>(column_statistics));
}

void mpm_nce_backward(Address x, int64_t x_stride, Address y, int64_t y_stride, int64_t rows,
                      int64_t columns, int64_t dim, int dtype, Address row_labels,
                      Address column_labels, Address mask, int64_t ignore_index, double scale,
                      double margin, double smoothing, bool symmetric, int threads, Address kept,
                      Address row_statistics, Address column_statistics, double grad,
                      Address grad_x, Address grad_y, Address grad_scale) {
  const Problem problem(x, x_stride, y, y_stride, rows, columns, dim, dtype, row_labels,
                        column_labels, mask, ignore_index, scale, margin, smoothing, symmetric,
                        threads);
  const MpmNceKernels& kernels = *isa().mpm_nce;
  const Workspace workspace(
      kernels.backward_workspace(problem.in, kept != 0, grad_x != 0, grad_y != 0));
  kernels.backward(problem.in, workspace.data(), at<float>(kept), at<float>(row_statistics),
                   at<float>(column_statistics), grad, at(grad_x), at(grad_y),
                   at<float>(grad_scale));
}

}  // namespace

void bind_mpm_nce(nanobind::module_& m) {
  m.def("mpm_nce_products_room", &products_room);
  m.def("mpm_nce_forward", &mpm_nce_forward, ReleaseGil());
  m.def("mpm_nce_backward", &mpm_nce_backward, ReleaseGil());
}

}  // namespace robustft
