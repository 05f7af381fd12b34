// Threads that run the tiles of several phases together.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace greenroom {

constexpr auto kAwake = std::chrono::milliseconds(1);  // longer than the time between two decode steps
constexpr int kChecks = 64;                             // pauses between two reads of the clock

inline void pause_thread() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until a condition is met, and yields to others in between; returns false after a millisecond.
template <typename Condition>
bool wait_awake(Condition is_met) {
  const auto deadline = std::chrono::steady_clock::now() + kAwake;
  for (int round = 1; !is_met(); ++round) {
    pause_thread();
    if (round % kChecks) continue;
    std::this_thread::yield();  // to the event loop, say, when it has no core
    if (std::chrono::steady_clock::now() > deadline) return false;
  }
  return true;
}

// Tiles 0 to `num_tiles` - 1, each run once by any thread. The next phase begins when all are done.
struct Phase {
  int64_t num_tiles;
  void (*run)(void* context, int64_t tile, int thread);
  void* context;
};

// Serves one caller at a time. Each thread has a range of neighbouring tiles, so that it reads weights as one stream.
// After its own range it steals tiles from the others' ranges: a thread whose core is busy runs fewer tiles, and a call
// does not wait for a thread that has not woken up by its end. Threads spin for a millisecond, in which they yield to
// others, then sleep.
class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Runs all phases; the calling thread is thread 0.
  void run(const Phase* phases, int num_phases);

  // Lets a worker run `function(context)`, which may call `run`, and returns at once; `join` must follow, and nothing else may
  // be called before it.
  void start(void (*function)(void*), void* context);

  // Helps as thread 0 until the function that was started has returned, or runs it if no worker has begun.
  void join();

  // The same until a counter, which the function counts up before it calls `notify`, is at least so high; `join` must follow.
  void help_until(const std::atomic<int64_t>& counter, int64_t least);

  // Wakes the thread in `help_until`.
  void notify() { announce(); }

 private:
  static constexpr int kMostPhases = 32;

  enum class Lead { kNone, kStarted, kTaken, kEnded };

  struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
  };

  void work(int thread);
  void help(int thread);
  void assist(int thread);
  template <typename Condition>
  void help_while(Condition is_met);
  bool take_lead();
  uint32_t announce();
  uint32_t next_call(uint32_t seen);

  Counter& next(int phase, int range) { return next_[static_cast<size_t>(phase * num_threads_ + range)]; }

  const int num_threads_;
  std::vector<std::thread> workers_;
  const Phase* phases_ = nullptr;
  int num_phases_ = 0;
  int leader_ = 0;  // the thread that calls `run`
  void (*function_)(void*) = nullptr;
  void* function_context_ = nullptr;
  uint32_t seen_ = 0;  // the last call that the thread which started it knows
  std::vector<Counter> next_;  // by phase and range
  Counter done_[kMostPhases];
  alignas(64) std::atomic<Lead> lead_{Lead::kNone};
  alignas(64) std::atomic<uint32_t> epoch_{0};     // number of calls; sleeping threads wait on it
  alignas(64) std::atomic<int32_t> num_inside_{0};  // threads in the current call; negative while no more may join
  alignas(64) std::atomic<int32_t> num_asleep_{0};
  std::atomic<bool> is_closing_{false};
};

template <typename Function>
Phase phase_of(int64_t num_tiles, Function& function) {
  return {num_tiles,
          [](void* context, int64_t tile, int thread) { (*static_cast<Function*>(context))(tile, thread); },
          &function};
}

// Phases that are run together, in the order in which they are added.
class PhaseList {
 public:
  explicit PhaseList(ThreadPool& pool) : pool_(pool) {}

  // Adds a phase, unless it has no tiles. `function(tile, thread)` must live until `run`.
  template <typename Function>
  void add(int64_t num_tiles, Function& function) {
    if (num_tiles) phases_[num_phases_++] = phase_of(num_tiles, function);
  }

  // Runs the phases that were added since the last call.
  void run() {
    pool_.run(phases_, num_phases_);
    num_phases_ = 0;
  }

 private:
  ThreadPool& pool_;
  Phase phases_[16];
  int num_phases_ = 0;
};

}  // namespace greenroom
