// Matrices of the three storage types, and their values as doubles.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "../cpu/dispatch.hpp"
#include "check.hpp"

namespace robustft {

inline size_t size_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

// Half an ulp of the storage type, or what float32 sums need.
inline double rounding(DType dtype) {
  return dtype == DType::float32 ? 2e-6 : dtype == DType::bfloat16 ? 4e-3 : 5e-4;
}

inline double read(const void* p, DType dtype) {
  if (dtype == DType::float32) {
    float x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
  if (dtype == DType::bfloat16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &wide, sizeof x);
    return x;
  }
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 31) return std::nan("");
  const double size =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (bits >> 15) != 0 ? -size : size;
}

// [rows, cols] with `gap` elements between rows and none after the last, so that the address
// sanitizer sees an element too far. All bits are set at first: NaN.
class Stored {
 public:
  Stored(int64_t rows, int64_t cols, DType dtype, int64_t gap = 0)
      : rows_(rows),
        cols_(cols),
        dtype_(dtype),
        stride_(cols + gap),
        bytes_(static_cast<size_t>((rows - 1) * stride_ + cols) * size_of(dtype), 0xff) {}

  // Cut to the storage type: a rounding that the values read back contain.
  Stored& set(int64_t i, int64_t j, double value) {
    const float x = static_cast<float>(value);
    unsigned char* p = &bytes_[static_cast<size_t>(i * stride_ + j) * size_of(dtype_)];
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (dtype_ == DType::float32) {
      std::memcpy(p, &bits, 4);
      return *this;
    }
    uint16_t half = static_cast<uint16_t>(bits >> 16);
    if (dtype_ == DType::float16) {
      int exponent = 0;  // as frexp may leave it for NaN and Inf
      const double mantissa = std::frexp(std::fabs(value), &exponent);  // in [½, 1)
      half = exponent < -13 ? 0
                            : static_cast<uint16_t>((exponent + 14) << 10 |
                                                    (static_cast<int>(mantissa * 2048) & 1023));
      if (value < 0) half = static_cast<uint16_t>(half | 0x8000);
    }
    std::memcpy(p, &half, 2);
    return *this;
  }

  double at(int64_t i, int64_t j) const {
    return read(&bytes_[static_cast<size_t>(i * stride_ + j) * size_of(dtype_)], dtype_);
  }
  std::vector<double> values() const {
    std::vector<double> all;
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t j = 0; j < cols_; ++j) all.push_back(at(i, j));
    }
    return all;
  }

  Matrix matrix() const { return {bytes_.data(), stride_}; }
  void* data() { return bytes_.data(); }
  bool operator==(const Stored& other) const { return bytes_ == other.bytes_; }

 private:
  int64_t rows_, cols_;
  DType dtype_;
  int64_t stride_;
  std::vector<unsigned char> bytes_;
};

inline Stored normal(int64_t rows, int64_t cols, DType dtype, int64_t gap, double scale,
                     Random& random) {
  Stored x(rows, cols, dtype, gap);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) x.set(i, j, scale * random.normal());
  }
  return x;
}

// Call body(isa, dtype, what) for every instruction set of this processor and storage type.
template <class Body>
void for_every_kernel(Body body) {
  const char* const names[] = {"float32", "bfloat16", "float16"};
  for (const Isa& isa : isas()) {
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
      body(isa, dtype, std::string(isa.name) + " " + names[static_cast<int>(dtype)]);
    }
  }
}

}  // namespace robustft
