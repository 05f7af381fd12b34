// The decoder layers of a step: norm, queries, keys and values, rotary positions, attention over the cache, output
// projection, norm, router, experts, and a dense or shared expert.
#pragma once

#include "experts.h"

namespace greenroom {

enum class RopeKind : int32_t { kNone = 0, kHalves = 1, kInterleaved = 2 };

// How experts are chosen by a router's logits. The values are those of `library.py`.
enum class RouterKind : int32_t {
  kSoftMaxFirst = 0,  // soft-max over all, then the best
  kTopFirst = 1,      // the best, then soft-max over them
  kSigmoid = 2,       // sigmoids; a correction may be added for the choice, and groups of experts chosen first
};

struct Router {
  Matrix matrix;            // (experts, hidden)
  const float* bias;        // (experts) or null
  const float* correction;  // (experts) or null; added to the scores for the choice alone
  RouterKind kind;
  int32_t top_k;
  int32_t num_groups;       // of experts, of which `top_groups` are chosen by their two best; 1 is none
  int32_t top_groups;
  int32_t is_normalised;    // whether the weights are divided by their sum
  float scale;              // of the weights
};

struct LayerSpec {
  const float* input_norm;
  const float* inner_norm;
  Matrix query, key, value, output;
  const float* query_bias;   // or null, as the other three
  const float* key_bias;
  const float* value_bias;
  const float* output_bias;
  const float* query_norm;   // or null: (key_dim), or (heads * key_dim) where all heads are normed together
  const float* key_norm;
  const float* sinks;        // (heads) or null
  void* key_cache;           // (kv_heads, slots, dim), keys transposed in blocks; see attention.h
  void* value_cache;
  int64_t cache_slots;
  int64_t cache_dim;
  int64_t heads;
  int64_t kv_heads;
  int64_t key_dim;
  int64_t value_dim;
  int64_t rotary_dim;
  int64_t window;            // 0 is none
  int32_t is_chunked;
  int32_t norms_together;    // query_norm and key_norm are over all heads
  int32_t rope;              // index of the step's cosines and sines
  int32_t group;             // of block tables
  RopeKind rope_kind;
  Format cache_format;
  float norm_epsilon;
  float head_norm_epsilon;
  float scaling;
  float softcap;
  float residual_scale;      // of what attention and experts add to the hidden states
  int32_t has_router;
  int32_t has_dense;         // an expert that every token goes to: the layer's only one, or a shared one
  int32_t num_experts;
  Router router;
  ExpertShape experts;       // offsets in a slot
  ExpertShape dense;         // addresses
  Matrix dense_gate;         // (1, hidden); the dense expert's result is weighted by its sigmoid. No outputs: none
};

// Some tokens of one sequence.
struct StepSequence {
  int32_t first_row;
  int32_t num_tokens;
  int32_t first_position;
  int32_t first_block;       // in the tables of each group, where its block table begins
};

struct StepCall {
  float* hidden;                       // (tokens, hidden), the residual stream
  const StepSequence* sequences;
  const int32_t* const* block_tables;  // by group
  const float* const* cosines;         // by rope: (positions, rotary_dim / 2), one for each pair that is turned
  const float* const* sines;
  float* normed;                       // (tokens, hidden): what experts are given, for the caller
  int32_t* chosen;                     // (layers, tokens, top_k): of layers with a router, in their order
  float* weights;                      // (layers, tokens, top_k)
  const uint64_t* slots;               // (layers with a router, experts) addresses; null if experts are not all there
  int64_t* counts;                     // (layers with a router, experts): rows of each expert, for the caller
  int64_t tokens;
  int64_t num_sequences;
  int64_t hidden_size;
  int64_t most_top_k;
  int64_t most_experts;
  int32_t is_exact;
};

// Norm, attention and router of a layer. `place` is the number of the layer among those with a router.
void run_attention(Engine& engine, const LayerSpec& layer, const StepCall& step, int64_t place);

// What experts gave, `outputs (tokens * top_k, hidden)`, weighted and added to the hidden states, with the dense expert.
void finish_layer(Engine& engine, const LayerSpec& layer, const StepCall& step, int64_t place, const float* outputs);

// All layers of a step whose experts are all there.
void run_layers(Engine& engine, const LayerSpec* layers, int64_t num_layers, const StepCall& step);

// The final norm and the head: logits of some rows.
struct HeadCall {
  Matrix matrix;
  const float* bias;         // (vocabulary) or null
  const float* norm;
  const float* hidden;       // (tokens, hidden)
  const int32_t* rows;       // the first of them want logits, too
  float* normed;             // (num_rows, hidden): their normed states
  float* logits;             // (num_logits, vocabulary)
  int64_t num_rows;
  int64_t num_logits;
  int64_t hidden_size;
  float norm_epsilon;
  float scale;               // of the logits
  int32_t is_exact;
};

void run_head(Engine& engine, const HeadCall& call);

}  // namespace greenroom
