// Mamba-2 (Dao and Gu 2024): a convolution of inputs and of what they are written and read by, a recurrence with a decay
// for each head, a direct part of the inputs, and a norm of the gated results.
#pragma once

#include "layers/convolution.h"
#include "layers/layer.h"
#include "model/blocks/recurrent/projections.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
// A token's row has gates and inputs (heads * head_dim each), what these are written and read by (groups * state_size
// each), and time steps (heads). The convolution's channels are all but gates and time steps.
struct Mamba2 {
  Projections projections;
  Convolution convolution;
  const float* decay;      // (heads): factor of the time step in the logarithm of decays, negative
  const float* step_bias;  // (heads): added before the softplus
  const float* direct;     // (heads): factor of the inputs in the results
  const float* norm;       // (heads * head_dim)
  float* states;           // (rows, heads, state_size, head_dim padded)
  int64_t heads;
  int64_t groups;          // heads share keys and queries in groups
  int64_t head_dim;
  int64_t state_size;
  int64_t norm_size;       // numbers that are normed together
  float norm_epsilon;
  float least_step;
  float longest_step;
  int32_t unused;
};
}  // extern "C"

extern const MixerOperations kMamba2;

}  // namespace greenroom
