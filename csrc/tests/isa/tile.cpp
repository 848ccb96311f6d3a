// tile.hpp against plain loops: each kind and kernel that this instruction set has, numbers of
// words that are prime where that is allowed, sums that start at any value, left panels of any
// stride. Buffers have no spare element, so that the address sanitizer sees a step too far.
#include "../../cpu/tile.hpp"

#include <cmath>

#include "../../cpu/kernels.hpp"
#include "isa_tests.hpp"
#include "random.hpp"

namespace robustft {
namespace {

// The products of words as doubles: their sum, and that of their sizes.
struct Products {
  double sum, size;
  void add(double x, double y) {
    sum += x * y;
    size += std::fabs(x * y);
  }
};

// A random word, the products of two, and how far a sum may be off, in units of its size: a float32
// addition rounds by 2^-24, twice that is for good measure.
template <class Kind>
struct Words;

template <>
struct Words<Fp32> {
  static constexpr double kRounding = 0x1p-23;
  static float random(Lcg& random) { return random.uniform(); }
  static void multiply(float x, float y, Products& products) { products.add(x, y); }
};

#ifdef ROBUSTFT_HAS_BF16
template <>
struct Words<Bf16> {
  static constexpr double kRounding = 0x1p-23;
  static uint32_t random(Lcg& random) {  // two numbers of size 2^-8 to 2, so none is subnormal
    const uint32_t bits = random.bits();
    return (bits & 0x83ff83ffu) | 0x3c003c00u;
  }
  static void multiply(uint32_t x, uint32_t y, Products& products) {
    products.add(value(x << 16), value(y << 16));
    products.add(value(x & 0xffff0000u), value(y & 0xffff0000u));
  }
  static float value(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }
};
#endif

#ifdef ROBUSTFT_HAS_INT8
template <>
struct Words<Int8> {
  static constexpr double kRounding = 0;
  static uint32_t random(Lcg& random) {  // signed they are at most kLargest, unsigned up to 255
    uint32_t word = 0;
    for (int i = 0; i < 4; ++i) {
      const int x = static_cast<int8_t>(random.bits() >> 8);
      word =
          word << 8 | static_cast<uint8_t>(x > Int8::kLargest || x < -Int8::kLargest ? x / 2 : x);
    }
    return word;
  }
  static void multiply(uint32_t x, uint32_t y, Products& products) {
    for (int i = 0; i < 32; i += 8) {
      products.add(static_cast<uint8_t>(x >> i), static_cast<int8_t>(y >> i));
    }
  }
};
#endif

template <class Word>
Word* random_words(int64_t count, Word (*one)(Lcg&), Lcg& random) {
  Word* words = new Word[static_cast<size_t>(count)];
  for (int64_t i = 0; i < count; ++i) words[i] = one(random);
  return words;
}

// A start of every column, none of them zero and no two alike.
template <class Sum>
Sum start(int half) {
  Sum x{};
  for (int lane = 0; lane < W; ++lane) x[lane] = static_cast<float>(3 + lane + half * W);
  return x;
}

// What came out, row by row: NaN where nothing did.
template <int rows>
struct Result {
  double at[rows][kTileCols];
  Result() {
    for (auto& row : at) {
      for (double& x : row) x = __builtin_nan("");
    }
  }
  template <class Sum>
  void set(int r, Sum first, Sum second) {
    for (int lane = 0; lane < W; ++lane) {
      at[r][lane] = static_cast<double>(first[lane]);
      at[r][W + lane] = static_cast<double>(second[lane]);
    }
  }
};

// left_at(r, s): the left word of row r at step s.
template <class Kind, int rows, class LeftAt>
void compare(const Result<rows>& result, const typename Kind::Word* right, int64_t words,
             LeftAt left_at, const char* what, Wrong wrong) {
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < kTileCols; ++c) {
      const double first = 3 + c;
      Products products{first, first};
      for (int64_t s = 0; s < words; ++s) {
        Words<Kind>::multiply(left_at(r, s), right[s * kTileCols + c], products);
      }
      const double error = std::fabs(result.at[r][c] - products.sum);
      const double additions = static_cast<double>(words * Kind::kElements + 1);
      if (!(error <= Words<Kind>::kRounding * additions * products.size)) {
        wrong(what, r * kTileCols + c, result.at[r][c], products.sum);
      }
    }
  }
}

template <class Kind, class Tile>
void multiply(const char* what, Wrong wrong) {
  using Word = typename Kind::Word;
  using Sum = typename Kind::Sum;
  static_assert(Tile::kRows <= 32, "");
  Lcg random(1);
  const typename Tile::Scope scope;
  constexpr int64_t kSteps[] = {0, 1, 2, 3, 5, 8, 31, 127};
  for (const int64_t steps : kSteps) {
    const int64_t words = steps * Tile::kWords;
    Word* left = random_words(words * Tile::kRows, Words<Kind>::random, random);
    Word* right = random_words(words * kTileCols, Words<Kind>::random, random);
    Result<Tile::kRows> result;
    int calls = 0;
    Tile::multiply(left, right, words, start<Sum>(0), start<Sum>(1),
                   [&](int r, Sum first, Sum second) {
                     result.set(r, first, second);
                     ++calls;
                   });
    if (calls != Tile::kRows) wrong(what, words, calls, Tile::kRows);
    const auto left_at = [&](int r, int64_t s) { return left[Tile::left_index(r, s, words)]; };
    compare<Kind>(result, right, words, left_at, what, wrong);
    delete[] left;
    delete[] right;
  }
}

// Sums go on where an earlier call left them.
template <class Kind, int RowStride, int StepStride>
void accumulate_strided(const char* what, Wrong wrong) {
  using Word = typename Kind::Word;
  using Sum = typename Kind::Sum;
  Lcg random(2);
  constexpr int64_t kLengths[] = {1, 2, 7, 61};
  for (const int64_t words : kLengths) {
    const int64_t last = (kTileRows - 1) * RowStride + (words - 1) * StepStride;
    Word* left = random_words(last + 1, Words<Kind>::random, random);
    Word* right = random_words(words * kTileCols, Words<Kind>::random, random);
    Sums<Kind> sums;
    for (auto& row : sums.at) {
      row[0] = start<Sum>(0);
      row[1] = start<Sum>(1);
    }
    const int64_t half = words / 2;
    accumulate<Kind, RowStride, StepStride>(sums, left, right, half);
    accumulate<Kind, RowStride, StepStride>(sums, left + half * StepStride,
                                            right + half * kTileCols, words - half);
    Result<kTileRows> result;
    for (int r = 0; r < kTileRows; ++r) result.set(r, sums.at[r][0], sums.at[r][1]);
    const auto left_at = [&](int r, int64_t s) { return left[r * RowStride + s * StepStride]; };
    compare<Kind>(result, right, words, left_at, what, wrong);
    delete[] left;
    delete[] right;
  }
}

template <class Kind>
void registers(const char* what, Wrong wrong) {
  multiply<Kind, RegisterTile<Kind>>(what, wrong);
  accumulate_strided<Kind, 1, kTileRows>(what, wrong);
  accumulate_strided<Kind, 1, kTileRows + 5>(what, wrong);
  accumulate_strided<Kind, 67, 1>(what, wrong);  // row-major
  accumulate_strided<Kind, 3, 41>(what, wrong);
}

void test(Wrong wrong) {
  registers<Fp32>("Fp32", wrong);
  multiply<Fp32, Fp32Tile>("Fp32Tile", wrong);
#ifdef ROBUSTFT_HAS_BF16
  registers<Bf16>("Bf16", wrong);
  multiply<Bf16, Bf16Tile>("Bf16Tile", wrong);
#endif
#ifdef ROBUSTFT_HAS_INT8
  registers<Int8>("Int8", wrong);
  multiply<Int8, Int8Tile>("Int8Tile", wrong);
#endif
}

}  // namespace

extern const IsaTest ROBUSTFT_JOIN(tile_test_, ROBUSTFT_ISA);
const IsaTest ROBUSTFT_JOIN(tile_test_, ROBUSTFT_ISA) = test;

}  // namespace robustft
