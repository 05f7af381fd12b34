// Grouped-query attention: queries, keys and values, norms of heads, rotary embedding, attention over the cache, gates of
// its results, output projection.
#pragma once

#include "layers/convolution.h"
#include "layers/layer.h"
#include "model/blocks/grouped_attention/key_block_indexer.h"
#include "model/blocks/grouped_attention/head_experts.h"
#include "model/blocks/grouped_attention/head_mixing.h"
#include "model/blocks/grouped_attention/pool_indexer.h"
#include "model/blocks/grouped_attention/relative_biases.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
// The function of the gates that multiply results of attention.
enum class GateKind : int32_t { kNone = 0, kSigmoid = 1, kSoftplus = 2 };

struct GroupedAttention {
  Matrix query, key, output;
  Matrix value;              // no outputs: values are the keys before norm and rotation
  Matrix delayed;            // values behind those of `value`, which a convolution takes from the token before
  Matrix gate;               // (heads * value_dim or heads, hidden), for gates that `query` does not hold
  Matrix sink;               // (heads, hidden), for sinks of each token
  Matrix key_taps;           // (kv_heads * width, hidden), what a token adds to its taps of the convolutions, the newest first
  Matrix value_taps;
  const float* query_bias;   // each of the five may be null
  const float* key_bias;
  const float* value_bias;
  const float* output_bias;
  const float* gate_bias;
  const float* query_norm;   // or null: (key_dim), or (heads * key_dim) if one norm covers all heads
  const float* key_norm;
  const float* value_norm;   // (value_dim) or null
  const float* result_norm;  // (value_dim) of the results of each head, before gates; or null
  const float* sinks;        // (heads) or null
  const float* query_scales; // (heads * key_dim), factors before the limit of norms; or null
  const float* key_scales;   // (kv_heads * key_dim) or null
  const KeyBlockIndexer* indexer;  // chooses blocks of the keys that a token sees; or null
  const PoolIndexer* pools;     // chooses pools of these; or null
  const RelativeBiases* relative;        // biases of scores by distance; or null
  const HeadExperts* experts;            // make queries and the output; then `query` has keys and values alone; or null
  const Convolution* key_convolution;    // of keys before their norm; or null
  const Convolution* value_convolution;  // of values; or null
  const HeadMixing* mixing;              // of the last queries and all keys; or null
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
  int32_t norms_rotated;     // query_norm and key_norm follow the rotary embedding
  int32_t scales_queries;    // by the step's factor of their position
  int32_t looks_ahead;       // tokens see as far as the step says
  int32_t has_gates_in_query;  // `query` has gates after the queries of each head
  int32_t has_keys_in_query;   // `query` has the outputs of `key` and `value`, too, which have none, behind those of queries
  int32_t has_own_inputs;      // keys and values take other rows than queries (`more_rows_of`)
  int32_t rope;              // index of the step's cosines and sines
  int32_t group;             // index of the step's block tables
  RopeKind rope_kind;
  GateKind gate_kind;
  Format cache_format;
  float head_norm_epsilon;
  float value_scale;         // factor of values
  float scaling;
  float softcap;
  float norm_limit;          // largest norm of the queries and keys of a head; 0: any
  float taps_scale;          // factor of what tokens add to taps
  float clip;                // largest number of queries, keys and values after norms, before rotations; 0: any
};
}  // extern "C"

extern const MixerOperations kGroupedAttention;

}  // namespace greenroom
