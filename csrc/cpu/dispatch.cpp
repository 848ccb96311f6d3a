#include "dispatch.hpp"

#include <cstdlib>
#include <stdexcept>

#ifdef ROBUSTFT_X86
#include <cpuid.h>
#endif

namespace robustft {

extern const DiveKernels dive_baseline;
extern const VrfKernels vrf_baseline;
#ifdef ROBUSTFT_X86
extern const DiveKernels dive_avx2, dive_avx512;
extern const VrfKernels vrf_avx2, vrf_avx512;
#endif

namespace {

#ifdef ROBUSTFT_X86
// Not every compiler's __builtin_cpu_supports knows "f16c".
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) != 0;
}
#endif

std::vector<Isa> find_isas() {
  std::vector<Isa> found = {{"baseline", &dive_baseline, &vrf_baseline}};
#ifdef ROBUSTFT_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (avx2) found.push_back({"avx2", &dive_avx2, &vrf_avx2});
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    found.push_back({"avx512", &dive_avx512, &vrf_avx512});
  }
#endif
  return found;
}

const Isa& choose() {
  const char* wanted = std::getenv("ROBUSTFT_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return isas().back();
  std::string names;
  for (const Isa& candidate : isas()) {
    if (std::string(wanted) == candidate.name) return candidate;
    names += names.empty() ? "" : ", ";
    names += candidate.name;
  }
  throw std::invalid_argument("ROBUSTFT_CPU_ISA: got '" + std::string(wanted) +
                              "', this build and processor can run: " + names);
}

}  // namespace

const std::vector<Isa>& isas() {
  static const std::vector<Isa> found = find_isas();
  return found;
}

const Isa& isa() {
  static const Isa& chosen = choose();
  return chosen;
}

}  // namespace robustft
