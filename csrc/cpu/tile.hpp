// The micro-kernel under every op that multiplies matrices: a tile of products, `rows` × `cols`,
// kept in registers over the whole inner dimension and handed to an epilogue row by row.
//
//     tile(r, c) = Σ_k left(r, k) · right(k, c)
//
// The inner dimension is cut into words of 4 bytes: one float32, two bfloat16, four int8. Panels:
//
//     right: [words][cols]     the same word of `cols` columns lies side by side, so that a step
//                              loads two vectors
//     left:  [words][rows]     a step broadcasts one word for each row (registers); or
//            [rows][words]     as AMX wants it
//
// A step of a 12 × 32 tile is 14 loads and 24 multiplications: the two load ports keep up with the
// two multipliers (AVX-512), and 24 sums hide the latency of 4 cycles × 2. With 16 registers
// (AVX2) 6 × 2 vectors is the largest tile that leaves room for a step's operands.
//
// Fp32 exists everywhere. Bf16 and Int8 exist where the processor multiplies them directly
// (ROBUSTFT_HAS_BF16, ROBUSTFT_HAS_INT8); there is no emulation, which would be no faster than
// Fp32. Int8 multiplies unsigned left words with signed right ones of at most Int8::kLargest.
// Padding is zero on the right.
#pragma once

#include "simd.hpp"

#if defined(__AVX512BF16__)
#define ROBUSTFT_HAS_BF16
#endif
#if defined(__AVX512VNNI__) || defined(__AVX2__)
#define ROBUSTFT_HAS_INT8
#endif
#if (defined(__AMX_INT8__) && defined(__AMX_BF16__)) || \
    (defined(__AMXINT8__) && defined(__AMXBF16__))
#define ROBUSTFT_HAS_AMX  // gcc's names, and older clangs'
#endif

namespace robustft {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 12;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileCols = 2 * W;

// A vector that the compiler must hold in a register: gcc would otherwise load a broadcast twice,
// or spill sums to make room for it.
template <class V>
inline void pin(V& x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#else
  static_cast<void>(x);
#endif
}

inline Vec load_words(const float* p) { return load(p); }
inline UVec load_words(const uint32_t* p) {
  UVec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline Vec splat_word(float x) { return splat(x); }
inline UVec splat_word(uint32_t x) { return UVec{} + x; }

// What is multiplied: the word as stored, its elements, the type of the sums, a step.
struct Fp32 {
  using Word = float;
  using Sum = Vec;
  static constexpr int kElements = 1;
  static Vec dot(Vec left, Vec right, Vec sum) { return fma(left, right, sum); }
};

#ifdef ROBUSTFT_HAS_BF16
struct Bf16 {
  using Word = uint32_t;
  using Sum = Vec;
  static constexpr int kElements = 2;
  static Vec dot(UVec left, UVec right, Vec sum) {
    return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                  reinterpret_cast<__m512bh>(left),
                                                  reinterpret_cast<__m512bh>(right)));
  }
};
#endif

#ifdef ROBUSTFT_HAS_INT8
struct Int8 {
  using Word = uint32_t;
  using Sum = IVec;
  static constexpr int kElements = 4;
#if defined(__AVX512VNNI__)
  static constexpr int kLargest = 127;
  static IVec dot(UVec left, UVec right, IVec sum) {
    return reinterpret_cast<IVec>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum),
                                                      reinterpret_cast<__m512i>(left),
                                                      reinterpret_cast<__m512i>(right)));
  }
#else
  // Two products are added in 16 bits, which 255 · 64 · 2 does not leave.
  static constexpr int kLargest = 64;
  static IVec dot(UVec left, UVec right, IVec sum) {
#if defined(__AVX512F__)
    const __m512i pairs =
        _mm512_maddubs_epi16(reinterpret_cast<__m512i>(left), reinterpret_cast<__m512i>(right));
    return sum + reinterpret_cast<IVec>(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#else
    const __m256i pairs =
        _mm256_maddubs_epi16(reinterpret_cast<__m256i>(left), reinterpret_cast<__m256i>(right));
    return sum + reinterpret_cast<IVec>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
  }
#endif
};
#endif

// A register tile: rows × 2 vectors of sums.
template <class Kind, int kRows = kTileRows>
struct Sums {
  typename Kind::Sum at[kRows][2];
};

// Left words are taken in groups of rows: left_lane(group, i) is row i's word in every lane.
#if defined(__aarch64__)
// fmla multiplies with one lane of a vector, so W rows share a register: 3 loads a step instead of
// 12, which gcc would issue ahead of their turn, spilling sums.
constexpr int kLeftGroup = W;
template <int RowStride>
inline Vec load_left(const float* p) {
  Vec x = RowStride == 1 ? load(p) : Vec{p[0], p[RowStride], p[2 * RowStride], p[3 * RowStride]};
  pin(x);
  return x;
}
inline Vec left_lane(Vec group, int i) { return splat(group[i]); }
#else
constexpr int kLeftGroup = 1;
template <int RowStride, class Word>
inline auto load_left(const Word* p) {
  auto x = splat_word(*p);
  pin(x);
  return x;
}
template <class V>
inline V left_lane(V group, int) {
  return group;
}
#endif

// A step's two vectors of a right panel.
template <class Word, class V>
inline void load_right(const Word* right, V& r0, V& r1) {
  r0 = load_words(right);
  r1 = load_words(right + W);
  // A right panel comes from the second-level cache, and the first loads of a step would wait:
  // twelve steps ahead, one line at a time, is a fifth faster at 512 words.
  __builtin_prefetch(right + 12 * kTileCols);
  if (kTileCols * sizeof(*right) > 64) __builtin_prefetch(right + 12 * kTileCols + W);
  pin(r0);
  pin(r1);
}

// sums += left · right over `words` words. The word of row r at step s is
// left[r * RowStride + s * StepStride]; a packed left panel has <1, kTileRows>.
template <class Kind, int RowStride = 1, int StepStride = kTileRows, int kRows = kTileRows>
inline void accumulate(Sums<Kind, kRows>& sums, const typename Kind::Word* left,
                       const typename Kind::Word* right, int64_t words) {
  Sums<Kind, kRows> local = sums;
#pragma GCC unroll 1
  for (int64_t s = 0; s < words; ++s) {
    decltype(load_words(right)) r0, r1;
    load_right(right, r0, r1);
#pragma GCC unroll 16
    for (int first = 0; first < kRows; first += kLeftGroup) {
      const auto group = load_left<RowStride>(left + first * RowStride);
#pragma GCC unroll 16
      for (int i = 0; i < kLeftGroup; ++i) {
        const auto x = left_lane(group, i);
        local.at[first + i][0] = Kind::dot(x, r0, local.at[first + i][0]);
        local.at[first + i][1] = Kind::dot(x, r1, local.at[first + i][1]);
      }
    }
    left += StepStride;
    right += kTileCols;
  }
  sums = local;
}

// The same, and the left words where their rows lie in memory, `stride` apart.
template <class Kind, int kRows = kTileRows>
inline void accumulate_rows(Sums<Kind, kRows>& sums, const typename Kind::Word* left,
                            int64_t stride, const typename Kind::Word* right, int64_t words) {
  static_assert(kRows % 2 == 0, "");
  const typename Kind::Word* pair[kRows / 2];  // fewer than rows: registers for addresses are few
#pragma GCC unroll 8
  for (int i = 0; i < kRows / 2; ++i) pair[i] = left + 2 * i * stride;
  Sums<Kind, kRows> local = sums;
#pragma GCC unroll 1
  for (int64_t s = 0; s < words; ++s) {
    decltype(load_words(right)) r0, r1;
    load_right(right, r0, r1);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      auto x = splat_word(pair[r / 2][r % 2 * stride]);
      pin(x);
      local.at[r][0] = Kind::dot(x, r0, local.at[r][0]);
      local.at[r][1] = Kind::dot(x, r1, local.at[r][1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows / 2; ++i) ++pair[i];
    right += kTileCols;
  }
  sums = local;
}

// The kernel that serves a kind here: how many rows a tile has, to what multiple of words panels
// are padded, how left panels lie, and the whole product.
template <class Kind>
struct RegisterTile {
  using Word = typename Kind::Word;
  using Sum = typename Kind::Sum;
  static constexpr int kElements = Kind::kElements;
  static constexpr int kRows = kTileRows;
  static constexpr int kWords = 1;

  // Alive while a thread multiplies.
  struct Scope {
    Scope() {}
  };

  // Where the word of row r at step s lies in a left panel.
  static int64_t left_index(int64_t r, int64_t s, int64_t) { return s * kRows + r; }

  // Call row(r, sum of columns [0, W), sum of columns [W, 2W)) for every r; sums start at `start`.
  template <class Row>
  static void multiply(const Word* left, const Word* right, int64_t words, Sum start0, Sum start1,
                       Row row) {
    Sums<Kind> sums;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      sums.at[r][0] = start0;
      sums.at[r][1] = start1;
    }
    accumulate<Kind>(sums, left, right, words);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) row(r, sums.at[r][0], sums.at[r][1]);
  }
};

#ifdef ROBUSTFT_HAS_AMX
// AMX multiplies tiles of 16 rows × 64 bytes: 2 × 2 of them make 32 rows × 32 columns, so that each
// tile loaded is used twice. Left panels are row-major; right panels are those of the registers.
template <class Kind>
struct AmxTile {
  using Word = typename Kind::Word;
  using Sum = typename Kind::Sum;
  static constexpr int kElements = Kind::kElements;
  static constexpr int kRows = 32;
  static constexpr int kWords = 16;

  // Tile registers are configured for a thread, and given back: idle ones slow context switches.
  struct Scope {
    Scope() {
      alignas(64) uint8_t config[64] = {1};  // palette 1
      for (int i = 0; i < 8; ++i) {
        config[16 + 2 * i] = 64;  // bytes a row
        config[48 + i] = 16;      // rows
      }
      flush_to_memory();
      _tile_loadconfig(config);
    }
    ~Scope() { _tile_release(); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
  };

  static int64_t left_index(int64_t r, int64_t s, int64_t words) { return r * words + s; }

  template <class Row>
  static void multiply(const Word* left, const Word* right, int64_t words, Sum start0, Sum start1,
                       Row row) {
    alignas(64) Sum sums[kRows][2];
    const int64_t stride = words * 4;
    const Word* lower = left + 16 * words;
    flush_to_memory();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = 0; s < words; s += 16) {
      _tile_loadd(4, left + s, stride);
      _tile_loadd(5, lower + s, stride);
      _tile_loadd(6, right + s * kTileCols, 4 * kTileCols);
      _tile_loadd(7, right + s * kTileCols + W, 4 * kTileCols);
      step(Kind{});
    }
    _tile_stored(0, &sums[0][0], sizeof sums[0]);
    _tile_stored(1, &sums[0][1], sizeof sums[0]);
    _tile_stored(2, &sums[16][0], sizeof sums[0]);
    _tile_stored(3, &sums[16][1], sizeof sums[0]);
    for (int r = 0; r < kRows; ++r) row(r, sums[r][0] + start0, sums[r][1] + start1);
  }

 private:
  // gcc's tile loads do not say what they read: all must be in memory before them.
  static void flush_to_memory() { asm volatile("" ::: "memory"); }

  static void step(Bf16) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  static void step(Int8) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
};
using Bf16Tile = AmxTile<Bf16>;
using Int8Tile = AmxTile<Int8>;
#else
#ifdef ROBUSTFT_HAS_BF16
using Bf16Tile = RegisterTile<Bf16>;
#endif
#ifdef ROBUSTFT_HAS_INT8
using Int8Tile = RegisterTile<Int8>;
#endif
#endif
using Fp32Tile = RegisterTile<Fp32>;

}  // namespace
}  // namespace robustft
