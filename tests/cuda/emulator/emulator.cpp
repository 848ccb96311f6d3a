// Fibers, barriers, collectives and asynchronous copies of the emulated card (emulator.hpp).
#include "emulator.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "tensor_core.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#define EMULATED_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATED_ASAN
#endif
#endif
#ifdef EMULATED_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

// --- switching stacks ---

#if defined(__x86_64__)
// Saves what the System V ABI says a call preserves, no signal mask: some 2 ns.
extern "C" void emulated_switch(void** save, void* load);
asm(R"(
.text
.type emulated_switch, @function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_switch, .-emulated_switch
)");

struct Context {
  void* top = nullptr;
  void prepare(unsigned char* stack, std::size_t bytes, void (*entry)()) {
    auto* words = reinterpret_cast<void**>(stack + bytes) - 2;  // the ABI's alignment at entry
    *words = reinterpret_cast<void*>(entry);
    top = words - 6;
    std::memset(top, 0, 6 * sizeof(void*));
  }
  void switch_to(Context& to) { emulated_switch(&top, to.top); }
};
#else
struct Context {
  ucontext_t state;
  void prepare(unsigned char* stack, std::size_t bytes, void (*entry)()) {
    getcontext(&state);
    state.uc_stack.ss_sp = stack;
    state.uc_stack.ss_size = bytes;
    state.uc_link = nullptr;
    makecontext(&state, entry, 0);
  }
  void switch_to(Context& to) { swapcontext(&state, &to.state); }
};
#endif

#ifdef EMULATED_ASAN
constexpr std::size_t kStack = 512 << 10;
#else
constexpr std::size_t kStack = 64 << 10;
#endif
constexpr std::size_t kGuard = 64 << 10;  // no access: a multiple of any page size in use
constexpr int kMaxThreads = 1024;

// --- threads ---

enum class State { ready, in_collective, at_barrier, asleep, done };

struct Copy {
  void* to;
  const void* from;
  int group;
};

struct Fiber {
  emulator::Place place;
  Context context;
  int index;
  State state;
  emulator::Site site;
  u32 mask;
  void* payload;
  emulator::Reduce reduce;
  bool predicate;
  int result;
  std::vector<Copy> copies;
  int groups;  // committed
  void* fake_stack = nullptr;
};

struct Shared {
  const void* name;
  void* at;
};

Fiber fibers[kMaxThreads];
Fiber* running = nullptr;
Context scheduler;
unsigned char* stacks = nullptr;
int threads, live, arrived;   // of the block; not ended; at the barrier
u32 ready[kMaxThreads / 32];  // by warp, by lane
std::string failure;
void (*kernel)(void**);
void** kernel_arguments;
unsigned long long order = 0, random_state;
std::vector<Shared> shared_arrays;
std::vector<unsigned char*> shared_blocks;  // the arrays' memory, freed at the end of the block
std::mutex one_launch;
emulator::Kernel* kernels = nullptr;
float float_of_half[1 << 16];

#ifdef EMULATED_ASAN
const void* scheduler_bottom = nullptr;
std::size_t scheduler_size = 0;
#endif

unsigned char* stack_of(int i) { return stacks + i * (kStack + kGuard) + kGuard; }

void to_scheduler(bool for_good) {
  Fiber& me = *running;
#ifdef EMULATED_ASAN
  __sanitizer_start_switch_fiber(for_good ? nullptr : &me.fake_stack, scheduler_bottom,
                                 scheduler_size);
#else
  (void)for_good;
#endif
  me.context.switch_to(scheduler);
#ifdef EMULATED_ASAN
  __sanitizer_finish_switch_fiber(me.fake_stack, &scheduler_bottom, &scheduler_size);
#endif
}

void to_fiber(Fiber& fiber) {
  running = &fiber;
  emulator::current = &fiber.place;
#ifdef EMULATED_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stack_of(fiber.index), kStack);
#endif
  scheduler.switch_to(fiber.context);
#ifdef EMULATED_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void wake(Fiber& fiber) {
  fiber.state = State::ready;
  ready[fiber.index / 32] |= 1u << fiber.index % 32;
}

void wait(State state) {
  running->state = state;
  ready[running->index / 32] &= ~(1u << running->index % 32);
  to_scheduler(false);
}

// Opens the barrier where all threads that have not ended are at it.
void open_barrier_if_complete() {
  if (arrived == 0 || arrived < live) return;
  const Fiber* first = nullptr;
  int count = 0;
  for (int i = 0; i < threads; ++i) {
    const Fiber& fiber = fibers[i];
    if (fiber.state != State::at_barrier) continue;
    if (first == nullptr) first = &fiber;
    if (fiber.site.line != first->site.line || fiber.site.what != first->site.what ||
        std::strcmp(fiber.site.file, first->site.file) != 0) {
      emulator::fail("threads %d and %d are at different barriers: %s at %s:%d, %s at %s:%d",
                     first->index, i, first->site.what, first->site.file, first->site.line,
                     fiber.site.what, fiber.site.file, fiber.site.line);
    }
    count += fiber.predicate;
  }
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    if (fiber.state != State::at_barrier) continue;
    fiber.result = fiber.reduce == emulator::Reduce::count ? count
                   : fiber.reduce == emulator::Reduce::any ? count > 0
                                                           : count == arrived;
    wake(fiber);
  }
  arrived = 0;
}

void enter() {
#ifdef EMULATED_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
  kernel(kernel_arguments);
  running->state = State::done;
  ready[running->index / 32] &= ~(1u << running->index % 32);
  --live;
  // Those that wait at a barrier wait for the others only.
  open_barrier_if_complete();
  to_scheduler(true);
}

u32 random_number() {
  random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
  return u32(random_state >> 33);
}

// The i-th of n things in the chosen order; a shuffled one is an affine map of a prime's residues.
struct Order {
  u64 n, step = 1, shift = 0, prime = 0, at = 0;
  explicit Order(u64 n) : n(n) {
    if (order < 2) return;
    prime = std::max<u64>(n, 2);
    while (!is_prime(prime)) ++prime;
    step = 1 + random_number() % (prime - 1);
    shift = random_number() % prime;
  }
  static bool is_prime(u64 x) {
    for (u64 d = 2; d * d <= x; ++d) {
      if (x % d == 0) return false;
    }
    return true;
  }
  u64 next() {  // called n times
    if (order < 2) {
      const u64 i = at++;
      return order == 0 ? i : n - 1 - i;
    }
    for (;;) {
      const u64 i = (at++ * step + shift) % prime;
      if (i < n) return i;
    }
  }
};

int pick(u32 lanes) {
  if (order == 0) return __builtin_ctz(lanes);
  if (order == 1) return 31 - __builtin_clz(lanes);
  const int turn = random_number() & 31;
  const u32 turned = turn == 0 ? lanes : lanes >> turn | lanes << (32 - turn);
  return (__builtin_ctz(turned) + turn) & 31;
}

void explain_deadlock() {
  std::string text = "deadlock:";
  char line[512];
  for (int i = 0; i < threads;) {
    int end = i + 1;
    const Fiber& a = fibers[i];
    while (end < threads && fibers[end].state == a.state && fibers[end].mask == a.mask &&
           (a.state == State::done ||
            (fibers[end].site.line == a.site.line && fibers[end].site.what == a.site.what))) {
      ++end;
    }
    if (a.state == State::done) {
      std::snprintf(line, sizeof line, " threads %d-%d have ended;", i, end - 1);
    } else if (a.state == State::at_barrier) {
      std::snprintf(line, sizeof line, " threads %d-%d wait in %s at %s:%d;", i, end - 1,
                    a.site.what, a.site.file, a.site.line);
    } else {
      std::snprintf(line, sizeof line, " threads %d-%d wait in %s for lanes %08x at %s:%d;", i,
                    end - 1, a.site.what, a.mask, a.site.file, a.site.line);
    }
    text += line;
    i = end;
  }
  failure = text;
}

void free_shared() {
  for (auto* p : shared_blocks) std::free(p);
  shared_blocks.clear();
  shared_arrays.clear();
}

void run_block(uint3 block) {
  const auto [bx, by, bz] = emulator::block_dim;
  live = threads;
  arrived = 0;
  int i = 0;
  for (unsigned z = 0; z < bz; ++z) {
    for (unsigned y = 0; y < by; ++y) {
      for (unsigned x = 0; x < bx; ++x, ++i) {
        Fiber& fiber = fibers[i];
        fiber.place = {{x, y, z}, block};
        fiber.index = i;
        fiber.mask = 0;
        fiber.copies.clear();
        fiber.groups = 0;
        fiber.context.prepare(stack_of(i), kStack, enter);
        wake(fiber);
      }
    }
  }
  const int warps = (threads + 31) / 32;
  for (bool progress = true; progress && failure.empty();) {
    progress = false;
    Order warp_order(warps);
    for (int turn = 0; turn < warps && failure.empty(); ++turn) {
      const int warp = int(warp_order.next());
      while (ready[warp] != 0 && failure.empty()) {
        progress = true;
        to_fiber(fibers[warp * 32 + pick(ready[warp])]);
      }
    }
  }
  for (i = 0; failure.empty() && i < threads; ++i) {
    if (fibers[i].state != State::done) explain_deadlock();
  }
  free_shared();
}

}  // namespace

namespace emulator {

const Place* current = nullptr;
dim3 block_dim, grid_dim;
unsigned char* dynamic_shared = nullptr;

Kernel::Kernel(const char* source, const char* name, void (*run)(void**))
    : source(source), name(name), run(run), next(kernels) {
  kernels = this;
}

void fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  failure = text;
  to_scheduler(true);
  std::abort();  // never run again
}

int lane() { return running->index % 32; }

void* shared(const void* name, std::size_t bytes, std::size_t alignment) {
  for (const Shared& array : shared_arrays) {
    if (array.name == name) return array.at;
  }
  alignment = std::max<std::size_t>(alignment, sizeof(void*));
  auto* at = static_cast<unsigned char*>(
      std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment));
  std::memset(at, 0xff, bytes);
  shared_arrays.push_back({name, at});
  shared_blocks.push_back(at);
  return at;
}

void collective(u32 mask, const Site& site, void* payload, Finish finish) {
  Fiber& me = *running;
  const int warp = me.index / 32 * 32;
  if (!(mask >> lane() & 1)) {
    fail("lane %d calls %s at %s:%d for lanes %08x, without itself", lane(), site.what, site.file,
         site.line, mask);
  }
  me.site = site;
  me.mask = mask;
  me.payload = payload;
  me.state = State::in_collective;
  // A full mask stands for the lanes that there are, in a block's last, shorter warp too.
  const u32 present = threads - warp >= 32 ? ~0u : (1u << (threads - warp)) - 1;
  const u32 lanes = mask == ~0u ? present : mask;
  void* payloads[32] = {};
  for (int i = 0; i < 32; ++i) {
    if (!(lanes >> i & 1)) continue;
    const Fiber& other = fibers[warp + i];
    if (!(present >> i & 1) || other.state != State::in_collective || other.mask != mask) {
      wait(State::in_collective);
      return;
    }
    if (other.site.what != site.what) {
      fail("lanes %d and %d meet in different collectives: %s at %s:%d, %s at %s:%d", lane(), i,
           site.what, site.file, site.line, other.site.what, other.site.file, other.site.line);
    }
    payloads[i] = other.payload;
  }
  finish(payloads, lanes);
  for (int i = 0; i < 32; ++i) {
    if (lanes >> i & 1) wake(fibers[warp + i]);
  }
}

int block_barrier(const Site& site, Reduce reduce, bool predicate) {
  Fiber& me = *running;
  me.site = site;
  me.predicate = predicate;
  me.reduce = reduce;
  me.state = State::at_barrier;
  ready[me.index / 32] &= ~(1u << me.index % 32);
  ++arrived;
  open_barrier_if_complete();
  if (me.state == State::at_barrier) to_scheduler(false);
  return me.result;
}

void copy_async(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<std::uintptr_t>(shared) % 16 != 0 ||
      (valid && reinterpret_cast<std::uintptr_t>(global) % 16 != 0)) {
    fail("cp_async_16 from %p to %p: both must be aligned to 16 bytes", global, shared);
  }
  std::memset(shared, 0xff, 16);
  running->copies.push_back({shared, valid ? global : nullptr, running->groups});
}

void copy_commit() { ++running->groups; }

void copy_wait(int under_way) {
  auto& copies = running->copies;
  std::size_t kept = 0;
  for (const Copy& copy : copies) {
    if (copy.group >= running->groups - under_way) {
      copies[kept++] = copy;
    } else if (copy.from != nullptr) {
      std::memcpy(copy.to, copy.from, 16);
    } else {
      std::memset(copy.to, 0, 16);
    }
  }
  copies.resize(kept);
}

void sleep(const void* event, const Site& site) {
  running->site = site;
  running->mask = 0;
  running->payload = const_cast<void*>(event);
  wait(State::asleep);
}

void wake(const void* event) {
  for (int i = 0; i < threads; ++i) {
    if (fibers[i].state == State::asleep && fibers[i].payload == event) ::wake(fibers[i]);
  }
}

namespace {

struct Rows {
  const u16* row;
  u32* r;
};

template <bool transposed>
void give_matrices(void** all, u32 mask) {
  if (mask != 0xffffffffu) fail("ldmatrix: lanes %08x, expected a whole warp", mask);
  u16 rows[32][8];
  for (int i = 0; i < 32; ++i) std::memcpy(rows[i], static_cast<Rows*>(all[i])->row, 16);
  for (int i = 0; i < 32; ++i) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto& m = reinterpret_cast<const u16(&)[8][8]>(rows[8 * matrix]);
      const int a = i / 4, b = 2 * (i % 4);
      const u32 low = transposed ? m[b][a] : m[a][b];
      const u32 high = transposed ? m[b + 1][a] : m[a][b + 1];
      static_cast<Rows*>(all[i])->r[matrix] = low | high << 16;
    }
  }
}

struct Product {
  float* d;
  const u32 *a, *b;
};

void give_products(void** all, u32 mask) {
  if (mask != 0xffffffffu) fail("mma: lanes %08x, expected a whole warp", mask);
  float a[16][16], b[16][8], d[16][8];
  for (int i = 0; i < 32; ++i) {
    const auto& p = *static_cast<Product*>(all[i]);
    const int g = i / 4, t = 2 * (i % 4);
    for (int half = 0; half < 2; ++half) {
      for (int j = 0; j < 2; ++j) {
        a[g][8 * j + t + half] = float_of_half[p.a[2 * j] >> (16 * half) & 0xffff];
        a[g + 8][8 * j + t + half] = float_of_half[p.a[2 * j + 1] >> (16 * half) & 0xffff];
        b[8 * j + t + half][g] = float_of_half[p.b[j] >> (16 * half) & 0xffff];
      }
      d[g][t + half] = p.d[half];
      d[g + 8][t + half] = p.d[2 + half];
    }
  }
  for (int i = 0; i < 16; ++i) accumulate<kAmpereWidth, kAmpereBits>(d[i], a[i], b, 8);
  for (int i = 0; i < 32; ++i) {
    const auto& p = *static_cast<Product*>(all[i]);
    const int g = i / 4, t = 2 * (i % 4);
    for (int half = 0; half < 2; ++half) {
      p.d[half] = d[g][t + half];
      p.d[2 + half] = d[g + 8][t + half];
    }
  }
}

}  // namespace

void load_matrices(u32 (&r)[4], const void* row, bool transposed, const Site& site) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) {
    fail("%s at %s:%d: row at %p, expected one aligned to 16 bytes", site.what, site.file,
         site.line, row);
  }
  Rows mine{static_cast<const u16*>(row), r};
  collective(0xffffffffu, site, &mine, transposed ? give_matrices<true> : give_matrices<false>);
}

void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const Site& site) {
  Product mine{d, a, b};
  collective(0xffffffffu, site, &mine, give_products);
}

float half_to_float(u16 bits) { return float_of_half[bits]; }

u16 float_to_half(float x) {
  const u32 bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return 0x7fff;               // NaN, as cvt gives it
  if (size >= 0x477ff000) return u16(sign | 0x7c00);  // from 65520 on
  if (size < 0x38800000) {                            // subnormal: a multiple of 2^-24
    return u16(sign | u32(std::nearbyint(std::ldexp(double(__uint_as_float(size)), 24))));
  }
  const u32 rounded = size + 0xfff + (size >> 13 & 1);
  return u16(sign | (rounded - 0x38000000) >> 13);
}

u16 float_to_bfloat16(float x) {
  const u32 bits = __float_as_uint(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace emulator

namespace {

bool same_name(const char* a, const char* b) {
  for (;; ++a, ++b) {
    while (*a == ' ') ++a;
    while (*b == ' ') ++b;
    if (*a != *b) return false;
    if (*a == 0) return true;
  }
}

// "dive" of "/…/dive.cu".
std::string stem(const char* path) {
  std::string name(path);
  name = name.substr(name.find_last_of('/') + 1);
  return name.substr(0, name.find_last_of('.'));
}

void set_up() {
  if (stacks != nullptr) return;
  const std::size_t bytes = kMaxThreads * (kStack + kGuard);
  stacks = static_cast<unsigned char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  for (int i = 0; i < kMaxThreads; ++i) mprotect(stack_of(i) - kGuard, kGuard, PROT_NONE);
  for (int i = 0; i < 1 << 16; ++i) {
    const int exponent = i >> 10 & 31, fraction = i & 1023;
    const float size = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                       : exponent == 0 ? std::ldexp(float(fraction), -24)
                                       : std::ldexp(float(1024 + fraction), exponent - 25);
    float_of_half[i] = i >> 15 != 0 ? -size : size;
  }
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// 0: threads and blocks in order; 1: reversed; else a seed to shuffle them with.
EXPORT void emulator_order(unsigned long long seed) { order = seed; }

// Runs a kernel; the result is null, or what went wrong, valid until the next launch.
EXPORT const char* emulator_launch(const char* source, const char* name, const unsigned* grid,
                                   const unsigned* block, unsigned shared_bytes, void** arguments) {
  const std::lock_guard<std::mutex> alone(one_launch);
  set_up();
  failure.clear();
  const emulator::Kernel* found = kernels;
  while (found != nullptr && !(stem(found->source) == source && same_name(found->name, name))) {
    found = found->next;
  }
  threads = int(block[0] * block[1] * block[2]);
  const u64 blocks = u64(grid[0]) * grid[1] * grid[2];
  if (found == nullptr) {
    failure = std::string("no INSTANTIATE(") + name + ") in " + source + ".cu";
  } else if (threads < 1 || threads > kMaxThreads || blocks < 1 || grid[1] > 65535 ||
             grid[2] > 65535 || grid[0] > 0x7fffffff || shared_bytes > 227 << 10) {
    failure = "a grid of " + std::to_string(blocks) + " blocks of " + std::to_string(threads) +
              " threads with " + std::to_string(shared_bytes) + " bytes is no launch";
  }
  if (!failure.empty()) return failure.c_str();
  kernel = found->run;
  kernel_arguments = arguments;
  random_state = order;
  emulator::grid_dim = {grid[0], grid[1], grid[2]};
  emulator::block_dim = {block[0], block[1], block[2]};
  // Exactly as large as asked, so that a sanitizer sees what lies beyond.
  void* memory = nullptr;
  if (shared_bytes != 0 && posix_memalign(&memory, 1024, shared_bytes) != 0) return "no memory";
  emulator::dynamic_shared = static_cast<unsigned char*>(memory);
#if defined(__x86_64__)
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);  // subnormals are zero: CuPy compiles with -ftz=true
#endif
  Order turns(blocks);
  for (u64 i = 0; i < blocks && failure.empty(); ++i) {
    const u64 turn = turns.next();
    if (shared_bytes != 0) std::memset(memory, 0xff, shared_bytes);
    const uint3 at{unsigned(turn % grid[0]), unsigned(turn / grid[0] % grid[1]),
                   unsigned(turn / grid[0] / grid[1])};
    run_block(at);
    if (!failure.empty()) {
      failure = stem(found->source) + ".cu, " + name + ", block (" + std::to_string(at.x) + ", " +
                std::to_string(at.y) + ", " + std::to_string(at.z) + "): " + failure;
    }
  }
#if defined(__x86_64__)
  _mm_setcsr(before);
#endif
  std::free(memory);
  return failure.empty() ? nullptr : failure.c_str();
}
