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
  const MpmNceKernels* mpm_nce;
  const NearestKernels* nearest;
  const NearestPacking* nearest_packing;
  const RsaKernels* rsa;
  const VrfKernels* vrf;
};

// Those that this processor runs, the most capable last.
const std::vector<Isa>& isas();

// The most capable one, or the one that the environment variable ROBUSTFT_CPU_ISA names (read at
// the first call). Throws std::invalid_argument when that cannot run here.
const Isa& isa();

}  // namespace robustft
