// Kimi delta attention (arXiv 2510.26692): a gated delta net with a decay for each number of a head's keys.
#pragma once

#include "layers/convolution.h"
#include "layers/layer.h"
#include "model/blocks/recurrent/projections.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
// A token's row has queries, keys, values, gates and decays (heads * head_dim each), and betas (heads). The convolution's
// channels are the queries, keys and values.
struct KimiDeltaAttention {
  Projections projections;
  Convolution convolution;
  const float* decay;       // (heads): factor of the softplus in the logarithm of decays, negative
  const float* decay_bias;  // (heads * head_dim): added before the softplus
  const float* norm;        // (head_dim)
  float* states;            // (rows, heads, head_dim, head_dim padded)
  int64_t heads;
  int64_t head_dim;
  float norm_epsilon;
  float least_decay;        // if not 0, the logarithm is this times the sigmoid of decays times -`decay`
};
}  // extern "C"

extern const MixerOperations kKimiDeltaAttention;

}  // namespace greenroom
