// The rows of a step, the arrays that its layers share, and what the weights of its sequences change.
#pragma once

#include "context.h"

namespace greenroom {

struct Router;

extern "C" {  // structures/layers.py
// The experts of sequences that use other weights than the model's own. Set 0 is the model's own.
struct ExpertSets {
  const int32_t* set_of_sequence;      // (sequences)
  const Router* routers;               // (layers with a router, sets); one without outputs stands for the layer's own
  const int32_t* places;               // (layers with a router, sets, width): the index in `slots` of each router row
  const int32_t* numbers;              // (layers with a router, width of `slots`): the expert's number; for adapters
  int64_t num_sets;
  int64_t width;
};

// The choices of routers that were applied one layer early, for experts to be read early.
struct StepPredictions {
  int32_t* chosen;             // (layers with a router, tokens, top_k), as in `StepCall`; none of the first layer
  const uint32_t* parts;       // (layers with a router): bit i is set if experts of part i are to be in memory
  int64_t num_parts;           // of a layer's distinct predictions, the likeliest first
};

// Consecutive tokens of one sequence.
struct StepSequence {
  int32_t first_row;
  int32_t num_tokens;
  int32_t first_position;
  int32_t first_block;       // start of its block table in each group's tables
  int32_t state_from;        // row that holds its recurrent states; -1 at the beginning of a sequence
  int32_t state_to;          // another row, for the states after these tokens
};

struct StepCall {
  float* hidden;                       // (tokens, hidden), the residual stream
  const StepSequence* sequences;
  const int32_t* const* block_tables;  // by group
  const float* const* cosines;         // by rope: (positions, rotary_dim / 2), one per pair; or (tokens, ...)
  const float* const* sines;
  float* normed;                       // (tokens, hidden): the experts' input, for the caller
  int32_t* chosen;                     // (layers with a router, tokens, top_k); the caller may set some to -1, for no expert
  float* weights;                      // (layers, tokens, top_k)
  const uint64_t* slots;               // (layers with a router, experts) addresses; 0 of an expert that is not loaded; or null
  int64_t* counts;                     // (layers with a router, experts): rows of each expert, for the caller
  const ExpertSets* sets;              // null if all sequences use the model's own weights
  int64_t tokens;
  int64_t num_sequences;
  int64_t hidden_size;
  int64_t most_top_k;
  int64_t most_experts;                // width of `slots` and `counts`
  const StepPredictions* predictions;  // null for a step that predicts nothing
  const LoraStep* lora;                // null for a step without adapters
  const float* query_scales;           // (positions): factors of queries in layers that scale them
  float* streams;                      // (tokens, streams, hidden), the residual stream of models with several rows a token,
                                       // whose parts add their results to `hidden`; or null
  const int32_t* token_ids;            // (tokens), which routers with a table choose by
  // What later layers, or the end of a layer that has chosen experts, take of each token. Null for the kernels' own memory, which
  // the next step uses too.
  float* deferred;                     // (tokens, hidden): sums of experts that a later layer adds
  int32_t* chosen_keys;                // (tokens, most_chosen): of an indexer, for later layers
  float* projected;                    // (tokens, width): rows that experts take (`Mixture::input_projection`)
  float* shares;                       // (tokens, num_shared): weights of shared experts (`Router::num_shared`)
  float* stream_weights;               // (tokens, streams + streams * streams): of results and from row to row (`StreamMix`)
  float* router_rows;                  // (tokens, width): what routers with an MLP carry to the next layer (`RouterMlp`)
  const int32_t* newest;               // (tokens) last position that each sees in layers that look ahead; or null
  int32_t has_own_angles;              // cosines and sines are those of each token instead of each position
  int32_t is_exact;
};
}  // extern "C"

inline constexpr int32_t kMostQueries = 3;  // rows that a mixer takes of a token: for queries, for keys and for values

// The rows that a mixer takes for keys and for values, (num_rows - 1, tokens, hidden), if they are other ones than `normed`.
inline float* more_rows_of(Context& context, const StepCall& step, int64_t num_rows) {
  return context.more_rows.reserve<float>((num_rows - 1) * step.tokens * step.hidden_size * 4);
}

// The sequence of a row.
inline const StepSequence& sequence_of(const StepCall& step, int64_t row) {
  const StepSequence* sequence = step.sequences;
  while (row >= sequence->first_row + sequence->num_tokens) ++sequence;
  return *sequence;
}


inline int64_t position_of(const StepSequence& sequence, int64_t row) {
  return sequence.first_position + row - sequence.first_row;
}

}  // namespace greenroom
