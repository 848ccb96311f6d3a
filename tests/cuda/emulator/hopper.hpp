// What stands in for csrc/cuda/hopper.cuh (sm_90a): barriers that count bytes, bulk copies, and
// warpgroup products by the PTX documentation's descriptors and layouts.
//
// Copies and products happen as late as they may. A bulk copy's place is NaN until a thread waits
// for the barrier that counts it; a product reads its operands when a thread waits for its group.
// What is read too early, or overwritten too early, is NaN.
#pragma once

#define ROBUSTFT_HOPPER
#define __cluster_dims__(...)

#include "ptx.hpp"

using Barrier = u64;

namespace emulator {

void barrier_init(Barrier* barrier, int arrivals);
void barrier_arrive(Barrier* barrier, int bytes);
void barrier_wait(Barrier* barrier, int parity, const Site& site);
// To the same place of all blocks of the cluster that have a bit, each of which counts it.
void bulk_copy(void* shared, const void* global, int bytes, Barrier* barrier, unsigned blocks);
void group_product(float* d, int columns, bool bfloat16, u64 a, u64 b, bool add, const Site& site);
void group_commit(const Site& site);
void group_wait(int under_way, const Site& site);
u32 shared_offset(const void* p);
// A barrier of another block, by what place_in() says.
Barrier* barrier_at(u32 place);

}  // namespace emulator

inline u32 shared_address(const void* p) { return emulator::shared_offset(p); }
inline void barrier_init(Barrier* barrier, int arrivals) {
  emulator::barrier_init(barrier, arrivals);
}
inline void barriers_made() {}
inline void barrier_arrive(Barrier* barrier) { emulator::barrier_arrive(barrier, 0); }
inline void barrier_arrive_for(Barrier* barrier, int bytes) {
  emulator::barrier_arrive(barrier, bytes);
}
inline void barrier_wait(Barrier* barrier, int parity, EMULATED_HERE) {
  emulator::barrier_wait(barrier, parity, {"barrier_wait", file, line});
}
inline void bulk_copy(void* shared, const void* global, int bytes, Barrier* barrier) {
  emulator::bulk_copy(shared, global, bytes, barrier, 1u << emulator::current->rank);
}
inline int block_in_cluster() { return int(emulator::current->rank); }
inline void cluster_barrier(EMULATED_HERE) {
  emulator::cluster_barrier({"cluster_barrier", file, line});
}
inline u32 place_in(const void* shared, int block) {
  return u32(block) << 24 | shared_address(shared);
}
inline void barrier_arrive_at(u32 barrier) {
  emulator::barrier_arrive(emulator::barrier_at(barrier), 0);
}
template <int BLOCKS>
void bulk_copy_to_all(void* shared, const void* global, int bytes, Barrier* barrier) {
  emulator::bulk_copy(shared, global, bytes, barrier, (1u << BLOCKS) - 1);
}
template <int REGISTERS>
void fewer_registers() {
  static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0);
}
template <int REGISTERS>
void more_registers() {
  static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0);
}
inline void wgmma_fence(EMULATED_HERE) {
  emulator::collective(~0u, {"wgmma_fence", file, line}, nullptr, [](void**, u32) {});
}
inline void wgmma_commit(EMULATED_HERE) { emulator::group_commit({"wgmma_commit", file, line}); }
template <int PENDING>
void wgmma_wait(EMULATED_HERE) {
  emulator::group_wait(PENDING, {"wgmma_wait", file, line});
}
template <int N>
void wgmma_finish(float (&)[N][4], EMULATED_HERE) {
  emulator::group_wait(0, {"wgmma_finish", file, line});
}
template <typename T = Half, int N>
void wgmma_64x16(float (&d)[N][4], u64 a, u64 b, bool add, EMULATED_HERE) {
  static_assert(N % 2 == 0 && N <= 32);
  constexpr bool bfloat16 = std::is_same_v<T, BFloat16>;
  static_assert(std::is_same_v<T, Half> || (bfloat16 && N == 16));
  emulator::group_product(&d[0][0], N * 8, bfloat16, a, b, add, {"wgmma_64x16", file, line});
}
