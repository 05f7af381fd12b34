// An indexer chooses the keys that each token attends to (DeepSeek Sparse Attention): those with the highest scores. A
// sliding window is an indexer that chooses the last ones.
#pragma once

#include "formats/matrix.h"
#include "layers/grouped_attention.h"
#include "layers/head_scales.h"
#include "layers/norm.h"

namespace greenroom {

// The cache has the index key of a token behind the other numbers of the token.
struct Indexer {
  Matrix query;     // (heads * dim, inputs of the attention's queries, or hidden)
  Matrix key;       // (dim, hidden)
  Matrix weights;   // (heads, hidden)
  Norm key_norm;
  Norm query_input_norm;  // of the attention's rows, if queries take these
  HeadScales head_scales;  // of queries
  int32_t* chosen;  // (tokens, top_k) positions in order, of tokens that see more; or null, for memory of the step
  int64_t heads;
  int64_t dim;
  int64_t top_k;
  RopeKind rope_kind;  // of the first numbers of queries and keys, or of the last, as many as the attention rotates
  int32_t chooses;     // otherwise `chosen` is given: null for what the last layer before it chose, and the rest is unused
  int32_t is_window;   // it takes the last `top_k` keys, and the rest is unused
  int32_t takes_hidden;  // queries take the attention's rows instead of the inputs of its queries
  int32_t rotates_last;  // the last numbers are rotated
  int32_t unused;
};

// Returns null, or what is impossible: the rest of a sentence that begins with "it has". `query_inputs` are those of the
// attention's queries, 0 if these take the rows of the attention; `rotary_dim` are the numbers that it rotates.
const char* check_indexer(const Indexer& spec, int64_t hidden_size, int64_t query_inputs, int64_t rotary_dim);

// Numbers of a token's index key.
inline int64_t index_key_size(const Indexer* spec) { return spec && spec->chooses ? spec->dim : 0; }

}  // namespace greenroom
