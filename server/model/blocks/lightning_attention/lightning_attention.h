// Lightning attention (arXiv 2405.17381): linear attention with a constant decay for each head, a norm and gates.
#pragma once

#include "layers/layer.h"
#include "model/blocks/recurrent/projections.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
// A token's row has queries, keys, values and gates (heads * head_dim each).
struct LightningAttention {
  Projections projections;
  const float* decay;  // (heads)
  const float* norm;   // (heads * head_dim)
  float* states;       // (rows, heads, head_dim, head_dim padded)
  int64_t heads;
  int64_t head_dim;
  float norm_epsilon;
  Activation activation;  // of queries, keys and values
};
}  // extern "C"

extern const MixerOperations kLightningAttention;

}  // namespace greenroom
