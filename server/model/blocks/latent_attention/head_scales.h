// Factors of queries by their position and head.
#pragma once

#include <cmath>
#include <cstdint>

namespace greenroom {

extern "C" {  // structures/mixers.py
// The factor of a head at a position is `scale * log(position + 1) + offset`; without scales it is 1.
struct HeadScales {
  const float* scales;   // (heads) or null
  const float* offsets;  // (heads)
};
}  // extern "C"

// Multiplies a head's query by its factor.
inline void scale_head(const HeadScales& by, int64_t head, int64_t position, float* query, int64_t size) {
  if (!by.scales) return;
  const float factor = by.scales[head] * std::log(static_cast<float>(position + 1)) + by.offsets[head];
  for (int64_t d = 0; d < size; ++d) query[d] *= factor;
}

}  // namespace greenroom
