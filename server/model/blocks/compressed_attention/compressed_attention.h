// Attention to the keys of the last tokens and to compressed keys of all that came before (DeepSeek-V4). All heads share one
// key, which is also the value. A compressed key stands for a period of tokens: their keys' mean, whose weights are the
// softmax of gates over the period, number by number. Where periods overlap, a token has two series of keys and gates, and a
// compressed key is made from the first of the period before and the second of its own.
#pragma once

#include "model/blocks/grouped_attention/grouped_attention.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
// Makes compressed keys.
struct Compressor {
  Matrix key;         // (series * dim, hidden); without outputs: there are none
  Matrix gate;        // (series * dim, hidden)
  const float* bias;  // (period, series * dim), of gates
  const float* norm;  // (dim), of compressed keys
  int64_t dim;
  float epsilon;
  int32_t unused;
};

// The cache has of each token its key, then keys and gates that are compressed, and the same of index keys. A compressed key
// takes the place of the last series of its last token, which nothing else reads. Keys and what belongs to index keys are
// transposed in blocks as in token_cache.h. Between both, the keys and gates that are compressed stand token by token, so that
// a compressed key lies in one piece.
struct CompressedAttention {
  Matrix query_down;     // (query_rank, hidden)
  Matrix query;          // (heads * dim, query_rank)
  Matrix key;            // (dim, hidden)
  Matrix groups;         // (num_groups * rank, heads * dim / num_groups): each group of results has rows of its own
  Matrix output;         // (hidden, num_groups * rank)
  Compressor keys;
  Compressor index;      // of index keys; without outputs, a token attends to all compressed keys
  Matrix index_query;    // (index_heads * index.dim, query_rank)
  Matrix index_weights;  // (index_heads, hidden)
  const float* query_norm;  // (query_rank)
  const float* head_norm;   // (dim), of each head's query
  const float* key_norm;    // (dim)
  const float* sinks;       // (heads) logits that take weight but have no value; or null
  int32_t* chosen;  // (tokens, top_k) numbers of compressed keys in order, of tokens that see more; or null, for memory of
                    // the step
  void* cache;      // (slots, cache_dim), in blocks; see token_cache.h
  int64_t cache_slots;
  int64_t cache_dim;
  int64_t heads;
  int64_t dim;
  int64_t rotary_dim;  // the last numbers of queries, keys and index keys, which are rotated; results are rotated back
  int64_t num_groups;
  int64_t window;      // tokens whose own keys a token sees, itself included
  int64_t period;      // tokens of a compressed key; unused without these
  int64_t top_k;       // compressed keys that an index chooses
  int64_t index_heads;
  int32_t overlaps;    // periods do
  int32_t chooses;     // otherwise `chosen` is given
  int32_t rope;        // index of the step's cosines and sines
  int32_t group;       // index of the step's block tables
  RopeKind rope_kind;
  Format cache_format;
  float query_epsilon;
  float head_epsilon;
  float key_epsilon;
  float scaling;
};
}  // extern "C"

inline int64_t num_series(const CompressedAttention& spec) { return spec.overlaps ? 2 : 1; }

// Numbers of a token in the cache.
inline int64_t cached_size(const CompressedAttention& spec) {
  return spec.dim + 2 * (spec.keys.key.outputs + spec.index.key.outputs);
}

extern const MixerOperations kCompressedAttention;

}  // namespace greenroom
