// Steps of one new token of each sequence that run one after another, each on the tokens that the one before has chosen.
#pragma once

#include <atomic>

#include "layers/head.h"
#include "layers/layer.h"
#include "sampling/sampling.h"

namespace greenroom {

extern "C" {  // structures/decode_run.py
// What a step leaves for the caller. The step after the next writes here again.
struct DecodeResults {
  SamplingCall sampling;
  int32_t* chosen;  // as those of `StepCall`
  int64_t* counts;
};

struct DecodeRun {
  const LayerSpec* layers;
  int64_t num_layers;
  StepCall* step;           // of the first step; of the later ones as they begin
  StepSequence* sequences;  // those of `step`
  int32_t* token_ids;       // those of `step`
  const HeadCall* head;
  const Matrix* embedding;  // whose rows can be read (`read_row`)
  Norm embedding_norm;      // of its rows, before the scale
  DecodeResults even;       // of the steps with these numbers, from 0
  DecodeResults odd;
  int64_t num_streams;      // rows of a token's residual stream, or 0
  float embedding_scale;
  int32_t unused;
};
}  // extern "C"

// How far a run is, for the thread that runs it and its caller.
class DecodeProgress {
 public:
  // Begins a run that may take so many steps.
  void begin(int64_t num_allowed);

  // Lets the run take so many steps; returns false if it has ended before.
  bool allow(int64_t num_steps);

  // Returns whether a step may begin, after waiting a while for that. If it may not, the run has ended.
  bool may_begin(int64_t step, const std::atomic<bool>& is_stopped);

  std::atomic<int64_t> num_finished{0};

 private:
  static constexpr int64_t kEnded = -1;

  std::atomic<int64_t> num_allowed_{0};
};

// Runs steps until one may not begin, `context.is_stopped` is set, or a row allows no token.
void run_decodes(Context& context, const DecodeRun& run, DecodeProgress& progress);

}  // namespace greenroom
