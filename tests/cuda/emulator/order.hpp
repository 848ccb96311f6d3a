// The order in which threads and blocks have their turns.
#pragma once

#include "emulator.hpp"

namespace emulator {

// 0: in order; 1: reversed; else a seed to shuffle them with, from the next launch on.
void choose_order(u64 seed);
// A launch begins: the same seed gives the same turns.
void begin_order();

// The i-th of n things; a shuffled order is an affine map of a prime's residues.
class Order {
 public:
  explicit Order(u64 n);
  u64 next();  // called n times

 private:
  u64 n_, step_ = 1, shift_ = 0, prime_ = 0, at_ = 0;
};

// One of these bits.
int pick(u32 bits);

}  // namespace emulator
