#include "layers/decode_run.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace greenroom {
namespace {

// Makes the chosen tokens the new ones; returns false if a row allows none.
bool advance(const Context& context, const DecodeRun& run, const int32_t* tokens) {
  const StepCall& step = *run.step;
  for (int64_t i = 0; i < step.tokens; ++i) {
    if (tokens[i] < 0) return false;
    StepSequence& sequence = run.sequences[i];
    ++sequence.first_position;
    if (sequence.state_from >= 0) std::swap(sequence.state_from, sequence.state_to);
    run.token_ids[i] = tokens[i];
    float* row = step.hidden + i * step.hidden_size;
    read_row(context.level, *run.embedding, tokens[i], row);
    apply_norm(context.level, run.embedding_norm, row, step.hidden_size, row);
    for (int64_t k = 0; k < step.hidden_size; ++k) row[k] *= run.embedding_scale;
    for (int64_t stream = 0; stream < run.num_streams; ++stream) {
      std::memcpy(step.streams + (i * run.num_streams + stream) * step.hidden_size, row,
                  static_cast<size_t>(step.hidden_size) * sizeof(float));
    }
  }
  return true;
}

}  // namespace

void DecodeProgress::begin(int64_t num_allowed) {
  num_finished.store(0, std::memory_order_relaxed);
  num_allowed_.store(num_allowed, std::memory_order_relaxed);
}

bool DecodeProgress::allow(int64_t num_steps) {
  int64_t allowed = num_allowed_.load(std::memory_order_relaxed);
  while (allowed != kEnded) {
    if (num_allowed_.compare_exchange_weak(allowed, num_steps, std::memory_order_release)) return true;
  }
  return false;
}

bool DecodeProgress::may_begin(int64_t step, const std::atomic<bool>& is_stopped) {
  int64_t allowed = 0;
  wait_awake([&] {
    allowed = num_allowed_.load(std::memory_order_acquire);
    return allowed > step || is_stopped.load(std::memory_order_relaxed);
  });
  while (allowed <= step) {
    if (num_allowed_.compare_exchange_weak(allowed, kEnded, std::memory_order_acquire)) return false;
  }
  return true;
}

void run_decodes(Context& context, const DecodeRun& run, DecodeProgress& progress) {
  for (int64_t step = 0; progress.may_begin(step, context.is_stopped); ++step) {
    if (step && !advance(context, run, (step % 2 ? run.even : run.odd).sampling.tokens)) return;
    const DecodeResults& results = step % 2 ? run.odd : run.even;
    run.step->chosen = results.chosen;
    run.step->counts = results.counts;
    if (run_layers(context, run.layers, run.num_layers, *run.step, 0) < run.num_layers) return;
    run_head(context, *run.head);
    run_sampling(context, results.sampling);
    progress.num_finished.store(step + 1, std::memory_order_release);
    context.pool.notify();
  }
}

}  // namespace greenroom
