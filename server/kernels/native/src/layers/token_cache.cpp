#include "layers/token_cache.h"

#include <algorithm>
#include <cstring>

namespace greenroom {

void write_token(const Level& level, const TokenCache& cache, const StepCall& step, int64_t token, int64_t first,
                 const float* numbers, int64_t count) {
  const StepSequence& sequence = sequence_of(step, token);
  char* target = const_cast<char*>(token_in(cache, step, sequence, position_of(sequence, token), first));
  const int64_t bytes = bytes_of(cache.format);
  constexpr int64_t kPiece = 64;
  alignas(64) char narrowed[kPiece * 4];
  for (int64_t d = 0; d < count; d += kPiece) {
    const int64_t size = std::min(kPiece, count - d);
    level.narrow(numbers + d, cache.format, narrowed, size);
    for (int64_t i = 0; i < size; ++i) {
      std::memcpy(target + (d + i) * kCacheBlock * bytes, narrowed + i * bytes, static_cast<size_t>(bytes));
    }
  }
}

}  // namespace greenroom
