// A cache of one row of numbers a token, in blocks of `kCacheBlock` tokens that are transposed: the first number of all
// tokens of a block, then the second, and so on.
#pragma once

#include "layers/step.h"

namespace greenroom {

struct TokenCache {
  void* data;     // (slots, dim)
  int64_t dim;    // numbers of a token
  Format format;  // plain
  int32_t group;  // index of the step's block tables
};

// Writes some numbers of a token of a step, `first` numbers behind its first one.
void write_token(const Level& level, const TokenCache& cache, const StepCall& step, int64_t token, int64_t first,
                 const float* numbers, int64_t count);

// The number `first` of the token at a position of a sequence; the next one of this token is `kCacheBlock` numbers behind.
inline const char* token_in(const TokenCache& cache, const StepCall& step, const StepSequence& sequence, int64_t position,
                            int64_t first) {
  const int64_t block = step.block_tables[cache.group][sequence.first_block + position / kCacheBlock];
  const int64_t place = (block * cache.dim + first) * kCacheBlock + position % kCacheBlock;
  return static_cast<const char*>(cache.data) + place * bytes_of(cache.format);
}

}  // namespace greenroom
