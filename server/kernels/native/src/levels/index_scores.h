// Scores of keys by an indexer's heads, for one token of a sequence.
#pragma once

#include "model/blocks/grouped_attention/attention.h"

namespace greenroom {

// A key's score is the sum over heads of a head's weight times its product with the key, or zero if that is negative; or
// heads have scores of their own.
struct IndexScores {
  const float* query;     // (heads, dim)
  const float* weights;   // (heads), unused if heads have scores of their own
  float* scores;          // (blocks * kCacheBlock), of the blocks from the first on
  int64_t head_stride;    // if not 0, each head has scores of its own, so far apart, which are its products with keys
  const void* keys;       // in blocks like those of latents, whose tokens are `stride` numbers: its first one of block 0
  const int32_t* blocks;  // the sequence's block table, from the first block on
  float* scratch;         // `index_scratch` floats, aligned to 64 bytes
  int64_t num_blocks;
  int64_t heads;
  int64_t dim;
  int64_t stride;
  Format format;
  int32_t is_exact;       // queries are never rounded
};

inline constexpr int kScoreBlocks = 2;  // of keys that are scored together, at most

inline int64_t index_query_stride(int64_t dim) { return round_up(dim, 32); }

// Queries, and the keys of some blocks, in pairs of bfloat16.
inline int64_t index_scratch(int64_t heads, int64_t dim) {
  return index_query_stride(dim) / 2 * (round_up(heads, 2) + kScoreBlocks * kCacheBlock);
}

}  // namespace greenroom
