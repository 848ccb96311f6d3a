#include "../cpu/mpm_nce.hpp"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "common.hpp"

namespace robustft {
namespace {

// Memory for one call. Fresh pages cost as much as the smaller products (64 MB in small pages: a
// tenth of a second on some machines), so up to kKept bytes stay for the next call. Callers that
// find them in use get their own.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : use_(mutex(), std::try_to_lock) {
    if (!use_.owns_lock() || bytes > kKept) {
      memory_ = own_ = allocate(bytes);
      return;
    }
    static void* stays = nullptr;
    static int64_t size = 0;
    if (size < bytes) {
      std::free(stays);
      stays = nullptr;
      size = 0;
      stays = allocate(bytes);
      size = bytes;
    }
    memory_ = stays;
  }
  ~Workspace() { std::free(own_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return memory_; }

 private:
  static constexpr int64_t kKept = int64_t{96} << 20, kHugePage = int64_t{2} << 20;

  static std::mutex& mutex() {
    static std::mutex one;
    return one;
  }

  static void* allocate(int64_t bytes) {
    const int64_t unit = bytes < 2 * kHugePage ? 64 : kHugePage;
    const int64_t size = (bytes + unit) / unit * unit;
    void* memory = std::aligned_alloc(static_cast<size_t>(unit), static_cast<size_t>(size));
    if (memory == nullptr) throw std::bad_alloc();
#ifdef __linux__
    if (unit == kHugePage) madvise(memory, static_cast<size_t>(size), MADV_HUGEPAGE);
#endif
    return memory;
  }

  std::unique_lock<std::mutex> use_;
  void* memory_ = nullptr;
  void* own_ = nullptr;
};

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
  m.def("mpm_nce_forward", &mpm_nce_forward, ReleaseGil());
  m.def("mpm_nce_backward", &mpm_nce_backward, ReleaseGil());
}

}  // namespace robustft
