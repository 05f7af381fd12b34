// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): the cache keeps one latent a token, from which
// all heads' keys and values are made. Their expansion is absorbed: queries are multiplied by that of keys, and the
// weighted latents by that of values.
#pragma once

#include "model/blocks/grouped_attention/grouped_attention.h"
#include "model/blocks/latent_attention/indexer.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
struct LatentAttention {
  Matrix query_down;         // (query_rank, hidden); without outputs if `query` takes the hidden states
  Matrix query;              // (heads * (nope_dim + rope_dim), query_rank or hidden); or more of both, see below
  Matrix latent;             // (rank + rope_dim, hidden); the last numbers are the part of keys that may be rotated;
                             // without outputs if it takes the latents of `source`
  Matrix to_keys;            // (heads * rank, nope_dim), plain, or with complete blocks of outputs
  Matrix to_values;          // (heads * value_dim, rank), the same
  Matrix output;             // (hidden, heads * value_dim)
  Matrix gate;               // (heads or heads * value_dim, hidden): the sigmoid of each multiplies a head's result, or a
                             // number of it; or without outputs
  const float* query_down_bias;  // each of the five may be null
  const float* query_bias;
  const float* latent_bias;
  const float* output_bias;
  const float* gate_bias;
  const float* query_norm;   // (query_rank), or null
  const float* latent_norm;  // (rank)
  const float* rope_norm;    // (rope_dim), of the part of keys that may be rotated; or null
  const float* sinks;        // (heads) logits that take weight but have no value; or null
  HeadScales head_scales;    // of queries
  const Indexer* indexer;    // chooses the keys that a token attends to; or null
  void* cache;               // (slots, dim), in blocks; see latents.h
  const void* source;        // cache of the layer before it whose latents it takes, in the same blocks; or null
  int64_t source_dim;        // numbers of a token there
  int64_t cache_slots;
  int64_t cache_dim;
  int64_t heads;
  int64_t rank;
  int64_t nope_dim;          // numbers of a head's query that are not rotated
  int64_t rope_dim;          // those after them; may be 0
  int64_t rotary_dim;        // the first of these, if there are rotary positions
  int64_t value_dim;
  int32_t rope;              // index of the step's cosines and sines
  int32_t group;             // index of the step's block tables
  int32_t scales_queries;    // by the step's factor of their position
  int32_t takes_raw;         // behind its normed rows, `query` takes the outputs of `query_down` as they are
  int32_t has_gates_in_query;  // `query` has value_dim gates behind the query of each head
  RopeKind rope_kind;
  Format cache_format;
  float query_norm_epsilon;
  float latent_norm_epsilon;  // of both norms
  float scaling;
};
}  // extern "C"

// Writes some numbers of a token to the cache, `first` numbers behind its first one.
void write_latent(const Level& level, const LatentAttention& spec, const StepCall& step, int64_t token, int64_t first,
                  const float* numbers, int64_t count);

extern const MixerOperations kLatentAttention;

}  // namespace greenroom
