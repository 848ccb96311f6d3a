// Barriers, bulk copies and warpgroup products of the emulated card (hopper.hpp).
#include <algorithm>
#include <unordered_map>
#include <vector>

#include "cluster.hpp"
#include "tensor_core.hpp"

namespace emulator {
namespace {

// --- barriers ---

constexpr Barrier kMade = 0x6d6261727269;  // what stands in a barrier's memory

struct BulkCopy {
  void* to;
  const void* from;
  int bytes;
};

struct Counts {
  int arrivals = 0, missing = 0, phase = 0;
  i64 bytes = 0;      // announced, not there; below 0 where they come first
  unsigned rank = 0;  // of its block
  std::vector<BulkCopy> copies;
};

// Of the blocks that run: a barrier is made before it is used.
std::unordered_map<const Barrier*, Counts> barriers;

Counts& of(const Barrier* barrier) {
  const auto found = barriers.find(barrier);
  if (found == barriers.end() || *barrier != kMade) fail("barrier at %p was not made", barrier);
  return found->second;
}

void end_phase_if_complete(const Barrier* barrier, Counts& state) {
  if (state.missing > 0 || state.bytes != 0) return;
  ++state.phase;
  state.missing = state.arrivals;
  wake(barrier);
}

// --- products ---

struct Product {
  float* d[32];
  u64 a, b;
  int columns, group;
  bool bfloat16, add;
};

struct Warp {
  std::vector<Product> products;
  int groups = 0;  // committed
};
Warp warps[kMaxBlocks][32];

int warp() { return int(current->thread.x / 32); }  // blocks with wgmma have one dimension
Warp& of_warp() { return warps[current->rank][warp()]; }

// The 16 numbers that begin at 32-byte column 0 of row `row`.
void read(u64 descriptor, int row, bool bfloat16, float (&out)[16]) {
  const u32 start = (descriptor & 0x3fff) << 4, pattern = (descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) {
    fail("wgmma: descriptor %016llx, expected 128-byte swizzle and base offset 0", descriptor);
  }
  for (int k = 0; k < 16; ++k) {
    u32 at = start + row / 8 * pattern + row % 8 * 128 + 2 * k;
    at ^= (at >> 7 & 7) << 4;  // of the address: patterns start at multiples of 1,024
    u16 bits;
    std::memcpy(&bits, current->shared + at, 2);
    out[k] = bfloat16 ? __uint_as_float(u32(bits) << 16) : half_to_float(bits);
  }
}

void multiply(const Product& p, int quarter) {
  static float a[16][16], b[16][256], d[16][256], row[16];
  for (int i = 0; i < 16; ++i) read(p.a, quarter * 16 + i, p.bfloat16, a[i]);
  for (int j = 0; j < p.columns; ++j) {
    read(p.b, j, p.bfloat16, row);
    for (int k = 0; k < 16; ++k) b[k][j] = row[k];
  }
  // Entry e of lane l's fragment n.
  const auto each = [&](auto&& act) {
    for (int l = 0; l < 32; ++l) {
      for (int n = 0; n < p.columns / 8; ++n) {
        for (int e = 0; e < 4; ++e) {
          act(p.d[l][4 * n + e], d[l / 4 + e / 2 * 8][8 * n + l % 4 * 2 + e % 2]);
        }
      }
    }
  };
  each([&](float x, float& to) { to = p.add ? x : 0.0f; });
  for (int i = 0; i < 16; ++i) accumulate<kHopperWidth, kHopperBits>(d[i], a[i], b, p.columns);
  each([](float& x, float from) { x = from; });
}

}  // namespace

u32 shared_offset(const void* p) {
  return u32(static_cast<const unsigned char*>(p) - current->shared);
}

void barrier_init(Barrier* barrier, int arrivals) {
  if (reinterpret_cast<std::uintptr_t>(barrier) % 8 != 0) {
    fail("barrier at %p, expected one aligned to 8 bytes", static_cast<void*>(barrier));
  }
  *barrier = kMade;
  barriers[barrier] = {arrivals, arrivals, 0, 0, current->rank, {}};
}

void barrier_arrive(Barrier* barrier, int bytes) {
  Counts& state = of(barrier);
  state.bytes += bytes;
  if (--state.missing < 0) fail("one arrival too many at the barrier at %p", (void*)barrier);
  end_phase_if_complete(barrier, state);
}

void barrier_wait(Barrier* barrier, int parity, const Site& site) {
  for (;;) {
    Counts& state = of(barrier);
    if (state.phase % 2 != parity) return;
    for (const BulkCopy& copy : state.copies) {
      std::memcpy(copy.to, copy.from, copy.bytes);
      state.bytes -= copy.bytes;
    }
    state.copies.clear();
    end_phase_if_complete(barrier, state);
    if (state.phase % 2 != parity) return;
    sleep(barrier, site);
  }
}

// What stands at the same place of another block of the cluster.
template <typename T>
T* place_of(T* here, unsigned rank) {
  if (int(rank) >= cluster_size) fail("block %u of a cluster of %d", rank, cluster_size);
  if (blocks[rank].live == 0) fail("block %u of the cluster has ended", rank);
  const auto offset = reinterpret_cast<unsigned char*>(here) - current->shared;
  return reinterpret_cast<T*>(blocks[rank].shared + offset);
}

Barrier* barrier_at(u32 place) {
  return reinterpret_cast<Barrier*>(place_of(current->shared + (place & 0xffffff), place >> 24));
}

void bulk_copy(void* shared, const void* global, int bytes, Barrier* barrier, unsigned to_blocks) {
  const auto to = reinterpret_cast<std::uintptr_t>(shared);
  if (to % 16 != 0 || reinterpret_cast<std::uintptr_t>(global) % 16 != 0 || bytes % 16 != 0) {
    fail("bulk_copy of %d bytes from %p to %p: expected multiples of 16", bytes, global, shared);
  }
  for (unsigned rank = 0; to_blocks >> rank != 0; ++rank) {
    if (!(to_blocks >> rank & 1)) continue;
    auto* const there = place_of(static_cast<unsigned char*>(shared), rank);
    Barrier* const counted = place_of(barrier, rank);
    std::memset(there, 0xff, std::size_t(bytes));
    of(counted).copies.push_back({there, global, bytes});
    wake(counted);  // who waits carries it out
  }
}

void begin_barriers() {
  barriers.clear();
  for (auto& of_block : warps) {
    for (Warp& warp : of_block) warp = {};
  }
}

void end_barriers() {
  for (const auto& [barrier, counts] : barriers) {
    if (counts.rank == current->rank && !counts.copies.empty())
      fail("the block ends before what is copied to it is there");
  }
}

namespace {

struct Asked {
  float* d;
  u64 a, b;
  int columns;
  bool bfloat16, add;
};

}  // namespace

void group_product(float* d, int columns, bool bfloat16, u64 a, u64 b, bool add, const Site& site) {
  Asked mine{d, a, b, columns, bfloat16, add};
  collective(~0u, site, &mine, [](void** all, u32) {
    Warp& mine = of_warp();
    const Asked& first = *static_cast<Asked*>(all[0]);
    Product product{{}, first.a, first.b, first.columns, mine.groups, first.bfloat16, first.add};
    for (int i = 0; i < 32; ++i) {
      const Asked& other = *static_cast<Asked*>(all[i]);
      if (other.a != first.a || other.b != first.b || other.add != first.add) {
        fail("wgmma: lanes 0 and %d name different matrices", i);
      }
      product.d[i] = other.d;
    }
    mine.products.push_back(product);
  });
}

void group_commit(const Site& site) {
  collective(~0u, site, nullptr, [](void**, u32) { ++of_warp().groups; });
}

void group_wait(int under_way, const Site& site) {
  int pending = under_way;
  collective(~0u, site, &pending, [](void** all, u32) {
    Warp& mine = of_warp();
    auto& products = mine.products;
    const int until = mine.groups - *static_cast<int*>(all[0]);
    std::size_t done = 0;
    for (; done < products.size() && products[done].group < until; ++done) {
      multiply(products[done], warp() % 4);
    }
    products.erase(products.begin(), products.begin() + std::ptrdiff_t(done));
  });
}

}  // namespace emulator
