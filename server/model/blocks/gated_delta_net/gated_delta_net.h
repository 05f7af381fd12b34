// Gated delta net (Yang et al. 2024): a convolution of queries, keys and values, normed queries and keys, a recurrence by
// the delta rule with a decay for each head, a norm of each head's result times a gate.
#pragma once

#include "layers/convolution.h"
#include "layers/layer.h"
#include "model/blocks/recurrent/projections.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
// A token's row has queries and keys (key_heads * key_dim each), values and gates (value_heads * value_dim each), betas
// and decays (value_heads each). The convolution's channels are the queries, keys and values.
struct GatedDeltaNet {
  Projections projections;
  Convolution convolution;
  const float* decay;      // (value_heads): factor of the softplus in the logarithm of decays, negative
  const float* decay_bias; // (value_heads): added before the softplus
  const float* norm;       // (value_dim)
  float* states;           // (rows, value_heads, key_dim, value_dim padded)
  int64_t key_heads;
  int64_t value_heads;     // a multiple of these
  int64_t key_dim;
  int64_t value_dim;
  float norm_epsilon;
  int32_t has_sigmoid_gates;  // instead of SiLU's
};
}  // extern "C"

extern const MixerOperations kGatedDeltaNet;

}  // namespace greenroom
