// Attention of heads that share one latent per token (multi-head latent attention), for some tokens of one sequence.
#pragma once

#include "model/blocks/grouped_attention/attention.h"

namespace greenroom {

// A latent's first `value_dim` numbers are also its value. The cache has `dim` numbers per token: block `b` begins at
// b * kCacheBlock * dim and is transposed, the first number of all its tokens, then the second, and so on.
struct LatentAttend {
  const float* query;     // (tokens, heads, key_dim); tokens are `query_stride` apart, heads are contiguous
  int64_t query_stride;
  const void* latents;
  const int32_t* blocks;  // the sequence's block table
  const int32_t* chosen;  // positions of the keys that one token attends to, in order; null for all up to its own
  float* scratch;         // `LatentScratch::size` floats, aligned to 64 bytes
  int64_t first_position;  // or the number of chosen keys less one
  int64_t tokens;
  int64_t heads;
  int64_t dim;
  int64_t key_dim;
  int64_t value_dim;
  Format format;
  int32_t is_exact;       // queries and weights are never rounded
  float scaling;
};

inline constexpr int64_t kMostLatentRows = 128;   // tokens * heads
inline constexpr int64_t kLatentScratchRows = 8;  // rows that take a part of the keys together, at most

// The parts of the scratch memory, in floats.
struct LatentScratch {
  explicit LatentScratch(int64_t key_dim)
      : query_stride(round_up(key_dim, 32)),
        weights(kLatentScratchRows * kPartKeys),
        queries(weights + kLatentScratchRows * kPartKeys / 2),
        gathered(queries + kMostLatentRows * query_stride / 2),
        size(gathered + kPartKeys * key_dim) {}

  int64_t query_stride;  // numbers of a query in bfloat16
  int64_t scores = 0;
  int64_t weights, queries;  // in bfloat16
  int64_t gathered;          // chosen keys of a part
  int64_t size;
};

}  // namespace greenroom
