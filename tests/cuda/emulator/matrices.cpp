// A warp's matrices: ldmatrix, products by mma, and 16-bit numbers.
#include "cluster.hpp"
#include "tensor_core.hpp"

namespace emulator {
namespace {

// float32 of every float16.
struct Table {
  float of[1 << 16];
  Table() {
    for (int i = 0; i < 1 << 16; ++i) {
      const int exponent = i >> 10 & 31, fraction = i & 1023;
      const float size = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                         : exponent == 0 ? std::ldexp(float(fraction), -24)
                                         : std::ldexp(float(1024 + fraction), exponent - 25);
      of[i] = i >> 15 != 0 ? -size : size;
    }
  }
};
const Table floats;

struct Rows {
  const u16* row;
  u32* r;
};

template <bool transposed>
void give_matrices(void** all, u32 mask) {
  if (mask != 0xffffffffu) fail("ldmatrix: lanes %08x, expected a whole warp", mask);
  u16 rows[32][8];
  for (int i = 0; i < 32; ++i) std::memcpy(rows[i], static_cast<Rows*>(all[i])->row, 16);
  for (int i = 0; i < 32; ++i) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto& m = reinterpret_cast<const u16(&)[8][8]>(rows[8 * matrix]);
      const int a = i / 4, b = 2 * (i % 4);
      const u32 low = transposed ? m[b][a] : m[a][b];
      const u32 high = transposed ? m[b + 1][a] : m[a][b + 1];
      static_cast<Rows*>(all[i])->r[matrix] = low | high << 16;
    }
  }
}

struct Product {
  float* d;
  const u32 *a, *b;
};

void give_products(void** all, u32 mask) {
  if (mask != 0xffffffffu) fail("mma: lanes %08x, expected a whole warp", mask);
  float a[16][16], b[16][8], d[16][8];
  for (int i = 0; i < 32; ++i) {
    const auto& p = *static_cast<Product*>(all[i]);
    const int g = i / 4, t = 2 * (i % 4);
    for (int half = 0; half < 2; ++half) {
      for (int j = 0; j < 2; ++j) {
        a[g][8 * j + t + half] = floats.of[p.a[2 * j] >> (16 * half) & 0xffff];
        a[g + 8][8 * j + t + half] = floats.of[p.a[2 * j + 1] >> (16 * half) & 0xffff];
        b[8 * j + t + half][g] = floats.of[p.b[j] >> (16 * half) & 0xffff];
      }
      d[g][t + half] = p.d[half];
      d[g + 8][t + half] = p.d[2 + half];
    }
  }
  for (int i = 0; i < 16; ++i) accumulate<kAmpereWidth, kAmpereBits>(d[i], a[i], b, 8);
  for (int i = 0; i < 32; ++i) {
    const auto& p = *static_cast<Product*>(all[i]);
    const int g = i / 4, t = 2 * (i % 4);
    for (int half = 0; half < 2; ++half) {
      p.d[half] = d[g][t + half];
      p.d[2 + half] = d[g + 8][t + half];
    }
  }
}

}  // namespace

void load_matrices(u32 (&r)[4], const void* row, bool transposed, const Site& site) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) {
    fail("%s at %s:%d: row at %p, expected one aligned to 16 bytes", site.what, site.file,
         site.line, row);
  }
  Rows mine{static_cast<const u16*>(row), r};
  collective(0xffffffffu, site, &mine, transposed ? give_matrices<true> : give_matrices<false>);
}

void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const Site& site) {
  Product mine{d, a, b};
  collective(0xffffffffu, site, &mine, give_products);
}

float half_to_float(u16 bits) { return floats.of[bits]; }

u16 float_to_half(float x) {
  const u32 bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return 0x7fff;               // NaN, as cvt gives it
  if (size >= 0x477ff000) return u16(sign | 0x7c00);  // from 65520 on
  if (size < 0x38800000) {                            // subnormal: a multiple of 2^-24
    return u16(sign | u32(std::nearbyint(std::ldexp(double(__uint_as_float(size)), 24))));
  }
  const u32 rounded = size + 0xfff + (size >> 13 & 1);
  return u16(sign | (rounded - 0x38000000) >> 13);
}

u16 float_to_bfloat16(float x) {
  const u32 bits = __float_as_uint(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace emulator
