// A linear recurrence of one head: a state of keys by values, which decays, takes in a token, and is read.
#pragma once

#include <cstdint>

#include "sizes.h"

namespace greenroom {

// For each token, with its `key`, `query` and `decay (keys)`, and its `value (values)`:
//   state = decay * state + key x change;  output = query * state
// where `change` is the value, or beta * (value - key * (decay * state)) by the delta rule. Tokens come one after the
// other, and each number of an output is a sum in the order of the keys, so chunks change no bit.
struct Recurrence {
  float* state;         // (keys, round_up(values, kStateLanes)); the padding is zero
  const float* before;  // the state before the first token, which may be the same memory
  const float* key;
  const float* query;
  const float* decay;
  const float* decayed_key;  // key * decay, for the delta rule
  const float* value;
  const float* beta;         // (tokens), or null: no delta rule
  float* output;             // (tokens, values), `output_stride` apart
  int64_t tokens;
  int64_t keys;
  int64_t values;
  int64_t key_stride;        // from one token's key, query, decay and decayed key to the next
  int64_t value_stride;
  int64_t output_stride;
};

}  // namespace greenroom
