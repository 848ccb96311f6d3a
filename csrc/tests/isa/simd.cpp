// simd.hpp and exp.hpp: every 16-bit pattern read, every rounding decided, parts of vectors,
// exponentials and logarithms against libm in double.
#include "../../cpu/simd.hpp"

#include <math.h>

#include "../../cpu/exp.hpp"
#include "../../cpu/kernels.hpp"
#include "isa_tests.hpp"
#include "random.hpp"

namespace robustft {
namespace {

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

double value(fp16 x) {
  const int sign = x.bits >> 15, exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  const double size =
      exponent == 0 ? ::ldexp(mantissa, -24) : ::ldexp(1024 + mantissa, exponent - 25);
  return sign != 0 ? -size : size;  // 2^16 where the pattern is Inf's
}
double value(bf16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }

uint16_t infinity(fp16) { return 0x7c00; }
uint16_t infinity(bf16) { return 0x7f80; }

// The float halfway between two neighbours, the upper of which may be Inf.
float halfway(fp16 low, fp16 high) { return static_cast<float>((value(low) + value(high)) / 2); }
float halfway(bf16 low, bf16) { return float_of(static_cast<uint32_t>(low.bits) << 16 | 0x8000u); }

template <class T>
float read(uint16_t bits) {
  T lanes[W];
  for (T& x : lanes) x.bits = bits;
  return load(lanes)[W - 1];
}

template <class T>
uint16_t written(float x) {
  T lanes[W];
  store(lanes, splat(x));
  return lanes[W - 1].bits;
}

template <class T>
void half_precision(const char* what, Wrong wrong) {
  for (uint32_t sign = 0; sign < 0x10000; sign += 0x8000) {
    for (uint32_t size = 0; size < 0x8000; ++size) {
      const uint16_t bits = static_cast<uint16_t>(sign | size);
      const float x = read<T>(bits);
      const uint16_t inf = infinity(T{});
      if (size > inf) {
        if (x == x || (written<T>(x) & 0x7fff) <= inf) wrong(what, bits, x, __builtin_nan(""));
        continue;
      }
      const double expected = size < inf ? value(T{bits}) : (sign != 0 ? -1 : 1) * HUGE_VAL;
      if (x != expected || (bits_of(x) >> 31) != sign >> 15) wrong(what, bits, x, expected);
      if (written<T>(x) != bits) wrong(what, bits, written<T>(x), bits);
      if (size == inf) continue;
      // A tie goes to the even one of the neighbours, anything else to the nearer one.
      const uint16_t next = static_cast<uint16_t>(bits + 1);
      const float middle = halfway(T{bits}, T{next});
      const uint32_t at = bits_of(middle);
      if (written<T>(middle) != (size % 2 == 0 ? bits : next)) wrong(what, bits, middle, bits);
      if (written<T>(float_of(at - 1)) != bits) wrong(what, bits, float_of(at - 1), bits);
      if (written<T>(float_of(at + 1)) != next) wrong(what, bits, float_of(at + 1), next);
    }
  }
}

// Parts read and write their own lanes alone; buffers end where they do.
template <class T>
void parts(const char* what, Wrong wrong) {
  for (int lanes = 1; lanes < W; ++lanes) {
    T* in = new T[static_cast<size_t>(lanes)];
    T* out = new T[static_cast<size_t>(lanes)];
    for (int i = 0; i < lanes; ++i) store(in + i, splat(static_cast<float>(i + 1)), Part{1});
    const Vec x = load(in, Part{lanes});
    const Vec filled = fill_rest(x, -7.0f, Part{lanes});
    store(out, x, Part{lanes});
    for (int i = 0; i < W; ++i) {
      if (x[i] != (i < lanes ? i + 1 : 0)) wrong(what, i, x[i], i + 1);
      if (filled[i] != (i < lanes ? i + 1 : -7)) wrong(what, i, filled[i], i + 1);
      if (i < lanes && scalar(out + i) != i + 1) wrong(what, i, scalar(out + i), i + 1);
    }
    if (sum(x) != lanes * (lanes + 1) / 2) wrong(what, lanes, sum(x), lanes);
    delete[] in;
    delete[] out;
  }
}

void functions(Wrong wrong) {
  Lcg random(3);
  for (int i = 0; i < 20000; ++i) {
    const float x = 100.0f * random.uniform() - 12.0f;  // -112 to 88
    const double e = ::exp(static_cast<double>(x)), mine = exp(splat(x))[i % W];
    // 2 ulp, of a normal or of a subnormal number
    if (!(::fabs(mine - e) <= 0x1p-22 * e + 0x1p-148)) wrong("exp", i, mine, e);
    const float y = ::fabsf(random.uniform());
    const double l = ::log1p(static_cast<double>(y)), near = log1p(splat(y))[i % W];
    if (!(::fabs(near - l) <= 0x1p-21 * l)) wrong("log1p", i, near, l);
  }
  const float inf = __builtin_inff(), nan = __builtin_nanf("");
  if (exp(splat(-inf))[0] != 0 || exp(splat(0))[0] != 1) wrong("exp", 0, exp(splat(-inf))[0], 0);
  if (exp(splat(nan))[0] == exp(splat(nan))[0]) wrong("exp", 0, exp(splat(nan))[0], nan);
  if (log1p(splat(0))[0] != 0) wrong("log1p", 0, log1p(splat(0))[0], 0);
  if (bits_of(splat(-0.0f)[0]) != 0x80000000u) wrong("splat", 0, splat(-0.0f)[0], -0.0);
  if (bits_of(abs(splat(-0.0f))[0]) != 0) wrong("abs", 0, abs(splat(-0.0f))[0], 0);
}

void test(Wrong wrong) {
  half_precision<fp16>("fp16", wrong);
  half_precision<bf16>("bf16", wrong);
  parts<float>("part of float32", wrong);
  parts<fp16>("part of fp16", wrong);
  parts<bf16>("part of bf16", wrong);
  functions(wrong);
}

}  // namespace

extern const IsaTest ROBUSTFT_JOIN(simd_test_, ROBUSTFT_ISA);
const IsaTest ROBUSTFT_JOIN(simd_test_, ROBUSTFT_ISA) = test;

}  // namespace robustft
