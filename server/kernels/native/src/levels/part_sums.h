// Sums of attention over parts of the keys. The parts of a sequence begin at multiples of `kPartKeys` and are added in
// their order, so that threads may take different parts of one sequence without changing a bit.
#pragma once

#include "formats/matrix.h"

namespace greenroom {

inline constexpr int64_t kPartKeys = 512;  // a multiple of kSpanKeys

// Of each row, one token and head: the highest score, the sum of weights, and the sums of weighted values.
struct PartSums {
  PartSums(float* memory, int64_t rows, int64_t value_dim)
      : rows(rows),
        stride(round_up(value_dim, 16)),
        most(memory),
        sums(memory + rows),
        totals(memory + round_up(2 * rows, 16)) {}

  // The floats of the sums of `rows`.
  static int64_t size(int64_t rows, int64_t value_dim) { return round_up(2 * rows, 16) + rows * round_up(value_dim, 16); }

  int64_t rows, stride;
  float *most, *sums, *totals;  // (rows), (rows), (rows, stride)
};

// What becomes of the sums of all parts.
struct Attended {
  float* output;  // (tokens, heads, value_dim); tokens are `stride` apart, heads are contiguous
  int64_t stride;
  int64_t tokens;
  int64_t heads;
  int64_t value_dim;
  const float* sinks;  // (heads) logits that take weight but have no value; or null
  int64_t sinks_stride = 0;  // from token to token; 0: all have the same
};

}  // namespace greenroom
