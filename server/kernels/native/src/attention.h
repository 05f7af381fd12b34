// Attention of some tokens of one sequence, for the query heads that share a key head.
#pragma once

#include "matrix.h"

namespace greenroom {

inline constexpr int kCacheBlock = 16;  // tokens whose keys lie together in the cache
inline constexpr int kSpanKeys = 64;    // keys that are attended to at once; a multiple of kCacheBlock

// A key head's cache has `dim` numbers a token for keys and as many for values. Block `b` of keys begins at
// b * kCacheBlock * dim and is transposed: the first number of all its tokens, then the second, and so on. Values are
// token after token.
struct Attention {
  const float* query;  // (tokens, heads, key_dim): tokens `query_stride` apart, heads one after the other
  float* output;       // (tokens, heads, value_dim): tokens `output_stride` apart
  int64_t query_stride;
  int64_t output_stride;
  const void* keys;
  const void* values;
  const int32_t* blocks;  // of the sequence's tokens
  const float* sinks;     // (heads) a logit that takes weight and gives no value; or null
  float* scratch;         // of `attention_scratch` floats
  int64_t first_position;
  int64_t tokens;
  int64_t heads;
  int64_t dim;
  int64_t key_dim;
  int64_t value_dim;
  int64_t window;         // keys that a token sees, its own included; 0 is all
  int32_t is_chunked;     // a token sees its own chunk of so many keys instead of the last ones
  Format format;
  float scaling;
  float softcap;          // 0 is none
};

inline constexpr int kMostQueryRows = 4;

inline int64_t attention_scratch(int64_t value_dim) {
  return kMostQueryRows * (round_up(value_dim, 16) + kSpanKeys);
}

}  // namespace greenroom
