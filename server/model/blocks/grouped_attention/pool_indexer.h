// An indexer that chooses pools of neighbouring keys for all heads (Qwen4): those with the highest scores. The score of a pool
// is the sum over index heads of the products with the normed mean of its tokens' index keys, where they are positive.
#pragma once

#include "model/blocks/grouped_attention/key_block_indexer.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
// The cache has of each token its index key, and the cosines and sines of its position behind it, in one piece. The mean of a complete pool,
// normed and rotated by the position of its first token, takes the place of the key of its last token. A token attends to all
// tokens of the chosen pools, and to those of its own pool that is not complete yet.
struct PoolIndexer {
  Matrix query;     // (heads * dim, hidden), or with the outputs of `key` behind, if that has none
  Matrix key;       // (dim, hidden)
  Norm query_norm;  // of each head
  Norm key_norm;    // of means
  void* cache;      // (slots, dim + numbers that the attention rotates)
  int32_t* chosen;  // (tokens, keys that a token attends to at most) positions in order, of tokens that see more; or null, for
                    // memory of the step
  int64_t heads;
  int64_t dim;
  int64_t pool;     // tokens of a pool
  int64_t top_k;    // pools that a token attends to
  RopeKind rope_kind;  // of the first numbers of queries and means, as many as the attention rotates
  int32_t is_given;    // `chosen` is
};
}  // extern "C"

// The first position of a token that sees more complete pools than are chosen.
inline int64_t first_sparse(const PoolIndexer& spec) { return (spec.top_k + 1) * spec.pool - 1; }

// Keys that a token attends to, at most.
inline int64_t most_chosen(const PoolIndexer& spec) { return spec.top_k * spec.pool + spec.pool - 1; }

// Returns null, or what is impossible: the rest of a sentence that begins with "it has". `rotary_dim` are the numbers that the
// attention rotates.
const char* check_pool_indexer(const PoolIndexer& spec, int64_t hidden_size, int64_t rotary_dim);

}  // namespace greenroom
