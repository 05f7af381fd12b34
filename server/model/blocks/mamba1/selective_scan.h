// The selective scan of Mamba-1: a state of each channel, whose numbers decay one by one.
#pragma once

#include <cstdint>

namespace greenroom {

// The selective scan of some channels of one sequence, each with a state of some numbers that decay one by one. For each
// token, with its `step` and `value` of a channel, and its `key (states)` and `query (states)` for all of them:
//   state = exp(step * decay) * state + step * value * key;  output = query * state + direct * value
// Tokens come one after the other, so chunks change no bit.
struct SelectiveScan {
  float* state;         // (states, `state_stride`)
  const float* decay;   // (states, `state_stride`), negative
  const float* direct;  // (channels)
  const float* step;    // (tokens, channels), `value_stride` apart, as `value` and `output`
  const float* value;
  const float* key;     // (tokens, states), `key_stride` apart
  const float* query;
  float* output;
  int64_t tokens;
  int64_t states;
  int64_t channels;
  int64_t state_stride;
  int64_t value_stride;
  int64_t key_stride;
};

}  // namespace greenroom
