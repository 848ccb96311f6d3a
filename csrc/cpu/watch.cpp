#include "watch.hpp"

#include "threads.hpp"

namespace robustft {
namespace {

constexpr std::chrono::milliseconds kBetweenPolls{50};

struct Current {
  Watch* watch = nullptr;
  bool mine = false;  // this thread set it up: it polls
};
thread_local Current current;

}  // namespace

Watch::Watch(Poll poll, void* context)
    : poll_(poll),
      context_(context),
      due_(Clock::now() + kBetweenPolls),
      outer_(current.watch),
      outer_is_mine_(current.mine) {
  current = {this, true};
}

Watch::~Watch() { current = {outer_, outer_is_mine_}; }

void Watch::poll_if_due() {
  if (stopped() || Clock::now() < due_) return;
  // A poll may call work of its own, which is none of this watch's.
  current = {};
  const bool stop = poll_(context_);
  current = {this, true};
  due_ = Clock::now() + kBetweenPolls;
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
