// Short convolution (LFM2): a gated product, a causal convolution of it, times another gate.
#pragma once

#include "layers/convolution.h"
#include "layers/layer.h"
#include "model/blocks/recurrent/projections.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
// A token's row has the inner gates, the outer gates and the inputs, as many as the convolution has channels.
struct ShortConvolution {
  Projections projections;
  Convolution convolution;
};
}  // extern "C"

extern const MixerOperations kShortConvolution;

}  // namespace greenroom
