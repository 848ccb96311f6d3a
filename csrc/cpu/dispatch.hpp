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
  const NearestKernels* nearest;
  const NearestPacking* nearest_packing;
  const RsaKernels* rsa;
  const VrfKernels* vrf;
  bool faster = true;  // than the one before it

  const MpmNceKernels& mpm_nce_of(DType dtype) const {
    return dtype == DType::bfloat16 ? *mpm_nce_bfloat16 : *mpm_nce;
  }
};

// Those that this processor runs, the most capable last.
const std::vector<Isa>& isas();

// The most capable one that is faster than those before it, or the one that the environment
// variable ROBUSTFT_CPU_ISA names (read at the first call). Throws std::invalid_argument when that
// cannot run here.
const Isa& isa();

}  // namespace robustft
