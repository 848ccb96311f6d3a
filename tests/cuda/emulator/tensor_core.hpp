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
// is not finite is added as float32 adds it.
template <int WIDTH, int EXTRA, int N>
void accumulate(float* d, const float* a, const float (*b)[N], int columns) {
  for (int first = 0; first < 16; first += WIDTH) {
    for (int j = 0; j < columns; ++j) {
      float largest = std::fabs(d[j]), plain = d[j];
      for (int k = first; k < first + WIDTH; ++k) {
        const float product = a[k] * b[k][j];  // exact: 22 bits
        largest = std::fmax(largest, std::fabs(product));
        plain += product;
      }
      if (!std::isfinite(plain) || largest == 0) {
        d[j] = plain;
        continue;
      }
      std::uint32_t bits;
      std::memcpy(&bits, &largest, 4);
      bits &= 0x7f800000;
      float scale;
      std::memcpy(&scale, &bits, 4);  // the power of two of the largest
      const double unit = double(scale) / double(std::int64_t(1) << (23 + EXTRA));
      const double per = 1 / unit;
      std::int64_t sum = std::int64_t(double(d[j]) * per);  // towards zero
      for (int k = first; k < first + WIDTH; ++k)
        sum += std::int64_t(double(a[k]) * double(b[k][j]) * per);
      double whole = double(sum);
      std::uint64_t wide;
      std::memcpy(&wide, &whole, 8);
      wide &= ~((std::uint64_t(1) << 29) - 1);  // 24 bits are left
      std::memcpy(&whole, &wide, 8);
      d[j] = float(whole * unit);
    }
  }
}

}  // namespace emulator
