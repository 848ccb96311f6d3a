// Shuffles, votes and reductions of a warp.
#pragma once

namespace emulator {

template <typename T>
struct Exchange {
  T value;
  int from;
  T result;
};

template <typename T>
T exchange(u32 mask, T value, int from, const Site& site) {
  Exchange<T> mine{value, from, value};
  collective(mask, site, &mine, [](void** all, u32 mask) {
    for (int i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      auto* to = static_cast<Exchange<T>*>(all[i]);
      if (!(mask >> to->from & 1)) {
        fail("lane %d reads lane %d, which is not in mask %08x", i, to->from, mask);
      }
      to->result = static_cast<Exchange<T>*>(all[to->from])->value;
    }
  });
  return mine.result;
}

template <typename T, typename F>
T reduce(u32 mask, T value, F, const Site& site) {
  Exchange<T> mine{value, 0, value};
  collective(mask, site, &mine, [](void** all, u32 mask) {
    bool first = true;
    T total{};
    for (int i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      const T x = static_cast<Exchange<T>*>(all[i])->value;
      total = first ? x : F::of(total, x);
      first = false;
    }
    for (int i = 0; i < 32; ++i) {
      if (mask >> i & 1) static_cast<Exchange<T>*>(all[i])->result = total;
    }
  });
  return mine.result;
}

struct Add {
  template <typename T>
  static T of(T a, T b) {
    return a + b;
  }
};
struct Min {
  template <typename T>
  static T of(T a, T b) {
    return b < a ? b : a;
  }
};
struct Max {
  template <typename T>
  static T of(T a, T b) {
    return a < b ? b : a;
  }
};
struct Or {
  template <typename T>
  static T of(T a, T b) {
    return a | b;
  }
};
struct And {
  template <typename T>
  static T of(T a, T b) {
    return a & b;
  }
};

}  // namespace emulator

inline void __syncwarp(u32 mask = 0xffffffffu, EMULATED_HERE) {
  emulator::collective(mask, {"__syncwarp", file, line}, nullptr, [](void**, u32) {});
}

template <typename T>
T __shfl_sync(u32 mask, T x, int from, int width = 32, EMULATED_HERE) {
  const int base = emulator::lane() & ~(width - 1);
  return emulator::exchange(mask, x, base + (from & (width - 1)), {"__shfl_sync", file, line});
}

template <typename T>
T __shfl_xor_sync(u32 mask, T x, int bits, int width = 32, EMULATED_HERE) {
  const int me = emulator::lane(), from = me ^ bits;
  // Lanes of a later segment are not read.
  return emulator::exchange(mask, x, from < (me & ~(width - 1)) + width ? from : me,
                            {"__shfl_xor_sync", file, line});
}

template <typename T>
T __shfl_down_sync(u32 mask, T x, unsigned by, int width = 32, EMULATED_HERE) {
  const int me = emulator::lane(), last = me | (width - 1);
  return emulator::exchange(mask, x, me + int(by) <= last ? me + int(by) : me,
                            {"__shfl_down_sync", file, line});
}

template <typename T>
T __shfl_up_sync(u32 mask, T x, unsigned by, int width = 32, EMULATED_HERE) {
  const int me = emulator::lane(), first = me & ~(width - 1);
  return emulator::exchange(mask, x, me - int(by) >= first ? me - int(by) : me,
                            {"__shfl_up_sync", file, line});
}

inline u32 __ballot_sync(u32 mask, int predicate, EMULATED_HERE) {
  const u32 mine = predicate ? 1u << emulator::lane() : 0;
  return emulator::reduce(mask, mine, emulator::Or(), {"__ballot_sync", file, line});
}

inline int __any_sync(u32 mask, int predicate, EMULATED_HERE) {
  return emulator::reduce(mask, int(predicate != 0), emulator::Or(), {"__any_sync", file, line});
}

inline int __all_sync(u32 mask, int predicate, EMULATED_HERE) {
  return emulator::reduce(mask, int(predicate != 0), emulator::And(), {"__all_sync", file, line});
}

#define EMULATED_REDUCE(name, op)                                          \
  inline u32 name(u32 mask, u32 x, EMULATED_HERE) {                        \
    return emulator::reduce(mask, x, emulator::op(), {#name, file, line}); \
  }                                                                        \
  inline int name(u32 mask, int x, EMULATED_HERE) {                        \
    return emulator::reduce(mask, x, emulator::op(), {#name, file, line}); \
  }
EMULATED_REDUCE(__reduce_add_sync, Add)
EMULATED_REDUCE(__reduce_min_sync, Min)
EMULATED_REDUCE(__reduce_max_sync, Max)
#undef EMULATED_REDUCE
inline u32 __reduce_or_sync(u32 mask, u32 x, EMULATED_HERE) {
  return emulator::reduce(mask, x, emulator::Or(), {"__reduce_or_sync", file, line});
}
inline u32 __reduce_and_sync(u32 mask, u32 x, EMULATED_HERE) {
  return emulator::reduce(mask, x, emulator::And(), {"__reduce_and_sync", file, line});
}
