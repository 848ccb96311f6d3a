// 16-bit storage types. Arithmetic is always float32; these only come from and go to memory.
#pragma once

#include <cstdint>

namespace robustft {

struct bf16 {
  uint16_t bits;
};

struct fp16 {
  uint16_t bits;
};

// Call `body` with a value of the type that `dtype` names.
#define ROBUSTFT_DISPATCH(dtype, T, ...) \
  switch (dtype) {                       \
    case DType::float32: {               \
      using T = float;                   \
      __VA_ARGS__;                       \
      break;                             \
    }                                    \
    case DType::bfloat16: {              \
      using T = bf16;                    \
      __VA_ARGS__;                       \
      break;                             \
    }                                    \
    case DType::float16: {               \
      using T = fp16;                    \
      __VA_ARGS__;                       \
      break;                             \
    }                                    \
  }

}  // namespace robustft
