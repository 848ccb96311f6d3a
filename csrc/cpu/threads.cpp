#include "threads.hpp"

#ifndef _WIN32
#include <dlfcn.h>
#include <pthread.h>
#endif

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "watch.hpp"

namespace robustft {
namespace {

// The blocks of one call. Each worker has a stretch of them, which it takes one by one; then it
// helps with those of others. What a worker wrote is in its own core's cache, so that the next call
// of as many blocks finds it there: another core's lines take tens of nanoseconds each.
class Job {
 public:
  Job(Task task, void* context, int64_t blocks, int workers)
      : task_(task), context_(context), watch_(current_watch()), stretches_(workers) {
    for (int k = 0; k < workers; ++k) {
      stretches_[k].next = blocks * k / workers;
      stretches_[k].end = blocks * (k + 1) / workers;
    }
  }

  // The worker that a thread is: `wanted`, or the next that none is yet. (Of two OpenMP libraries
  // in a process, the one that was asked for its number may not be the one that runs the team.)
  int seat(int wanted) {
    const int workers = static_cast<int>(stretches_.size());
    int worker = wanted % workers;
    while (stretches_[worker].taken.exchange(true)) worker = (worker + 1) % workers;
    return worker;
  }

  void work(int worker) {
    const WatchedHelper watched(watch_);
    const int workers = static_cast<int>(stretches_.size());
    for (int k = 0; k < workers; ++k) {
      Stretch& from = stretches_[(worker + k) % workers];
      int64_t block;
      while (!stopping() && (block = from.next.fetch_add(1, std::memory_order_relaxed)) < from.end)
        task_(context_, block, worker);
    }
  }

 private:
  struct alignas(64) Stretch {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
    std::atomic<bool> taken{false};
  };

  Task task_;
  void* context_;
  Watch* watch_;
  std::vector<Stretch> stretches_;
};

class Pool {
 public:
  // False if another caller has the pool, or the same one: a block that calls again.
  bool run(Job& job, int workers) {
    if (in_use_.exchange(true, std::memory_order_acquire)) return false;
    const int helpers = grow(workers - 1);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      invited_ = helpers;
      running_ = helpers;
      ++calls_;
    }
    wake_.notify_all();
    job.work(0);
    {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, [this] { return running_ == 0; });
    }
    in_use_.store(false, std::memory_order_release);
    return true;
  }

 private:
  // Have `wanted` helpers; fewer if the system refuses more threads.
  int grow(int wanted) {
    try {
      while (started_ < wanted) {
        // Detached: a parked thread simply ends with the process.
        std::thread(&Pool::serve, this, started_ + 1).detach();
        ++started_;
      }
    } catch (const std::system_error&) {
    }
    return wanted < started_ ? wanted : started_;
  }

  void serve(int worker) {
    uint64_t seen = 0;
    for (;;) {
      Job* job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return calls_ != seen; });
        seen = calls_;
        if (worker > invited_) continue;
        job = job_;
      }
      job->work(worker);
      std::lock_guard<std::mutex> lock(mutex_);
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::atomic<bool> in_use_{false};
  int started_ = 0;  // guarded by in_use_

  std::mutex mutex_;  // guards all below
  std::condition_variable wake_, done_;
  uint64_t calls_ = 0;
  int invited_ = 0, running_ = 0;
  Job* job_ = nullptr;
};

std::atomic<Pool*> the_pool{nullptr};
std::atomic<bool> forked{false};

// The threads of a pool do not survive a fork, and its locks may be held: a child starts afresh.
// The old pool, like the last one at exit, is left alone on purpose.
// Registered when the module is loaded: at the first call, another thread might fork meanwhile.
[[maybe_unused]] void after_fork() {
  the_pool.store(nullptr);
  forked.store(true);
}
#ifndef _WIN32  // where no process forks
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, after_fork);
#endif

Pool& pool() {
  Pool* current = the_pool.load();
  if (current == nullptr) {
    Pool* fresh = new Pool;
    if (the_pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;
  }
  return *current;
}

// torch's OpenMP keeps its threads spinning for milliseconds after each of its operations. Threads
// of our own would share the processors with them, and a block whose thread waits for its turn
// holds up all others. So where GNU OpenMP is loaded (torch brings it), its team does the work;
// GOMP_parallel is what compilers call for `#pragma omp parallel`.
using OpenMpParallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

// Null where there is none; in a forked child too, where OpenMP would wait for threads that did not
// survive; and under the thread sanitizer, which does not see how those threads wait.
OpenMpParallel openmp() {
#if defined(__SANITIZE_THREAD__) || defined(_WIN32)
  return nullptr;
#else
  // First of all: the fork may have been in the midst of another thread's first call, and a child
  // would wait for the end of it forever.
  if (forked.load()) return nullptr;
  static const auto found = reinterpret_cast<OpenMpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
#endif
}

// A member of a team has the same number in every call, and mostly the same core.
int number_in_team() {
#ifdef _WIN32
  return 0;
#else
  static const auto found = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
  return found == nullptr ? 0 : found();
#endif
}

void team_work(void* job) {
  Job& mine = *static_cast<Job*>(job);
  mine.work(mine.seat(number_in_team()));
}

}  // namespace

int worker_count(int64_t blocks, int threads) {
  if (threads < 1) return 1;
  return blocks < threads ? static_cast<int>(blocks) : threads;
}

void parallel_blocks(int64_t blocks, int threads, Task task, void* context) {
  const int workers = worker_count(blocks, threads);
  if (workers > 1) {
    Job job(task, context, blocks, workers);
    if (const OpenMpParallel parallel = openmp()) {
      parallel(team_work, &job, static_cast<unsigned>(workers), 0);
      return;
    }
    if (pool().run(job, workers)) return;
  }
  Job(task, context, blocks, 1).work(0);
}

}  // namespace robustft
