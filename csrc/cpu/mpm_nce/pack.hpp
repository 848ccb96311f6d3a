// What packing of feature matrices into panels shares: rows widened to float32 a slice at a time,
// their norms, transposition.
#pragma once

#include "../kernels.hpp"
#include "../simd.hpp"
#include "../tile.hpp"

namespace robustft {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
struct Range {
  int64_t begin, end;
};
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Call body(a number of the inputs' type). The build for AVX512-BF16 is for bfloat16 alone: what it
// does to others, the one for AVX-512 does faster (dispatch.hpp).
template <class Body>
void with_type(DType dtype, Body body) {
#if defined(ROBUSTFT_HAS_BF16) && !defined(ROBUSTFT_HAS_AMX)
  static_cast<void>(dtype);
  body(bf16{});
#else
  ROBUSTFT_DISPATCH(dtype, T, { body(T{}); })
#endif
}

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
// dimension, how many). Rows from `rows` on, and dimensions from `dim` on, are zeros.
constexpr int64_t kPitch = kSlice + 4;  // rows of one quad in different cache sets

template <int kWidth, class T, class Slice>
void walk_rows(const Matrix& x, int64_t first, int64_t rows, int64_t dim, Slice slice) {
  alignas(64) float floats[kWidth * kPitch];
  for (int64_t d0 = 0; d0 < dim; d0 += kSlice) {
    const int64_t width = smaller(kSlice, dim - d0);
    for (int64_t r = 0; r < kWidth; ++r) {
      const T* row = static_cast<const T*>(x.data) + (first + r) * x.stride + d0;
      widen_slice(row, first + r < rows ? width : 0, floats + r * kPitch);
    }
    slice(floats, d0, width);
  }
}

// The larger one; a NaN stays.
inline double larger(double top, double x) { return top >= x || top != top ? top : x; }

// The largest squared norm of some rows, NaN or Inf if an element is. Four rows at a time: a sum
// waits for the one before it.
template <class T>
double largest_square(const Matrix& x, Range some, int64_t dim) {
  double top = 0;
  for (int64_t i = some.begin; i < some.end; i += 4) {
    const T* row[4];
    Vec sums[4] = {};
    for (int r = 0; r < 4; ++r) {
      row[r] = static_cast<const T*>(x.data) + smaller(i + r, some.end - 1) * x.stride;
    }
    sweep(0, dim, [&](int64_t d, auto part) {
      for (int r = 0; r < 4; ++r) {
        const Vec v = load(row[r] + d, part);
        sums[r] = fma(v, v, sums[r]);
      }
    });
    for (int r = 0; r < 4; ++r) {
      double square = sum(sums[r]);
      if (!(square > 1e-30 && square < 1e38)) {  // squares that float32 does not hold
        square = 0;
        for (int64_t d = 0; d < dim; ++d) {
          const double v = static_cast<double>(scalar(row[r] + d));
          square += v * v;
        }
      }
      top = larger(top, square);
    }
  }
  return top;
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

}  // namespace
}  // namespace robustft
