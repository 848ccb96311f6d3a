// Numbers as sums of bfloat16 ones: a float32 number is three of 8 bits each, x = x1 + x2 + x3,
// exactly; float16 is two (exact), bfloat16 one. (Parts below 2^-126 count as 0: float32 features
// whose largest entries are below 1e-30 lose digits.)
#pragma once

#include "pack.hpp"

namespace robustft {
namespace {

constexpr int64_t kPart = 512;  // words of one part of a block (blocks.hpp)

inline int parts_of(DType dtype) {
  return dtype == DType::float32 ? 3 : dtype == DType::float16 ? 2 : 1;
}
template <class T>
constexpr int kParts = 3;
template <>
constexpr int kParts<fp16> = 2;
template <>
constexpr int kParts<bf16> = 1;

// Call body(integral constant) with the number of parts.
template <int kCount>
struct Count {
  static constexpr int value = kCount;
};
template <class Body>
void with_parts(DType dtype, Body body) {
  with_type(dtype, [&](auto type) { body(Count<kParts<decltype(type)>>{}); });
}

// The nearest bfloat16 of x, in the upper half of a word; x becomes what is left, exactly.
inline UVec take_part(Vec& x) {
  const UVec bits = as_bits(x);
  const UVec part = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  x -= as_float(part);
  return part;
}

}  // namespace
}  // namespace robustft
