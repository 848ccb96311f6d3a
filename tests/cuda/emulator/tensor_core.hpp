// How a tensor core adds, as it was measured on cards: Fasi, Higham, Mikaitis and Pranesh,
// "Numerical behavior of NVIDIA tensor cores", 2021; later work for Hopper. WIDTH products and the
// running sum are aligned to the largest of them and cut, towards zero, EXTRA bits below a
// float32's last one; their sum is cut to 24 bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulator {

constexpr int kAmpereWidth = 8, kAmpereBits = 1, kHopperWidth = 16, kHopperBits = 2;

// d[j] += Σ_k a[k]·b[k][j] for k = 0 … 15 and `columns` columns, in steps of WIDTH products. What
// is not finite is added as float32 adds it. Loops over columns are for the compiler to vectorise.
template <int WIDTH, int EXTRA, int N>
void accumulate(float* d, const float* a, const float (*b)[N], int columns) {
  float largest[N], plain[N], per[N];
  std::uint32_t sum[N];  // 17 terms of 24 + EXTRA bits
  for (int first = 0; first < 16; first += WIDTH) {
    for (int j = 0; j < columns; ++j) {
      plain[j] = d[j];
      largest[j] = std::fabs(d[j]);
    }
    for (int k = first; k < first + WIDTH; ++k) {
      for (int j = 0; j < columns; ++j) {
        const float product = a[k] * b[k][j], size = std::fabs(product);  // exact: 22 bits
        plain[j] += product;
        largest[j] = largest[j] < size ? size : largest[j];
      }
    }
    for (int j = 0; j < columns; ++j) {
      // The power of two of the largest; 2^-90 at least, far below any product of halves.
      std::uint32_t bits;
      std::memcpy(&bits, &largest[j], 4);
      bits = bits & 0x7f800000;
      bits = bits < 37u << 23 ? 37u << 23 : bits;
      bits = ((254 + 23 + EXTRA) << 23) - bits;  // 2^(23 + EXTRA) over it
      std::memcpy(&per[j], &bits, 4);
      sum[j] = std::uint32_t(std::int32_t(d[j] * per[j]));  // towards zero
    }
    for (int k = first; k < first + WIDTH; ++k)
      for (int j = 0; j < columns; ++j)
        sum[j] += std::uint32_t(std::int32_t(a[k] * b[k][j] * per[j]));
    for (int j = 0; j < columns; ++j) {
      double whole = std::int32_t(sum[j]);
      std::uint64_t wide;
      std::memcpy(&wide, &whole, 8);
      wide &= ~((std::uint64_t(1) << 29) - 1);  // 24 bits are left
      std::memcpy(&whole, &wide, 8);
      d[j] = std::isfinite(plain[j]) ? float(whole / per[j]) : plain[j];
    }
  }
}

}  // namespace emulator
