// An indexer that chooses blocks of keys for each head of keys (MiniMax M3): those that hold the keys with the highest
// scores. The score of a key is the product of the head's index query with the index key.
#pragma once

#include <algorithm>

#include "formats/matrix.h"
#include "layers/norm.h"
#include "layers/step.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
// The pairs of a head's numbers that rotary embeddings rotate.
enum class RopeKind : int32_t { kNone = 0, kHalves = 1, kInterleaved = 2 };

struct KeyBlockIndexer {
  Matrix query;        // (heads * dim, hidden)
  Matrix key;          // (dim, hidden)
  Norm query_norm;     // of each head
  Norm key_norm;
  void* cache;         // (slots, dim) index keys, in blocks like those of latents
  int32_t* chosen;     // (tokens, heads, top_k) for the numbers of chosen blocks, in order, in a trial whose tokens attend
                       // to all keys that they see; otherwise null
  int64_t heads;       // as many as those of keys
  int64_t dim;
  int64_t block_size;  // keys of a block; in steps a multiple of kCacheBlock
  int64_t top_k;       // blocks that a head attends to
  int64_t num_local;   // the last blocks that a token sees, which are chosen first
  RopeKind rope_kind;  // of the first numbers of queries and keys, as many as the attention rotates
  int32_t unused;
};
}  // extern "C"

// The first position of a token that sees more blocks than are chosen.
inline int64_t first_sparse(const KeyBlockIndexer& spec) { return spec.top_k * spec.block_size; }

// The most keys that a token of a step sees.
inline int64_t most_keys(const StepCall& step) {
  int64_t most = 0;
  for (const StepSequence* each = step.sequences; each < step.sequences + step.num_sequences; ++each) {
    most = std::max<int64_t>(most, each->first_position + each->num_tokens);
  }
  return most;
}

// Returns null, or what is impossible: the rest of a sentence that begins with "it has". `kv_heads` and `rotary_dim` are the
// attention's heads of keys, and the numbers that it rotates.
const char* check_key_block_indexer(const KeyBlockIndexer& spec, int64_t hidden_size, int64_t kv_heads, int64_t rotary_dim);

}  // namespace greenroom
