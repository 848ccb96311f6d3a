// Which compilation of the kernels runs here.
#pragma once

#include <string>
#include <vector>

#include "dive.hpp"
#include "mpm_nce/mpm_nce.hpp"
#include "nearest/nearest.hpp"
#include "rsa.hpp"
#include "vrf.hpp"

namespace robustft {

// An op that an instruction set does not change has the table of the one before it.
struct Isa {
  const char* name;
  const DiveKernels* dive;
  const MpmNceKernels *mpm_nce, *mpm_nce_bfloat16;
  int64_t mpm_nce_alone;  // products of numbers up to which one thread is as fast as several
  const NearestKernels* nearest;
  const NearestPacking* nearest_packing;
  const RsaKernels* rsa;
  const VrfKernels* vrf;
  bool faster = true;  // than the one before it
  // What serves float32 batches of up to so many products of numbers better, or null.
  const MpmNceKernels* mpm_nce_small = nullptr;
  int64_t mpm_nce_few = 0;

  const MpmNceKernels& mpm_nce_of(const MpmNceInput& in) const {
    if (in.dtype == DType::bfloat16) return *mpm_nce_bfloat16;
    const bool small = mpm_nce_small != nullptr && in.dtype == DType::float32;
    return small && in.within(mpm_nce_few) ? *mpm_nce_small : *mpm_nce;
  }
  // The input with as many threads as its size is worth.
  MpmNceInput with_threads(MpmNceInput in) const {
    if (in.within(mpm_nce_alone)) in.threads = 1;
    return in;
  }
};

// Those that this processor runs, the most capable last.
const std::vector<Isa>& isas();

// The most capable one that is faster than those before it, or the one that the environment
// variable ROBUSTFT_CPU_ISA names (read at the first call). Throws std::invalid_argument when that
// cannot run here.
const Isa& isa();

}  // namespace robustft
