#include "dispatch.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#ifdef ROBUSTFT_X86
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace robustft {

#define ROBUSTFT_DECLARE(isa)                        \
  extern const DiveKernels dive_##isa;               \
  extern const MpmNceKernels mpm_nce_##isa;          \
  extern const NearestKernels nearest_##isa;         \
  extern const NearestPacking nearest_packing_##isa; \
  extern const RsaKernels rsa_##isa;                 \
  extern const VrfKernels vrf_##isa;
// A second thread that sleeps takes as long to wake up, twice a call, as it would save in a tenth
// of a millisecond. At 16 lanes that is 2^23 products (128 × 128 × 512), measured on AMD's
// processors.
#define ROBUSTFT_ISA_TABLES(isa, lanes) \
  {#isa,                                \
   &dive_##isa,                         \
   &mpm_nce_##isa,                      \
   &mpm_nce_##isa,                      \
   int64_t{lanes} << 19,                \
   &nearest_##isa,                      \
   &nearest_packing_##isa,              \
   &rsa_##isa,                          \
   &vrf_##isa}

ROBUSTFT_DECLARE(baseline)
#ifdef ROBUSTFT_X86
ROBUSTFT_DECLARE(avx2)
ROBUSTFT_DECLARE(avx512)
extern const MpmNceKernels mpm_nce_avx512bf16, mpm_nce_amx;
extern const NearestKernels nearest_avx512vnni, nearest_amx;
extern const NearestPacking nearest_packing_avx512vnni, nearest_packing_amx;
#endif

namespace {

#ifdef ROBUSTFT_X86
// Bits of cpuid's answers; __builtin_cpu_supports does not know all of them in every compiler, and
// on Windows it does not link.
struct Cpuid {
  unsigned a = 0, b = 0, c = 0, d = 0;
  Cpuid(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};
bool bit(unsigned x, int i) { return (x >> i & 1u) != 0; }

// The registers that the system saves, as xgetbv tells; 0 where it may not be asked.
unsigned saved_registers() {
  unsigned low = 0, high = 0;
  if (bit(Cpuid(1, 0).c, 27)) __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// AMD's processors start as many vdpbf16ps a cycle as float32 products, and so multiply twice as
// many numbers; Intel's are taken to start half as many. By vendor: what a probe found could change
// from process to process, and the bits of a result with it.
bool multiplies_bfloat16_faster() {
  const Cpuid vendor(0, 0);
  return vendor.b == signature_AMD_ebx && vendor.c == signature_AMD_ecx &&
         vendor.d == signature_AMD_edx;
}

// AMX registers are large, and Linux gives them to a process that asks.
bool may_use_amx() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

std::vector<Isa> find_isas() {
  std::vector<Isa> found = {ROBUSTFT_ISA_TABLES(baseline, 4)};
#ifdef ROBUSTFT_X86
  constexpr unsigned kYmm = 0x6, kZmm = 0xe6;  // of xgetbv: these and all that they hold
  const unsigned saved = saved_registers();
  const Cpuid one(1, 0), seven(7, 0), seven_one(7, 1);
  const bool f16c = bit(one.c, 29), fma = bit(one.c, 12), avx2 = bit(seven.b, 5);
  if ((saved & kYmm) != kYmm || !avx2 || !fma || !f16c) return found;
  found.push_back(ROBUSTFT_ISA_TABLES(avx2, 8));
  const bool f = bit(seven.b, 16), dq = bit(seven.b, 17);
  const bool bw = bit(seven.b, 30), vl = bit(seven.b, 31);
  if ((saved & kZmm) != kZmm || !f || !dq || !bw || !vl) return found;
  found.push_back(ROBUSTFT_ISA_TABLES(avx512, 16));
  Isa next = found.back();
  if (!bit(seven.c, 11)) return found;
  next.name = "avx512vnni";
  next.nearest = &nearest_avx512vnni;
  next.nearest_packing = &nearest_packing_avx512vnni;
  found.push_back(next);
  if (!bit(seven_one.a, 5)) return found;
  next.name = "avx512bf16";
  next.mpm_nce_bfloat16 = &mpm_nce_avx512bf16;
  next.faster = multiplies_bfloat16_faster();
  found.push_back(next);
  if (!bit(seven.d, 22) || !bit(seven.d, 24) || !bit(seven.d, 25) || !may_use_amx()) return found;
  next.name = "amx";
  next.faster = true;
  next.mpm_nce = next.mpm_nce_bfloat16 = &mpm_nce_amx;
  // Measured on Intel's: 32 × 32 × 512; 256 × 256 × 512, below which a float32 number's three parts
  // take longer to make than their products save.
  next.mpm_nce_alone = int64_t{1} << 19;
  next.mpm_nce_small = &mpm_nce_avx512;
  next.mpm_nce_few = int64_t{1} << 25;
  next.nearest = &nearest_amx;
  next.nearest_packing = &nearest_packing_amx;
  found.push_back(next);
#endif
  return found;
}

Isa choose() {
  const char* wanted = std::getenv("ROBUSTFT_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    std::size_t last = isas().size() - 1;
    while (!isas()[last].faster) --last;
    return isas()[last];
  }
  std::string names;
  for (const Isa& candidate : isas()) {
    if (std::string(wanted) == candidate.name) {
      Isa named = candidate;
      named.mpm_nce_small = nullptr;  // it serves all sizes then
      return named;
    }
    names += names.empty() ? "" : ", ";
    names += candidate.name;
  }
  throw std::invalid_argument("ROBUSTFT_CPU_ISA: got '" + std::string(wanted) +
                              "', this build and processor can run: " + names);
}

}  // namespace

// Neither is a static with an initialiser: a child forked in the midst of another thread's first
// call would wait for the end of that forever. Two first calls may both look, one is believed.
const std::vector<Isa>& isas() {
  static std::atomic<const std::vector<Isa>*> found{nullptr};
  const std::vector<Isa>* current = found.load();
  if (current == nullptr) {
    const auto* fresh = new const std::vector<Isa>(find_isas());
    if (found.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;
  }
  return *current;
}

const Isa& isa() {
  static std::atomic<const Isa*> chosen{nullptr};
  const Isa* current = chosen.load();
  if (current == nullptr) {
    const Isa* fresh = new const Isa(choose());
    if (chosen.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;
  }
  return *current;
}

}  // namespace robustft
