// Packing of feature matrices into the panels of tile.hpp: as float32, or for AMX as a sum of up to
// three bfloat16 numbers.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"
#include "tile.hpp"

namespace robustft {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

typedef float Quad __attribute__((vector_size(16)));
typedef int32_t IQuad __attribute__((vector_size(16)));

inline Quad load_quad(const float* p) {
  Quad x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline void store_quad(float* p, Quad x) { std::memcpy(p, &x, sizeof x); }

#if defined(__clang__)
#define ROBUSTFT_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define ROBUSTFT_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, IQuad{i, j, k, l})
#endif

// Four rows of `from` become four columns of `to`.
inline void transpose4(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  const Quad a = load_quad(from), b = load_quad(from + from_stride);
  const Quad c = load_quad(from + 2 * from_stride), d = load_quad(from + 3 * from_stride);
  const Quad ab0 = ROBUSTFT_SHUFFLE(a, b, 0, 4, 1, 5), ab1 = ROBUSTFT_SHUFFLE(a, b, 2, 6, 3, 7);
  const Quad cd0 = ROBUSTFT_SHUFFLE(c, d, 0, 4, 1, 5), cd1 = ROBUSTFT_SHUFFLE(c, d, 2, 6, 3, 7);
  store_quad(to, ROBUSTFT_SHUFFLE(ab0, cd0, 0, 1, 4, 5));
  store_quad(to + to_stride, ROBUSTFT_SHUFFLE(ab0, cd0, 2, 3, 6, 7));
  store_quad(to + 2 * to_stride, ROBUSTFT_SHUFFLE(ab1, cd1, 0, 1, 4, 5));
  store_quad(to + 3 * to_stride, ROBUSTFT_SHUFFLE(ab1, cd1, 2, 3, 6, 7));
}

// `count` ≤ kSlice elements as floats at `to`, zeros up to kSlice.
constexpr int64_t kSlice = 64;

template <class T>
void widen_slice(const T* from, int64_t count, float* to) {
  for (int64_t i = count; i < kSlice; ++i) to[i] = 0;
  sweep(0, count, [&](int64_t i, auto part) { store(to + i, load(from + i, part), part); });
}

// Rows [first, first + kWidth), kSlice dimensions at a time: slice(floats [kWidth][kPitch], first
// dimension, how many). Rows from `rows` on, and dimensions from `dim` on, are zeros. Returns the
// largest squared norm among the rows (NaN or Inf if a feature is).
constexpr int64_t kPitch = kSlice + 4;  // rows of one quad in different cache sets

template <int kWidth, class T, class Slice>
double walk_rows(const Matrix& x, int64_t first, int64_t rows, int64_t dim, Slice slice) {
  alignas(64) float floats[kWidth * kPitch];
  double squares[kWidth] = {};
  for (int64_t d0 = 0; d0 < dim; d0 += kSlice) {
    const int64_t width = smaller(kSlice, dim - d0);
    for (int64_t r = 0; r < kWidth; ++r) {
      const T* row = static_cast<const T*>(x.data) + (first + r) * x.stride + d0;
      float* to = floats + r * kPitch;
      widen_slice(row, first + r < rows ? width : 0, to);
      Vec s{};
      for (int64_t i = 0; i < kSlice; i += W) s += load(to + i) * load(to + i);
      double total = sum(s);
      if (!(total > 1e-30 && total < 1e38)) {  // squares that float32 does not hold
        total = 0;
        for (int64_t i = 0; i < kSlice; ++i) total += double(to[i]) * double(to[i]);
      }
      squares[r] += total;
    }
    slice(floats, d0, width);
  }
  double largest = 0;
  for (int64_t r = 0; r < kWidth; ++r) {
    const bool keep = largest >= squares[r] || largest != largest;  // a NaN stays
    largest = keep ? largest : squares[r];
  }
  return largest;
}

// kWidth rows of a slice → columns, `width` of them (up to a multiple of 4 is written).
template <int kWidth>
void transpose_slice(const float* slice, int64_t width, float* to) {
  static_assert(kWidth % 2 == 0 && kWidth >= 4, "6 rows are two quads that overlap");
  for (int64_t i = 0; i < width; i += 4) {
    for (int64_t r = 0; r < kWidth; r += 4) {
      const int64_t q = r + 4 <= kWidth ? r : kWidth - 4;
      transpose4(slice + q * kPitch + i, kPitch, to + i * kWidth + q, kWidth);
    }
  }
}

// Rows [first, first + kWidth) as a panel [dim up to a multiple of 4][kWidth].
template <int kWidth, class T>
double pack_rows(const Matrix& x, int64_t first, int64_t rows, int64_t dim, float* panel) {
  return walk_rows<kWidth, T>(x, first, rows, dim,
                              [&](const float* slice, int64_t d0, int64_t width) {
                                transpose_slice<kWidth>(slice, width, panel + d0 * kWidth);
                              });
}

#ifdef ROBUSTFT_HAS_AMX
// How many bfloat16 numbers add up to one of the type: 8 bits each.
template <class T>
constexpr int kParts = 3;
template <>
constexpr int kParts<bf16> = 1;
template <>
constexpr int kParts<fp16> = 2;

// The nearest bfloat16 of x, in the upper half of a word; x becomes what is left (exactly).
inline UVec take_part(Vec& x) {
  const UVec bits = as_bits(x);
  const UVec part = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  x -= as_float(part);
  return part;
}

// Panels of 32 rows for AMX, [part][32][words] on the left and [part][words][32] on the right. A
// word holds two dimensions, the even one in its lower half; words are padded to a multiple of 16.
inline int64_t part_words(int64_t dim) { return ceil_div(dim, 32) * 16; }

template <class T>
double pack_left_parts(const Matrix& x, int64_t first, int64_t rows, int64_t dim, uint32_t* panel) {
  const int64_t words = part_words(dim);
  return walk_rows<32, T>(x, first, rows, dim, [&](const float* slice, int64_t d0, int64_t width) {
    for (int64_t r = 0; r < 32; ++r) {
      for (int64_t i = 0; i < ceil_div(width, 32) * 32; i += W) {
        Vec rest = load(slice + r * kPitch + i);
        for (int part = 0; part < kParts<T>; ++part) {
          store_bits(panel + (part * 32 + r) * words + (d0 + i) / 2, take_part(rest) >> 16);
        }
      }
    }
  });
}

template <class T>
double pack_right_parts(const Matrix& x, int64_t first, int64_t rows, int64_t dim,
                        uint32_t* panel) {
  const int64_t words = part_words(dim);
  return walk_rows<32, T>(x, first, rows, dim, [&](const float* slice, int64_t d0, int64_t width) {
    alignas(64) float columns[kSlice * 32];
    const int64_t padded = ceil_div(width, 32) * 32;
    transpose_slice<32>(slice, padded, columns);
    for (int64_t i = 0; i < padded; i += 2) {
      for (int64_t c = 0; c < 32; c += W) {
        Vec even = load(columns + i * 32 + c), odd = load(columns + (i + 1) * 32 + c);
        for (int part = 0; part < kParts<T>; ++part) {
          const UVec word = take_part(even) >> 16 | take_part(odd);
          std::memcpy(panel + (part * words + (d0 + i) / 2) * 32 + c, &word, sizeof word);
        }
      }
    }
  });
}
#endif

// Rows [first, last) cut into panels of `height` rows along the dimensions: [panel][row][kWidth],
// zeros beyond dim. Eight panels at a time, so that few streams are written at once.
template <int kWidth, class T>
void pack_dims(const Matrix& x, int64_t first, int64_t last, int64_t dim, int64_t height,
               float* panels) {
  constexpr int64_t kStep = 8 * kWidth;
  alignas(64) float slice[kStep];
  for (int64_t d0 = 0; d0 < dim; d0 += kStep) {
    const int64_t width = smaller(kStep, dim - d0);
    for (int64_t k = width; k < kStep; ++k) slice[k] = 0;
    for (int64_t i = first; i < last; ++i) {
      const T* row = static_cast<const T*>(x.data) + i * x.stride + d0;
      sweep(0, width, [&](int64_t k, auto part) { store(slice + k, load(row + k, part), part); });
      for (int64_t k = 0; k < width; k += kWidth) {
        float* to = panels + ((d0 + k) / kWidth * height + i) * kWidth;
        std::memcpy(to, slice + k, kWidth * sizeof(float));
      }
    }
  }
}

}  // namespace
}  // namespace robustft
