#include "watch.hpp"

#include <time.h>

#include <chrono>

#include "threads.hpp"

namespace robustft {
namespace {

constexpr int64_t kBetweenPolls = 50'000'000;  // ns

// Nanoseconds since some moment. Small work asks for them as often as large work: a clock that
// ticks every few milliseconds costs a tenth of one that is exact.
int64_t now() {
#ifdef CLOCK_MONOTONIC_COARSE
  timespec time;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
  return int64_t{1'000'000'000} * time.tv_sec + time.tv_nsec;
#else
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
#endif
}

struct Current {
  Watch* watch = nullptr;
  bool mine = false;  // this thread set it up: it polls
};
thread_local Current current;

}  // namespace

Watch::Watch(Poll poll, void* context)
    : poll_(poll),
      context_(context),
      due_(now() + kBetweenPolls),
      outer_(current.watch),
      outer_is_mine_(current.mine) {
  current = {this, true};
}

Watch::~Watch() { current = {outer_, outer_is_mine_}; }

void Watch::poll_if_due() {
  if (stopped() || now() < due_) return;
  // A poll may call work of its own, which is none of this watch's.
  current = {};
  const bool stop = poll_(context_);
  current = {this, true};
  due_ = now() + kBetweenPolls;
  if (stop) stopped_.store(true, std::memory_order_relaxed);
}

Watch* current_watch() { return current.watch; }

WatchedHelper::WatchedHelper(Watch* watch) : outer_(current.watch), outer_is_mine_(current.mine) {
  // The caller itself takes part in the work, and stays the one that polls.
  if (watch != current.watch) current = {watch, false};
}

WatchedHelper::~WatchedHelper() { current = {outer_, outer_is_mine_}; }

bool stopping() {
  Watch* const watch = current.watch;
  if (watch == nullptr) return false;
  if (current.mine) watch->poll_if_due();
  return watch->stopped();
}

}  // namespace robustft
