// Mamba (Gu and Dao 2023): a convolution of inputs, time steps, keys and queries made of its results, perhaps normed, a
// selective scan of each channel, and gates.
#pragma once

#include "layers/convolution.h"
#include "layers/layer.h"
#include "model/blocks/recurrent/projections.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
// A token's row has inputs and gates (channels each). Adapters know `select` by the number after the output's.
struct Mamba1 {
  Projections projections;
  Convolution convolution;
  Matrix select;            // (rank + 2 * state_size, channels): time steps, keys, queries
  Matrix to_steps;          // (channels, rank)
  const float* step_norm;   // (rank), (state_size), (state_size); all or none are null
  const float* key_norm;
  const float* query_norm;
  const float* step_bias;   // (channels): added before the softplus
  const float* decay;       // (state_size, channels padded): factor of the time step in the logarithm of decays, negative
  const float* direct;      // (channels): factor of the inputs in the results
  float* states;            // (rows, state_size, channels padded)
  int64_t state_size;
  float norm_epsilon;
  int32_t unused;
};
}  // extern "C"

extern const MixerOperations kMamba1;

}  // namespace greenroom
