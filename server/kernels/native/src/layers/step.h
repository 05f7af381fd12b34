// The decoder layers of a step: norm, queries, keys and values, rotary embedding, attention over the cache, output
// projection, norm, router, experts, and a dense or shared expert.
#pragma once

#include "layers/experts.h"

namespace greenroom {

enum class RopeKind : int32_t { kNone = 0, kHalves = 1, kInterleaved = 2 };

// The way to choose experts from a router's logits. The values match `structures.py`.
enum class RouterKind : int32_t {
  kSoftMaxFirst = 0,  // softmax over all, then top-k
  kTopFirst = 1,      // top-k, then softmax over these
  kSigmoid = 2,       // sigmoid; a correction may be added for the choice, and groups of experts may be chosen first
};

struct Router {
  Matrix matrix;            // (experts, hidden)
  const float* bias;        // (experts) or null
  const float* correction;  // (experts) or null; added to the scores only for the choice
  RouterKind kind;
  int32_t top_k;
  int32_t num_groups;       // groups of experts, of which `top_groups` are chosen by their two best; 1 means none
  int32_t top_groups;
  int32_t is_normalised;    // divide the weights by their sum
  float scale;              // factor of the weights
};

struct LayerSpec {
  const float* input_norm;
  const float* inner_norm;
  Matrix query, key, value, output;
  const float* query_bias;   // each of the four may be null
  const float* key_bias;
  const float* value_bias;
  const float* output_bias;
  const float* query_norm;   // or null: (key_dim), or (heads * key_dim) if one norm covers all heads
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
  int64_t window;            // 0 means none
  int32_t is_chunked;
  int32_t norms_together;    // query_norm and key_norm cover all heads
  int32_t rope;              // index of the step's cosines and sines
  int32_t group;             // index of the step's block tables
  int32_t index;             // of this layer in an adapter's layers
  RopeKind rope_kind;
  Format cache_format;
  float norm_epsilon;
  float head_norm_epsilon;
  float scaling;
  float softcap;
  float residual_scale;      // factor of what attention and experts add to the hidden states
  int32_t has_router;
  int32_t has_dense;         // an expert for every token: the layer's only one, or a shared one
  int32_t num_experts;
  Router router;
  ExpertShape experts;       // offsets in a slot
  ExpertShape dense;         // addresses
  Matrix dense_gate;         // (1, hidden); its sigmoid weights the dense expert's result. No outputs: no gate
};

// The experts of sequences that use other weights than the model's own. Set 0 is the model's own.
struct ExpertSets {
  const int32_t* set_of_sequence;      // (sequences)
  const Router* routers;               // (layers with a router, sets); one without outputs stands for the layer's own
  const int32_t* places;               // (layers with a router, sets, width): the index in `slots` of each router row
  const int32_t* numbers;              // (layers with a router, width of `slots`): the expert's number; for adapters
  int64_t num_sets;
  int64_t width;
};

// Consecutive tokens of one sequence.
struct StepSequence {
  int32_t first_row;
  int32_t num_tokens;
  int32_t first_position;
  int32_t first_block;       // start of its block table in each group's tables
};

struct StepCall {
  float* hidden;                       // (tokens, hidden), the residual stream
  const StepSequence* sequences;
  const int32_t* const* block_tables;  // by group
  const float* const* cosines;         // by rope: (positions, rotary_dim / 2), one per pair
  const float* const* sines;
  float* normed;                       // (tokens, hidden): the experts' input, for the caller
  int32_t* chosen;                     // (layers with a router, tokens, top_k)
  float* weights;                      // (layers, tokens, top_k)
  const uint64_t* slots;               // (layers with a router, experts) addresses; null if not all experts are loaded
  int64_t* counts;                     // (layers with a router, experts): rows of each expert, for the caller
  const ExpertSets* sets;              // null if all sequences use the model's own weights
  int64_t tokens;
  int64_t num_sequences;
  int64_t hidden_size;
  int64_t most_top_k;
  int64_t most_experts;                // width of `slots` and `counts`
  const LoraStep* lora;                // null for a step without adapters
  int32_t is_exact;
};

// Runs norm and attention of a layer, and adds its results to the hidden states.
void run_attention(Engine& engine, const LayerSpec& layer, const StepCall& step);

// Adds the experts' weighted `outputs (tokens * top_k, hidden)` and the dense expert's to the hidden states.
// `place` is the layer's index among those with a router.
void finish_layer(Engine& engine, const LayerSpec& layer, const StepCall& step, int64_t place, const float* outputs);

// Runs all layers of a step whose experts are all loaded.
void run_layers(Engine& engine, const LayerSpec* layers, int64_t num_layers, const StepCall& step);

// Runs the final norm and the head: computes the logits of some rows.
struct HeadCall {
  Matrix matrix;
  const float* bias;         // (vocabulary) or null
  const float* norm;
  const float* hidden;       // (tokens, hidden)
  const int32_t* rows;       // the first `num_logits` also get logits
  float* normed;             // (num_rows, hidden): their states after the norm
  float* logits;             // (num_logits, vocabulary)
  int64_t num_rows;
  int64_t num_logits;
  int64_t hidden_size;
  float norm_epsilon;
  float scale;               // factor of the logits
  int32_t is_exact;
  const LoraStep* lora;      // null for a step without adapters
};

void run_head(Engine& engine, const HeadCall& call);

}  // namespace greenroom
