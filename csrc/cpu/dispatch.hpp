// Which compilation of the kernels runs here.
#pragma once

#include <string>
#include <vector>

#include "kernels.hpp"

namespace robustft {

struct Isa {
  const char* name;
  const DiveKernels* dive;
  const VrfKernels* vrf;
};

// Those that this processor runs, the most capable last.
const std::vector<Isa>& isas();

// The most capable one, or the one that the environment variable ROBUSTFT_CPU_ISA names (read at
// the first call). Throws std::invalid_argument when that cannot run here.
const Isa& isa();

}  // namespace robustft
