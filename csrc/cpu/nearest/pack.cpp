// Packs a bank, or a batch of queries, for the screening of nearest.cpp.
//
// A row x is centred, c = x − μ, and rounded: c̃ = s·i with integers i up to 127, or Int8::kLargest
// in the bank, and s = max|c| / 127 (Int8), or c̃ = c (Fp32). Kept are c̃, |c̃|² and a bound ρ of
// |x − μ − c̃|. μ can be any vector: it is the mean of some rows.
//
// ρ, with u = 2^-24: c = fl(x − μ) errs by at most u|c|; s·i rounds by at most 1.02·u|c| and the
// difference by u|r|; the sum of D squares r² loses at most (D + 1)·u of itself, and underflow
// D·2^-126. So ρ = √(Σr²·(1 + (D + 16)·4u) + D·2^-126) + 4u·|c|, rounded up, is a bound.
#include <cmath>

#include "../parallel.hpp"
#include "tile.hpp"

namespace robustft {
namespace {

constexpr float kMagic = 0x1.8p23f;  // x + kMagic has the integer nearest to x in its low bits
constexpr int64_t kMeanRows = 1024;
constexpr int64_t kPackedPanels = 16;  // written together: 256 KB at a width of 512

// What is known of a rounded row.
struct Rounded {
  float scale;
  double norm, residual;  // |c̃|², ρ
  int64_t sum;            // Σ i
  bool usable;            // otherwise c̃ = 0, and nothing is known
};

// Round a row to integers up to `most`; put(w, word) receives its words, all of the panel's.
template <int most, class Put>
Rounded round_row(const float* x, const float* mean, int64_t dim, float* centred, Put put) {
  const int64_t words = words_of(dim);
  Vec top{}, squares{};
  sweep(0, dim, [&](int64_t i, auto part) {
    const Vec c = load(x + i, part) - load(mean + i, part);
    store(centred + i, c);
    top = max(top, abs(c));
    squares += c * c;
  });
  const double square = sum(squares);
  const bool usable = square < kNearestLargest && dim <= kNearestWidest;
  const double width = static_cast<double>(dim);
  double residue = 0, norm = 0;
  float scale = 1;
  int64_t total = 0;
  if constexpr (kInt8) {
    const float largest = max(top);
    const bool nothing = !usable || largest < 0x1p-100f;
    scale = nothing ? 0.0f : largest / most;
    const Vec s = splat(scale), inverse = splat(nothing ? 0.0f : most / largest);
    Vec residues{};
    IVec integers{}, integer_squares{};
    for (int64_t i = (dim + W - 1) / W * W; i < 4 * words; i += W) store(centred + i, Vec{});
    for (int64_t i = 0; i < 4 * words; i += W) {
      const Vec c = load(centred + i);
      const Vec shifted = (usable ? c : Vec{}) * inverse + kMagic;
      const IVec n = reinterpret_cast<IVec>(shifted) - 0x4b400000;
      const Vec r = c - s * (shifted - kMagic);
      residues += r * r;
      integers += n;
      integer_squares += n * n;
      typedef int8_t Bytes __attribute__((vector_size(W)));
      const Bytes bytes = __builtin_convertvector(n, Bytes);
      uint32_t out[W / 4];
      std::memcpy(out, &bytes, sizeof bytes);
      for (int w = 0; w < W / 4; ++w) put(i / 4 + w, out[w]);
    }
    int64_t squared = 0;
    for (int lane = 0; lane < W; ++lane) {
      total += integers[lane];
      squared += integer_squares[lane];
    }
    norm = static_cast<double>(scale) * scale * static_cast<double>(squared);
    residue = sum(residues);
  } else {
    for (int64_t i = 0; i < dim; ++i) put(i, static_cast<Word>(usable ? centred[i] : 0.0f));
    norm = usable ? square : 0;
  }
  const double residual = std::sqrt(residue * (1 + (width + 16) * 0x1p-22) + width * 0x1p-126) +
                          0x1p-22 * std::sqrt(square);
  return {scale, norm, residual * (1 + 0x1p-20), total, usable};
}

// Left words are unsigned: i + 128.
[[maybe_unused]] inline float as_left(float word) { return word; }
[[maybe_unused]] inline uint32_t as_left(uint32_t word) { return word ^ 0x80808080u; }

double slack(int64_t dim) {
  return kInt8 ? 0x1p-20 : (2 * static_cast<double>(dim) + 32) * 0x1p-24;
}

bool finite(const float* x, int64_t dim) {
  for (int64_t i = 0; i < dim; ++i) {
    if (!std::isfinite(x[i])) return false;
  }
  return true;
}

void sample_mean(const NearestBank& bank, double* sums) {
  for (int64_t i = 0; i < bank.dim; ++i) sums[i] = 0;
  const int64_t count = bank.count < kMeanRows ? bank.count : kMeanRows;
  for (int64_t k = 0; k < count; ++k) {
    const float* x = bank.rows + k * bank.count / count * bank.stride;
    for (int64_t i = 0; i < bank.dim; ++i) sums[i] += x[i];
  }
  for (int64_t i = 0; i < bank.dim; ++i) {
    bank.mean[i] = static_cast<float>(sums[i] / static_cast<double>(count));
  }
}

bool pack_bank(const NearestBank& bank, float* scratch, int threads) {
  const int64_t panels = panels_of(bank.count), words = words_of(bank.dim);
  const int64_t width = (bank.dim + 63) / 64 * 64;
  const double c = slack(bank.dim);
  sample_mean(bank, reinterpret_cast<double*>(scratch));
  bool all_finite = true;

  auto body = [&](int64_t block, int worker) {
    const int64_t first = block * kPackedPanels;
    const int64_t last = first + kPackedPanels < panels ? first + kPackedPanels : panels;
    for (int lane = 0; lane < kTileCols; ++lane) {
      for (int64_t p = first; p < last; ++p) {
        Word* panel = static_cast<Word*>(bank.panels) + p * words * kTileCols + lane;
        int32_t* constants = bank.constants + p * kNearestConstants * kTileCols + lane;
        const int64_t row = p + lane * panels;
        float scale = 0, near = __builtin_inff(), residual = 0;
        int64_t start = 0;
        if (row < bank.count) {
          const float* x = bank.rows + row * bank.stride;
          const Rounded r =
              round_row<kLargest>(x, bank.mean, bank.dim, scratch + worker * 2 * width,
                                  [&](int64_t w, Word word) { panel[w * kTileCols] = word; });
          near = -near;
          if (r.usable) {
            scale = r.scale;
            near = static_cast<float>(r.norm * (1 - c) - r.residual * r.residual * (1 + c) -
                                      kNearestTiny);
            residual = static_cast<float>(r.residual);
            start = -128 * r.sum;
          } else if (!finite(x, bank.dim)) {
            __atomic_store_n(&all_finite, false, __ATOMIC_RELAXED);
          }
        } else {
          for (int64_t w = 0; w < words; ++w) panel[w * kTileCols] = 0;
        }
        std::memcpy(constants, &scale, 4);
        std::memcpy(constants + kTileCols, &near, 4);
        std::memcpy(constants + 2 * kTileCols, &residual, 4);
        constants[3 * kTileCols] = static_cast<int32_t>(start);
      }
    }
  };
  parallel((panels + kPackedPanels - 1) / kPackedPanels, threads, body);
  return all_finite;
}

void pack_queries(const NearestBank& bank, const NearestBatch& batch, float* scratch, int threads) {
  const int64_t words = words_of(bank.dim), width = (bank.dim + 63) / 64 * 64;
  auto body = [&](int64_t index, int worker) {
    Word* panel = static_cast<Word*>(batch.panels) + index * words * Tile::kRows;
    for (int64_t r = 0; r < Tile::kRows; ++r) {
      const int64_t q = index * Tile::kRows + r;
      NearestQuery& query = batch.query[q];
      if (q >= batch.count) {
        query = {};
        for (int64_t w = 0; w < words; ++w) panel[Tile::left_index(r, w, words)] = 0;
        continue;
      }
      const Rounded rounded = round_row<127>(
          batch.values + batch.which[q] * batch.stride, bank.mean, bank.dim,
          scratch + worker * 2 * width,
          [&](int64_t w, Word word) { panel[Tile::left_index(r, w, words)] = as_left(word); });
      query.scale = 2 * rounded.scale;
      query.norm = static_cast<float>(rounded.norm);
      // Nothing reaches a row of which nothing is known.
      query.residual = rounded.usable ? static_cast<float>(rounded.residual) : __builtin_inff();
    }
  };
  parallel((batch.count + Tile::kRows - 1) / Tile::kRows, threads, body);
}

}  // namespace

extern const NearestPacking ROBUSTFT_JOIN(nearest_packing_, ROBUSTFT_ISA);
const NearestPacking ROBUSTFT_JOIN(nearest_packing_, ROBUSTFT_ISA) = {slack, pack_bank,
                                                                      pack_queries};

}  // namespace robustft
