// Attention for some tokens of one sequence, over the query heads that share a key head.
#pragma once

#include "formats/matrix.h"

namespace greenroom {

inline constexpr int kCacheBlock = 16;  // tokens per block of keys in the cache
inline constexpr int kSpanKeys = 64;    // keys processed at a time; a multiple of kCacheBlock

// A key head's cache has `dim` numbers per token for keys and as many for values. Block `b` of keys begins at
// b * kCacheBlock * dim and is transposed: the first number of all its tokens, then the second, and so on. Values are
// stored token by token.
struct Attention {
  const float* query;  // (tokens, heads, key_dim); tokens are `query_stride` apart, heads are contiguous
  float* output;       // (tokens, heads, value_dim); tokens are `output_stride` apart
  int64_t query_stride;
  int64_t output_stride;
  const void* keys;
  const void* values;
  const int32_t* blocks;  // the sequence's block table
  const float* sinks;     // (heads) logits that take weight but have no value; or null
  const int32_t* newest;  // (tokens) last key that each attends to; null if that is its own
  float* scratch;         // `attention_scratch` floats
  int64_t first_position;
  int64_t tokens;
  int64_t heads;
  int64_t dim;
  int64_t key_dim;
  int64_t value_dim;
  int64_t window;         // keys that a token attends to, its own included; 0 means all
  int32_t is_chunked;     // a token attends to its own chunk of `window` keys instead of the last ones
  Format format;
  float scaling;
  float softcap;          // 0 means none
};

inline constexpr int kMostQueryRows = 4;

inline int64_t attention_scratch(int64_t value_dim) {
  return kMostQueryRows * (round_up(value_dim, 16) + kSpanKeys);
}

}  // namespace greenroom
