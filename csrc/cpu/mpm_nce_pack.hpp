// Packing of feature matrices into the panels of tile.hpp, as float32.
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

// Rows [first, first + kWidth) as a panel [dim][kWidth]; rows from `rows` on are zeros. Returns the
// largest squared norm among them (NaN or Inf if a feature is).
template <int kWidth, class T>
double pack_rows(const Matrix& x, int64_t first, int64_t rows, int64_t dim, float* panel) {
  static_assert(kWidth % 2 == 0 && kWidth <= 32, "");
  // 6 rows (AVX2) are two quads that overlap in the middle.
  alignas(64) float slice[kWidth][kSlice + 4];  // + 4: rows of one quad in different cache sets
  double squares[kWidth] = {};
  const int64_t count = smaller(kWidth, rows - first);
  for (int64_t d0 = 0; d0 < dim; d0 += kSlice) {
    const int64_t width = smaller(kSlice, dim - d0);
    for (int64_t r = 0; r < kWidth; ++r) {
      const T* row = static_cast<const T*>(x.data) + (first + r) * x.stride + d0;
      widen_slice(row, r < count ? width : 0, slice[r]);
      Vec s{};
      for (int64_t i = 0; i < kSlice; i += W) s += load(slice[r] + i) * load(slice[r] + i);
      double total = sum(s);
      if (!(total > 1e-30 && total < 1e38)) {  // squares that float32 does not hold
        total = 0;
        for (int64_t i = 0; i < kSlice; ++i) total += double(slice[r][i]) * slice[r][i];
      }
      squares[r] += total;
    }
    float* to = panel + d0 * kWidth;
    for (int64_t i = 0; i < width; i += 4) {
      if (i + 4 <= width) {
        for (int64_t r = 0; r < kWidth; r += 4) {
          const int64_t q = r + 4 <= kWidth ? r : kWidth - 4;
          transpose4(&slice[q][i], kSlice + 4, to + i * kWidth + q, kWidth);
        }
      } else {
        for (int64_t k = i; k < width; ++k) {
          for (int64_t r = 0; r < kWidth; ++r) to[k * kWidth + r] = slice[r][k];
        }
      }
    }
  }
  double largest = 0;
  for (int64_t r = 0; r < kWidth; ++r) {
    const bool keep = largest >= squares[r] || largest != largest;  // a NaN stays
    largest = keep ? largest : squares[r];
  }
  return largest;
}

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
