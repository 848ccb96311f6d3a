// The thread pool: every block runs once, under a worker index of its own, and what it wrote is
// there when the call returns; also from many callers at once, from inside a block, and in forked
// children. The memory that blocks write is plain, so that the thread sanitizer sees each access.
#include "../cpu/threads.hpp"

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <atomic>
#include <chrono>
#include <thread>

#include "../cpu/memory.hpp"
#include "../cpu/parallel.hpp"
#include "../cpu/watch.hpp"
#include "check.hpp"

namespace robustft {
namespace {

// One call, checked. Returns what went wrong, or nothing.
std::string call(int64_t blocks, int threads) {
  const int workers = worker_count(blocks, threads);
  std::vector<int> runs(static_cast<size_t>(blocks)), by_worker(static_cast<size_t>(workers));
  bool outside = false;
  auto body = [&](int64_t block, int worker) {
    if (block < 0 || block >= blocks || worker < 0 || worker >= workers) {
      outside = true;
      return;
    }
    ++runs[static_cast<size_t>(block)];
    ++by_worker[static_cast<size_t>(worker)];
  };
  parallel(blocks, threads, body);
  const std::string what =
      std::to_string(blocks) + " blocks on " + std::to_string(threads) + " threads: ";
  if (outside) return what + "a block or worker outside its range";
  for (const int count : runs) {
    if (count != 1) return what + "a block ran " + std::to_string(count) + " times";
  }
  int64_t total = 0;
  for (const int count : by_worker) total += count;
  if (total != blocks) return what + "a worker index was used by two threads at once";
  return "";
}

std::string calls(int count, uint32_t seed) {
  Random random(seed);
  for (int i = 0; i < count; ++i) {
    const int64_t blocks = random.below(4) == 0 ? random.below(1000) : random.below(12);
    const std::string wrong = call(blocks, random.below(9));
    if (!wrong.empty()) return wrong;
  }
  return "";
}

#ifndef _WIN32
// What `work` finds wrong in a forked child; a child that waits for ever is ended and found wrong.
template <class Work>
std::string in_child(Work work) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(work().empty() ? 0 : 1);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) return "no child";
  return status == 0 ? "" : "the child ended with status " + std::to_string(status);
}
#endif

}  // namespace

TEST(threads_any_count) {
  CHECK(worker_count(5, 0) == 1 && worker_count(5, -3) == 1, "at least one worker");
  CHECK(worker_count(5, 8) == 5 && worker_count(8, 5) == 5, "no more than blocks or threads");
  const std::string wrong = calls(3000, 1);
  CHECK(wrong.empty(), wrong);
}

TEST(threads_are_used) {
  // Each block waits for the other: one thread alone would never finish.
  std::atomic<int> arrived{0};
  auto body = [&](int64_t, int) {
    ++arrived;
    while (arrived < 2) std::this_thread::yield();
  };
  parallel(2, 2, body);
  CHECK(arrived == 2, "two threads");
}

TEST(threads_many_callers) {
  std::vector<std::string> wrong(6);
  std::vector<std::thread> callers;
  for (size_t i = 0; i < wrong.size(); ++i) {
    callers.emplace_back([&wrong, i] { wrong[i] = calls(500, static_cast<uint32_t>(i)); });
  }
  for (std::thread& caller : callers) caller.join();
  for (const std::string& each : wrong) CHECK(each.empty(), each);
}

TEST(threads_nested_calls) {
  for (int threads = 1; threads <= 8; ++threads) {
    std::vector<std::string> wrong(11);
    auto body = [&](int64_t block, int) {
      wrong[static_cast<size_t>(block)] = calls(20, static_cast<uint32_t>(block));
    };
    parallel(static_cast<int64_t>(wrong.size()), threads, body);
    for (const std::string& each : wrong) CHECK(each.empty(), each);
  }
}

TEST(threads_stop_when_the_watch_says_so) {
  // Each block takes a millisecond at least: all of them would take minutes.
  constexpr int64_t kBlocks = 1 << 20;
  for (int threads = 1; threads <= 4; ++threads) {
    struct Polls {
      std::atomic<int> count{0};
      std::thread::id caller = std::this_thread::get_id();
      bool elsewhere = false;
    } polls;
    std::atomic<int64_t> run{0};
    auto body = [&](int64_t, int) {
      ++run;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    };
    {
      const Watch watch(
          [](void* context) {
            Polls& mine = *static_cast<Polls*>(context);
            mine.elsewhere |= std::this_thread::get_id() != mine.caller;
            return ++mine.count == 2;
          },
          &polls);
      parallel(kBlocks, threads, body);
      CHECK(watch.stopped() && stopping(), "stopped");
      const int64_t before = run;
      CHECK(before > 0 && before < kBlocks, "in the midst of it");
      parallel(kBlocks, threads, body);
      CHECK(run == before, "what follows is left out");
      CHECK(polls.count == 2 && !polls.elsewhere, "asked on the caller's thread, until it said so");
    }
    CHECK(!stopping(), "nobody watches any more");
    const std::string wrong = calls(20, 12);
    CHECK(wrong.empty(), wrong);
  }
}

TEST(threads_within_a_block_see_that_it_is_to_end) {
  // Both blocks wait for it: the caller's, which polls, and the helper's.
  std::atomic<int> ended{0};
  auto body = [&](int64_t, int) {
    while (!stopping()) std::this_thread::yield();
    ++ended;
  };
  const Watch watch([](void*) { return true; }, nullptr);
  parallel(2, 2, body);
  CHECK(ended >= 1 && watch.stopped(), "stopped");
}

TEST(threads_watches_are_of_one_caller) {
  // One caller's work is stopped, another's beside it is not; nor is that of the poll itself.
  std::string wrong;
  std::atomic<bool> done{false};
  std::thread other([&] {
    while (!done && wrong.empty()) wrong = calls(20, 13);
  });
  struct Poll {
    std::string wrong;
  } inner;
  const Watch watch(
      [](void* context) {
        static_cast<Poll*>(context)->wrong = calls(20, 14);
        return true;
      },
      &inner);
  auto body = [](int64_t, int) { std::this_thread::sleep_for(std::chrono::milliseconds(1)); };
  parallel(1 << 20, 2, body);
  done = true;
  other.join();
  CHECK(watch.stopped(), "stopped");
  CHECK(wrong.empty(), wrong);
  CHECK(inner.wrong.empty(), inner.wrong);
}

#ifndef _WIN32
TEST(threads_forked_children) {
  for (int i = 0; i < 5; ++i) {
    std::string wrong = calls(20, 7);
    CHECK(wrong.empty(), wrong);
    // A child, and a child of it, with pools of their own.
    wrong = in_child([] {
      const std::string mine = calls(20, 8);
      return mine.empty() ? in_child([] { return calls(20, 9); }) : mine;
    });
    CHECK(wrong.empty(), wrong);
  }
}

TEST(threads_forked_while_the_pool_is_in_use) {
  std::atomic<bool> stop{false};
  std::string wrong_there;
  std::thread caller([&] {
    while (!stop && wrong_there.empty()) wrong_there = calls(10, 10);
  });
  for (int i = 0; i < 20; ++i) {
    const std::string wrong = in_child([] { return calls(5, 11); });
    CHECK(wrong.empty(), wrong);
  }
  stop = true;
  caller.join();
  CHECK(wrong_there.empty(), wrong_there);
}

TEST(memory_forked_while_it_changes_hands) {
  Spare spare;
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop) spare.give_back(spare.take(4096));
  });
  for (int i = 0; i < 200; ++i) {
    const std::string wrong = in_child([&] {
      spare.give_back(spare.take(8192));
      return std::string();
    });
    CHECK(wrong.empty(), wrong);
  }
  stop = true;
  other.join();
}
#endif

}  // namespace robustft
