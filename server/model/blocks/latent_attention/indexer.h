// An indexer chooses the keys that each token attends to (DeepSeek Sparse Attention): those with the highest scores. A
// sliding window is an indexer that chooses the last ones.
#pragma once

#include "formats/matrix.h"
#include "layers/norm.h"
#include "model/blocks/grouped_attention/grouped_attention.h"
#include "model/blocks/latent_attention/head_scales.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
// The cache has the index key of a token behind the other numbers of the token. An indexer with pools chooses among means of
// the keys of neighbouring tokens, weighted by gates that the cache has behind each key; the mean of a complete pool takes the
// place of its last token's key. A token attends to all tokens of the chosen pools, and to those of its own pool that is
// not complete yet.
struct Indexer {
  Matrix query;     // (heads * dim, inputs of the attention's queries, or hidden)
  Matrix key;       // (dim, hidden)
  Matrix weights;   // (heads, hidden)
  Matrix pool_gate;  // (dim, hidden): with `pool_bias`, of whose softmax over a pool's tokens each number's weights are
  const float* pool_bias;  // (pool, dim)
  Norm key_norm;
  Norm query_input_norm;  // of the attention's rows, if queries take these
  HeadScales head_scales;  // of queries
  int32_t* chosen;  // (tokens, top_k) positions in order, of tokens that see more; or null, for memory of the step
  int64_t heads;
  int64_t dim;
  int64_t top_k;       // keys of chosen pools, if it has pools
  RopeKind rope_kind;  // of the first numbers of queries and keys, or of the last, as many as the attention rotates
  int32_t chooses;     // otherwise `chosen` is given: null for what the last layer before it chose, and the rest is unused
  int32_t is_window;   // it takes the last `top_k` keys, and the rest is unused
  int32_t takes_hidden;  // queries take the attention's rows instead of the inputs of its queries
  int32_t rotates_last;  // the last numbers are rotated
  int32_t pool;          // tokens of a pool; 0 without pools
};
}  // extern "C"

// Returns null, or what is impossible: the rest of a sentence that begins with "it has". `query_inputs` are those of the
// attention's queries, 0 if these take the rows of the attention; `rotary_dim` are the numbers that it rotates.
const char* check_indexer(const Indexer& spec, int64_t hidden_size, int64_t query_inputs, int64_t rotary_dim);

// Numbers of a token's index key.
inline int64_t index_key_size(const Indexer* spec) {
  return spec && spec->chooses ? spec->dim * (spec->pool ? 2 : 1) : 0;
}

// Keys that a token attends to, at most.
inline int64_t most_chosen(const Indexer& spec) { return spec.top_k + (spec.pool ? spec.pool - 1 : 0); }

// Returns true if a token at a position attends to all that it sees.
inline bool sees_all(const Indexer& spec, int64_t position) {
  const int64_t keys = position + 1;
  return (spec.pool ? keys / spec.pool * spec.pool : keys) <= spec.top_k;
}

}  // namespace greenroom
