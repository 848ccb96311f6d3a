// mpm_nce.cpp against its formulas in double, on every instruction set and on 1 to 4 threads, with
// kept products and computed ones.
#include "../cpu/mpm_nce/mpm_nce.hpp"

#include <memory>
#include <new>

#include "matrices.hpp"

namespace robustft {
namespace {

using Values = std::vector<double>;

enum class Features {
  unit,     // of length 1: one shift serves all anchors
  opposed,  // the same, but one row points away from all columns, and needs a shift of its own
  long_     // too long for one shift
};

struct Options {
  Pairs pairs;
  int64_t rows, columns, dim;
  double margin, smoothing, scale;
  bool symmetric;
  Features features;
  bool exclude_self = false;
};

struct Problem {
  Options options;
  DType dtype;
  Stored x, y;
  std::vector<int32_t> row_ids, column_ids, row_positives, column_positives;
  std::vector<uint8_t> mask;  // of every kind of pairs

  Problem(const Options& o, DType dtype_)
      : options(o),
        dtype(dtype_),
        x(o.rows, o.dim, dtype, 3),
        y(o.columns, o.dim, dtype, 0),
        row_positives(of(o.rows)),
        column_positives(of(o.columns)),
        mask(of(o.rows * o.columns)) {
    Random random(static_cast<uint32_t>(o.rows * 1000 + o.columns));
    // Columns lean to one side, rows to the same one.
    const double lean = o.features == Features::opposed ? 4 : 0.3;
    fill(x, o.rows, lean, random);
    fill(y, o.columns, lean, random);
    if (o.features == Features::opposed) {
      for (int64_t d = 0; d < o.dim; ++d) x.set(o.rows - 1, d, -x.at(0, d));
    }
    if (o.pairs == Pairs::labels) {
      // Some are of no row or column, as where a label is ignored; −1 pads the columns.
      for (int64_t i = 0; i < o.rows; ++i) row_ids.push_back(random.below(9) - 2);
      for (int64_t j = 0; j < o.columns; ++j) column_ids.push_back(random.below(8) - 1);
      for (int32_t& id : row_ids) id = id < 0 ? -2 : id;
      row_ids[0] = column_ids[0] = 3;
      column_ids.resize(of((o.columns + 31) / 32 * 32), -1);
    }
    for (int64_t i = 0; i < o.rows; ++i) {
      for (int64_t j = 0; j < o.columns; ++j) {
        const bool no_pair = o.exclude_self && i == j;
        const bool is = no_pair                      ? false
                        : o.pairs == Pairs::diagonal ? i == j
                        : o.pairs == Pairs::labels   ? row_ids[of(i)] == column_ids[of(j)]
                                                     : random.below(5) == 0 || i + j == 0;
        mask[of(i * o.columns + j)] = is;
        row_positives[of(i)] += is;
        column_positives[of(j)] += is;
      }
    }
  }

  MpmNceInput input(int threads) const {
    const Options& o = options;
    return {x.matrix(),
            y.matrix(),
            o.rows,
            o.columns,
            o.dim,
            dtype,
            o.pairs,
            o.pairs == Pairs::labels ? row_ids.data() : nullptr,
            o.pairs == Pairs::labels ? column_ids.data() : nullptr,
            o.pairs == Pairs::mask ? mask.data() : nullptr,
            row_positives.data(),
            column_positives.data(),
            o.scale,
            o.margin,
            o.smoothing,
            o.symmetric,
            o.exclude_self,
            threads};
  }

  static size_t of(int64_t n) { return static_cast<size_t>(n); }

 private:
  void fill(Stored& to, int64_t rows, double lean, Random& random) const {
    for (int64_t i = 0; i < rows; ++i) {
      Values row;
      double square = 0;
      for (int64_t d = 0; d < options.dim; ++d) {
        row.push_back(random.normal() + lean);
        square += row.back() * row.back();
      }
      const double length = options.features == Features::long_ ? 3 : 1;
      for (int64_t d = 0; d < options.dim; ++d) {
        to.set(i, d, length / std::sqrt(square) * row[of(d)]);
      }
    }
  }
};

struct Result {
  Values loss, x, y, scale;
};

// Adds the loss of one direction, and what it gives ∂loss/∂Z. Z, the pairs and the gradient are
// read at anchor·step + candidate·stride.
void add_direction(const Values& z, const std::vector<uint8_t>& positive, int64_t anchors,
                   int64_t step, int64_t candidates, int64_t stride,
                   const std::vector<int32_t>& positives, const Problem& p, Values& grad,
                   double& loss) {
  double count = 0;
  for (const int32_t k : positives) count += k > 0;
  const double share = (p.options.symmetric ? 0.5 : 1) / count;
  for (int64_t i = 0; i < anchors; ++i) {
    if (positives[Problem::of(i)] == 0) continue;
    const auto at = [&](int64_t j) { return Problem::of(i * step + j * stride); };
    const auto is_pair = [&](int64_t j) { return !p.options.exclude_self || i != j; };
    double highest = -HUGE_VAL, sum = 0;
    for (int64_t j = 0; j < candidates; ++j) {
      if (is_pair(j)) highest = std::fmax(highest, z[at(j)]);
    }
    for (int64_t j = 0; j < candidates; ++j) {
      if (is_pair(j)) sum += std::exp(z[at(j)] - highest);
    }
    const double mine = positives[Problem::of(i)];
    const double others = static_cast<double>(candidates) - mine - (p.options.exclude_self ? 1 : 0);
    const double epsilon = others > 0 ? p.options.smoothing : 0;
    const double log_sum = highest + std::log(sum);
    for (int64_t j = 0; j < candidates; ++j) {
      if (!is_pair(j)) continue;
      const double w = positive[at(j)] != 0 ? (1 - epsilon) / mine : epsilon / std::fmax(1, others);
      loss += share * w * (log_sum - z[at(j)]);
      grad[at(j)] += share * (std::exp(z[at(j)] - log_sum) - w);
    }
  }
}

Result truth(const Problem& p, double grad) {
  const Options& o = p.options;
  const auto of = Problem::of;
  const Values x = p.x.values(), y = p.y.values();
  Values cosines, z, by_z(of(o.rows * o.columns));
  for (int64_t i = 0; i < o.rows; ++i) {
    for (int64_t j = 0; j < o.columns; ++j) {
      double dot = 0;
      for (int64_t d = 0; d < o.dim; ++d) dot += x[of(i * o.dim + d)] * y[of(j * o.dim + d)];
      cosines.push_back(dot + (p.mask[of(i * o.columns + j)] != 0 ? 0 : o.margin));
      z.push_back(o.scale * cosines.back());
    }
  }
  double loss = 0, by_scale = 0;
  add_direction(z, p.mask, o.rows, o.columns, o.columns, 1, p.row_positives, p, by_z, loss);
  if (o.symmetric) {
    add_direction(z, p.mask, o.columns, 1, o.rows, o.columns, p.column_positives, p, by_z, loss);
  }
  Values grad_x(of(o.rows * o.dim)), grad_y(of(o.columns * o.dim));
  for (int64_t i = 0; i < o.rows; ++i) {
    for (int64_t j = 0; j < o.columns; ++j) {
      const double g = grad * by_z[of(i * o.columns + j)];
      by_scale += g * cosines[of(i * o.columns + j)];
      for (int64_t d = 0; d < o.dim; ++d) {
        grad_x[of(i * o.dim + d)] += o.scale * g * y[of(j * o.dim + d)];
        grad_y[of(j * o.dim + d)] += o.scale * g * x[of(i * o.dim + d)];
      }
    }
  }
  return {{loss}, grad_x, grad_y, {by_scale}};
}

// Memory of exactly so many bytes, all bits set.
class Workspace {
 public:
  explicit Workspace(int64_t bytes)
      : memory_(::operator new(static_cast<size_t>(bytes), std::align_val_t(64))) {
    std::memset(memory_.get(), 0xff, static_cast<size_t>(bytes));
  }
  void* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  std::unique_ptr<void, Free> memory_;
};

struct Output {
  Stored loss, row_statistics, column_statistics, x, y, scale;
  std::vector<float> kept;

  Output(const Isa& isa, const Problem& p, int threads, bool keep, bool need_x, bool need_y,
         double grad)
      : loss(1, 1, DType::float32),
        row_statistics(kMpmNceStatistics, p.options.rows, DType::float32),
        column_statistics(kMpmNceStatistics, p.options.columns, DType::float32),
        x(p.options.rows, p.options.dim, p.dtype),
        y(p.options.columns, p.options.dim, p.dtype),
        scale(1, 1, DType::float32),
        kept(keep ? Problem::of(mpm_nce_kept(p.options.rows, p.options.columns)) : 0,
             std::nanf("")) {
    const MpmNceInput in = p.input(threads);
    Isa all_sizes = isa;
    all_sizes.mpm_nce_small = nullptr;
    const MpmNceKernels& kernels = all_sizes.mpm_nce_of(in);
    const auto floats = [](Stored& s) { return static_cast<float*>(s.data()); };
    float* products = keep ? kept.data() : nullptr;
    // Not written in one direction.
    float* columns = in.symmetric ? floats(column_statistics) : nullptr;
    const Workspace forward(kernels.forward_workspace(in));
    kernels.forward(in, forward.data(), products, floats(loss), floats(row_statistics), columns);
    const Workspace backward(kernels.backward_workspace(in, keep, need_x, need_y));
    kernels.backward(in, backward.data(), products, floats(row_statistics), columns, grad,
                     need_x ? x.data() : nullptr, need_y ? y.data() : nullptr, floats(scale));
  }

  bool operator==(const Output& other) const {
    return loss == other.loss && row_statistics == other.row_statistics &&
           column_statistics == other.column_statistics && x == other.x && y == other.y &&
           scale == other.scale;
  }
};

void check(const Isa& isa, const Problem& p, const Result& t, double grad,
           const std::string& what) {
  const Output first(isa, p, 1, true, true, true, grad);
  // |Z| · 2^-24 is the rounding of an exponent in float32, and of what it stands for.
  const double digits = p.options.features == Features::unit ? 4e-6 : 2e-5;
  // ∂Z is rounded too where bfloat16 numbers are multiplied as such.
  const std::string name = isa.name;
  const bool twice = p.dtype == DType::bfloat16 && (name == "avx512bf16" || name == "amx");
  const double half =
      p.dtype == DType::float32 ? digits : (twice ? 2 : 1) * rounding(p.dtype) + digits;
  check_near(first.loss.values(), t.loss, 4e-6, 1e-6, what + ", loss");
  check_near(first.x.values(), t.x, half, 1e-6, what + ", gradient of x");
  check_near(first.y.values(), t.y, half, 1e-6, what + ", gradient of y");
  check_near(first.scale.values(), t.scale, digits, 1e-6, what + ", gradient of the scale");
  for (int threads = 1; threads <= 4; ++threads) {
    for (const bool keep : {true, false}) {
      CHECK(Output(isa, p, threads, keep, true, true, grad) == first,
            what + ": threads, or kept products, change a bit");
    }
  }
  const Output one_x(isa, p, 2, true, true, false, grad),
      one_y(isa, p, 2, false, false, true, grad);
  CHECK(one_x.x == first.x && one_x.scale == first.scale, what + ": x alone");
  CHECK(one_y.y == first.y && one_y.scale == first.scale, what + ": y alone");
}

std::string name_of(const Options& o) {
  const char* const pairs[] = {"diagonal", "labels", "mask"};
  return std::string(" ") + pairs[static_cast<int>(o.pairs)] + " " + std::to_string(o.rows) +
         " x " + std::to_string(o.columns) + " x " + std::to_string(o.dim) + ", margin " +
         std::to_string(o.margin) + ", smoothing " + std::to_string(o.smoothing) +
         (o.symmetric ? "" : ", one direction") + (o.exclude_self ? ", without self" : "") +
         (o.features == Features::unit ? "" : ", general sweep");
}

constexpr Options kOptions[] = {
    {Pairs::diagonal, 1, 1, 1, 0, 0, 100, true, Features::unit},
    {Pairs::diagonal, 67, 67, 33, 0, 0, 100, true, Features::unit},
    {Pairs::diagonal, 13, 13, 131, 0.05, 0.1, 30, false, Features::unit},
    {Pairs::labels, 31, 101, 17, 0.05, 0.02, 20, true, Features::unit},
    {Pairs::labels, 101, 29, 65, -0.1, 0, 50, false, Features::unit},
    {Pairs::mask, 29, 71, 31, 0.05, 0.1, 20, true, Features::unit},
    {Pairs::mask, 5, 33, 3, 0, 0, 100, false, Features::unit},
    {Pairs::diagonal, 37, 37, 19, 0.05, 0, 100, true, Features::opposed},
    {Pairs::labels, 33, 37, 19, 0, 0.1, 100, true, Features::long_},
    {Pairs::mask, 13, 47, 29, 0.05, 0, 100, false, Features::long_},
    {Pairs::labels, 67, 67, 33, 0.05, 0.1, 30, true, Features::unit, true},
    {Pairs::labels, 101, 101, 19, 0, 0, 50, false, Features::unit, true},
    {Pairs::mask, 45, 45, 17, 0.05, 0.1, 20, true, Features::long_, true},
    {Pairs::labels, 37, 37, 19, 0, 0.1, 100, true, Features::opposed, true},
    {Pairs::labels, 37, 101, 19, 0, 0.1, 100, false, Features::opposed, true},
    {Pairs::mask, 1, 29, 17, 0.05, 0, 20, false, Features::long_, true},
};

}  // namespace

TEST(mpm_nce) {
  const double grad = -1.7;
  const char* const names[] = {"float32", "bfloat16", "float16"};
  for (const Options& o : kOptions) {
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
      const Problem p(o, dtype);
      const Result t = truth(p, grad);
      for (const Isa& isa : isas()) {
        check(isa, p, t, grad,
              std::string(isa.name) + " " + names[static_cast<int>(dtype)] + name_of(o));
      }
    }
  }
}

TEST(mpm_nce_small_batches_take_one_thread) {
  for (const Isa& isa : isas()) {
    const auto threads = [&](int64_t rows, int64_t columns, int64_t dim) {
      MpmNceInput in{};
      in.rows = rows;
      in.columns = columns;
      in.dim = dim;
      in.threads = 7;
      return isa.with_threads(in).threads;
    };
    CHECK(threads(1, 1, 1) == 1 && threads(32, 32, 512) == 1, isa.name);
    CHECK(threads(129, 129, 512) == 7 && threads(1, 1, 1 << 24) == 7, isa.name);
    CHECK(threads(int64_t{1} << 40, int64_t{1} << 40, 512) == 7, isa.name);
  }
}

TEST(mpm_nce_small_batches_of_float32_may_have_kernels_of_their_own) {
  Isa chosen = isas().front();
  const MpmNceKernels small{};
  chosen.mpm_nce_small = &small;
  chosen.mpm_nce_few = 1000;
  const auto serves = [&](DType dtype, int64_t rows) {
    MpmNceInput in{};
    in.dtype = dtype;
    in.rows = rows;
    in.columns = in.dim = 10;
    return &chosen.mpm_nce_of(in);
  };
  CHECK(serves(DType::float32, 10) == &small, "as many products as it says");
  CHECK(serves(DType::float32, 11) == chosen.mpm_nce, "more");
  CHECK(serves(DType::float16, 10) == chosen.mpm_nce, "float16");
  CHECK(serves(DType::bfloat16, 10) == chosen.mpm_nce_bfloat16, "bfloat16");
}

// So many candidates that a part of them passes in blocks, and anchors that several tasks merge.
TEST(mpm_nce_long) {
  const double grad = 1000;
  for (const Options& o : {Options{Pairs::labels, 5, 16411, 3, 0.05, 0.1, 10, true, Features::unit},
                           Options{Pairs::mask, 16411, 3, 5, 0, 0, 10, true, Features::unit}}) {
    const Problem p(o, DType::float32);
    const Result t = truth(p, grad);
    for (const Isa& isa : isas()) check(isa, p, t, grad, isa.name + name_of(o));
  }
}

// No number within the range of exponents stands for something else: one row points away from all
// columns, so that its shift is as far below 0 as the others' are above.
TEST(mpm_nce_large_exponents) {
  const double grad = -1.7;
  for (const double scale : {1e28, 1e30, 3e31, 1e33}) {
    for (const bool symmetric : {true, false}) {
      for (const double smoothing : {0.0, 0.1}) {
        const Problem p(
            {Pairs::diagonal, 37, 37, 19, 0.05, smoothing, scale, symmetric, Features::opposed},
            DType::float32);
        const Result t = truth(p, grad);
        for (const Isa& isa : isas()) {
          check(isa, p, t, grad,
                isa.name + name_of(p.options) + ", scale " + std::to_string(scale));
        }
      }
    }
  }
}

TEST(mpm_nce_exponents_beyond_float32) {
  for (const bool symmetric : {true, false}) {
    const Problem p({Pairs::diagonal, 37, 37, 19, 0.05, 0.1, 1e38, symmetric, Features::unit},
                    DType::float32);
    for (const Isa& isa : isas()) {
      const Output out(isa, p, 2, true, true, true, 1);
      for (const Stored* each : {&out.loss, &out.x, &out.y, &out.scale}) {
        for (const double value : each->values()) CHECK(std::isnan(value), isa.name);
      }
    }
  }
}

}  // namespace robustft
