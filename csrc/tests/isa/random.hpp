// Random numbers of code compiled for one instruction set.
#pragma once

#include <cstdint>

namespace robustft {
namespace {

// Knuth's 64-bit linear congruential generator; the upper bits are the good ones.
class Lcg {
 public:
  explicit Lcg(uint64_t seed) : state_(seed) {}
  uint32_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }
  float uniform() { return static_cast<float>(static_cast<int32_t>(bits())) * 0x1p-31f; }  // ±1

 private:
  uint64_t state_;
};

}  // namespace
}  // namespace robustft
