// Tests of what is compiled for one instruction set. They follow the rules of kernel files: no
// standard containers or algorithms, everything in unnamed namespaces.
#pragma once

#include <cstdint>

namespace robustft {

// Called with each value that is wrong.
using Wrong = void (*)(const char* what, int64_t where, double got, double expected);

using IsaTest = void (*)(Wrong);

}  // namespace robustft
