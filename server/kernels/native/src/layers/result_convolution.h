// Convolutions of what a part of a layer adds to the hidden states.
#pragma once

#include "layers/convolution.h"
#include "layers/layer.h"

namespace greenroom {

// Returns null, or what is impossible in a layer's convolutions.
const char* check_result_convolutions(const LayerSpec& layer, int64_t hidden_size);

// Adds the convolution of a part's results, (tokens, hidden), to the hidden states.
void add_convolved(Context& context, const Convolution& spec, const LayerSpec& layer, const StepCall& step, const float* results);

}  // namespace greenroom
