// Ends long work early. Who may want that sets up a Watch; the work called under it asks stopping()
// between its blocks, and within long ones.
#pragma once

#include <atomic>
#include <cstdint>

namespace robustft {

// While it lives, the work of its thread calls poll(context) on that thread about every twentieth
// of a second, until that returns true. From then on all threads of the work leave out what is left
// of it, and what it wrote is worth nothing. Work that nobody watches is never stopped.
class Watch {
 public:
  using Poll = bool (*)(void* context);

  Watch(Poll poll, void* context);
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
  void poll_if_due();  // on the thread that it watches

 private:
  const Poll poll_;
  void* const context_;
  int64_t due_;  // ns of a clock
  std::atomic<bool> stopped_{false};
  Watch* const outer_;
  const bool outer_is_mine_;
};

// What a thread works under: to hand it on to helpers.
Watch* current_watch();

// A helper works under the watch of the thread that it helps.
class WatchedHelper {
 public:
  explicit WatchedHelper(Watch* watch);
  ~WatchedHelper();
  WatchedHelper(const WatchedHelper&) = delete;
  WatchedHelper& operator=(const WatchedHelper&) = delete;

 private:
  Watch* const outer_;
  const bool outer_is_mine_;
};

}  // namespace robustft
