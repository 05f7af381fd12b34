// The choice of a token in each row of logits.
#pragma once

#include "context.h"

namespace greenroom {

template <typename T>
using Array = T*;  // Python passes an array of ctypes instead of an address

extern "C" {  // structures/sampling.py
// How the token of a row is chosen. The filters keep what transformers' warpers keep, in their order, except that of
// equal tokens at the edge of top-p those with the smallest ids are kept.
struct RowSampling {
  double draw;           // in [0, 1)
  double top_p;          // 1 or more keeps all
  float temperature;     // 0: the most likely token, the first of equal ones
  float log_min_p;       // negative infinity keeps all
  int32_t top_k;         // 0 keeps all
  int32_t has_masks;     // some logits may be negative infinity
};

struct SamplingCall {
  const float* logits;  // (num_rows, size)
  Array<const RowSampling> rows;
  Array<int32_t> tokens;  // -1 for a row whose logits are not finite, or allow no token
  int64_t num_rows;
  int64_t size;
  int64_t stride;       // numbers from one row to the next
};
}  // extern "C"

void run_sampling(Context& context, const SamplingCall& call);

}  // namespace greenroom
