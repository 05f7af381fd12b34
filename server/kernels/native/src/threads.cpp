#include "threads.h"

#include <climits>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace greenroom {
namespace {

constexpr int kClosed = INT_MIN / 2;

void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// Spins; after a while yields to other threads in between.
template <typename Condition>
void wait_until(Condition is_met) {
  for (int round = 0; !is_met(); ++round) {
    if (round < kChecks * kChecks) {
      pause_thread();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads), next_(static_cast<size_t>(kMostPhases * num_threads)) {
  num_inside_.store(kClosed);
  for (int thread = 1; thread < num_threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

ThreadPool::~ThreadPool() {
  is_closing_.store(true);
  epoch_.fetch_add(1);
  wake_all(epoch_);
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(const Phase* phases, int num_phases) {
  if (workers_.empty()) {
    for (int phase = 0; phase < num_phases; ++phase) {
      for (int64_t tile = 0; tile < phases[phase].num_tiles; ++tile) phases[phase].run(phases[phase].context, tile, 0);
    }
    return;
  }
  phases_ = phases;
  num_phases_ = num_phases;
  for (int phase = 0; phase < num_phases; ++phase) {
    const int64_t num_tiles = phases[phase].num_tiles;
    for (int range = 0; range < num_threads_; ++range) {
      next(phase, range).value.store(num_tiles * range / num_threads_, std::memory_order_relaxed);
    }
    done_[phase].value.store(0, std::memory_order_relaxed);
  }
  num_inside_.store(0, std::memory_order_release);
  announce();
  help(leader_);
  // No thread joins from here on; those that did may still read the counters.
  num_inside_.fetch_add(kClosed, std::memory_order_acq_rel);
  wait_until([this] { return num_inside_.load(std::memory_order_acquire) == kClosed; });
}

void ThreadPool::start(void (*function)(void*), void* context) {
  function_ = function;
  function_context_ = context;
  lead_.store(Lead::kStarted, std::memory_order_release);
  seen_ = announce();
}

void ThreadPool::join() {
  help_while([] { return true; });
  lead_.store(Lead::kNone, std::memory_order_relaxed);
}

void ThreadPool::help_until(const std::atomic<int64_t>& counter, int64_t least) {
  help_while([&] { return counter.load(std::memory_order_acquire) < least; });
}

// Helps while a condition is met and the function that was started has not returned.
template <typename Condition>
void ThreadPool::help_while(Condition is_met) {
  if (take_lead()) {
    function_(function_context_);
    lead_.store(Lead::kEnded, std::memory_order_relaxed);
    return;
  }
  while (lead_.load(std::memory_order_acquire) != Lead::kEnded && is_met()) {
    seen_ = next_call(seen_);
    if (is_met()) assist(0);
  }
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  while (true) {
    seen = next_call(seen);
    if (is_closing_.load(std::memory_order_acquire)) return;
    if (take_lead()) {
      leader_ = thread;
      function_(function_context_);
      leader_ = 0;
      lead_.store(Lead::kEnded, std::memory_order_release);
      seen = announce();
    } else {
      assist(thread);
    }
  }
}

// Returns true for the one thread that is to run the function which was started.
bool ThreadPool::take_lead() {
  Lead expected = Lead::kStarted;
  return lead_.compare_exchange_strong(expected, Lead::kTaken, std::memory_order_acq_rel);
}

// Tells all threads of a call, and returns its number.
uint32_t ThreadPool::announce() {
  const uint32_t number = epoch_.fetch_add(1, std::memory_order_seq_cst) + 1;
  if (num_asleep_.load(std::memory_order_seq_cst) > 0) wake_all(epoch_);
  return number;
}

// Waits for a call after number `seen`, and returns the number of the last one.
uint32_t ThreadPool::next_call(uint32_t seen) {
  if (!wait_awake([&] { return epoch_.load(std::memory_order_acquire) != seen; })) {
    num_asleep_.fetch_add(1, std::memory_order_seq_cst);
    while (epoch_.load(std::memory_order_seq_cst) == seen) sleep_while(epoch_, seen);
    num_asleep_.fetch_sub(1, std::memory_order_relaxed);
  }
  return epoch_.load(std::memory_order_acquire);
}

// Joins the call while it is open; the number of a finished call is negative.
void ThreadPool::assist(int thread) {
  int32_t inside = num_inside_.load(std::memory_order_acquire);
  while (inside >= 0 && !num_inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) {
  }
  if (inside < 0) return;
  help(thread);
  num_inside_.fetch_sub(1, std::memory_order_acq_rel);
}

void ThreadPool::help(int thread) {
  const Phase* phases = phases_;
  for (int phase = 0; phase < num_phases_; ++phase) {
    const int64_t total = phases[phase].num_tiles;
    int64_t num_run = 0;
    for (int place = 0; place < num_threads_; ++place) {
      const int range = (thread + place) % num_threads_;
      const int64_t end = total * (range + 1) / num_threads_;
      std::atomic<int64_t>& counter = next(phase, range).value;
      for (int64_t tile; (tile = counter.fetch_add(1, std::memory_order_relaxed)) < end; ++num_run) {
        phases[phase].run(phases[phase].context, tile, thread);
      }
    }
    if (num_run) done_[phase].value.fetch_add(num_run, std::memory_order_acq_rel);
    wait_until([&] { return done_[phase].value.load(std::memory_order_acquire) == total; });
  }
}

}  // namespace greenroom
