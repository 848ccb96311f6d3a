// Runs isa/*.cpp for every instruction set of this processor.
#include "isa/isa_tests.hpp"

#include "../cpu/dispatch.hpp"
#include "check.hpp"

namespace robustft {

#define ROBUSTFT_DECLARE(isa)           \
  extern const IsaTest tile_test_##isa; \
  extern const IsaTest simd_test_##isa;

ROBUSTFT_DECLARE(baseline)
#ifdef ROBUSTFT_X86
ROBUSTFT_DECLARE(avx2)
ROBUSTFT_DECLARE(avx512)
ROBUSTFT_DECLARE(avx512vnni)
ROBUSTFT_DECLARE(avx512bf16)
ROBUSTFT_DECLARE(amx)
#endif

namespace {

struct Compiled {
  const char* isa;
  IsaTest tile, simd;
};

std::vector<Compiled> compiled() {
  return {
      {"baseline", tile_test_baseline, simd_test_baseline},
#ifdef ROBUSTFT_X86
      {"avx2", tile_test_avx2, simd_test_avx2},
      {"avx512", tile_test_avx512, simd_test_avx512},
      {"avx512vnni", tile_test_avx512vnni, simd_test_avx512vnni},
      {"avx512bf16", tile_test_avx512bf16, simd_test_avx512bf16},
      {"amx", tile_test_amx, simd_test_amx},
#endif
  };
}

std::string running;

void wrong(const char* what, int64_t where, double got, double expected) {
  fail(running + ": " + what + " at " + std::to_string(where) + ": got " + std::to_string(got) +
       ", expected " + std::to_string(expected));
}

bool runs_here(const std::string& name) {
  for (const Isa& isa : isas()) {
    if (name == isa.name) return true;
  }
  return false;
}

void run(IsaTest Compiled::* test) {
  for (const Compiled& each : compiled()) {
    running = each.isa;
    if (runs_here(running)) {
      (each.*test)(wrong);
    } else {
      std::printf("skip   %s: not on this processor\n", each.isa);
    }
  }
}

}  // namespace

TEST(tile) { run(&Compiled::tile); }
TEST(simd) { run(&Compiled::simd); }

}  // namespace robustft
