#include "order.hpp"

#include <algorithm>

namespace emulator {
namespace {

u64 order = 0, random_state;

u32 random_number() {
  random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
  return u32(random_state >> 33);
}

bool is_prime(u64 x) {
  for (u64 d = 2; d * d <= x; ++d) {
    if (x % d == 0) return false;
  }
  return true;
}

}  // namespace

void choose_order(u64 seed) { order = seed; }

void begin_order() { random_state = order; }

Order::Order(u64 n) : n_(n) {
  if (order < 2) return;
  prime_ = std::max<u64>(n, 2);
  while (!is_prime(prime_)) ++prime_;
  step_ = 1 + random_number() % (prime_ - 1);
  shift_ = random_number() % prime_;
}

u64 Order::next() {
  if (order < 2) {
    const u64 i = at_++;
    return order == 0 ? i : n_ - 1 - i;
  }
  for (;;) {
    const u64 i = (at_++ * step_ + shift_) % prime_;
    if (i < n_) return i;
  }
}

int pick(u32 bits) {
  if (order == 0) return __builtin_ctz(bits);
  if (order == 1) return 31 - __builtin_clz(bits);
  const int turn = random_number() & 31;
  const u32 turned = turn == 0 ? bits : bits >> turn | bits << (32 - turn);
  return (__builtin_ctz(turned) + turn) & 31;
}

}  // namespace emulator
