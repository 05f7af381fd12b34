// Attention for some tokens of one sequence, over the query heads that share a key head.
#pragma once

#include "levels/part_sums.h"
#include "sizes.h"

namespace greenroom {

inline constexpr int kSpanKeys = 64;    // keys processed at a time; a multiple of kCacheBlock

// A key head's cache has `dim` numbers per token for keys and as many for values. Block `b` of keys begins at
// b * kCacheBlock * dim and is transposed: the first number of all its tokens, then the second, and so on. Values are
// stored token by token.
struct Attention {
  const float* query;  // (tokens, heads, key_dim); tokens are `query_stride` apart, heads are contiguous
  int64_t query_stride;
  const void* keys;
  const void* values;
  const int32_t* blocks;  // the sequence's block table
  const int32_t* newest;  // (tokens) last key that each attends to; null if that is its own
  float* scratch;         // `attention_scratch(key_dim)` floats, aligned to 64 bytes
  int64_t first_position;
  int64_t tokens;
  int64_t heads;
  int64_t dim;
  int64_t key_dim;
  int64_t value_dim;
  int64_t window;         // keys that a token attends to, its own included; 0 means all
  int32_t is_chunked;     // a token attends to its own chunk of `window` keys instead of the last ones
  Format format;
  int32_t is_exact;       // queries and weights are never rounded
  float scaling;
  float softcap;          // 0 means none
  const float* profile_weights;  // (tokens, heads, num_profiles), as far apart as queries; null for no biases of scores
  const float* profiles;  // (num_profiles, extent + 2 * kCacheBlock): biases by distance, the furthest first, zeros around
  int64_t num_profiles;
  int64_t extent;         // distances from a token back to a key that have biases; the first is that to its own
};

// The first and the last key that a token attends to. (Static: each level compiles its own.)
static inline int64_t oldest_seen(const Attention& a, int64_t token) {
  const int64_t position = a.first_position + token;
  if (!a.window) return 0;
  const int64_t oldest = a.is_chunked ? position / a.window * a.window : position - a.window + 1;
  return oldest < 0 ? 0 : oldest;
}

static inline int64_t newest_seen(const Attention& a, int64_t token) {
  return a.newest ? a.newest[token] : a.first_position + token;
}

// The last key that any of the tokens attends to.
static inline int64_t last_seen(const Attention& a) {
  int64_t last = newest_seen(a, 0);
  for (int64_t token = 1; token < a.tokens; ++token) last = newest_seen(a, token) > last ? newest_seen(a, token) : last;
  return last;
}

inline constexpr int64_t kMostQueryRows = 8;  // rows with sums in registers together, at any level

// Scores of a part in float32, and weights and queries in bfloat16.
static inline int64_t attention_scratch(int64_t key_dim) {
  return kMostQueryRows * (kPartKeys + kPartKeys / 2 + round_up(key_dim, 32) / 2);
}

}  // namespace greenroom
