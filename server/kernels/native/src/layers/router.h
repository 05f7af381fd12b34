// The router of a decoder layer.
#pragma once

#include "layers/step.h"

namespace greenroom {

// The set of experts of a row's sequence.
int64_t set_of_row(const StepCall& step, int64_t row);

// The choices of a layer, (tokens, top_k), and their weights. `place` is the layer's index among those with a router.
inline int32_t* choices_of(const StepCall& step, int64_t place) {
  return step.chosen + place * step.tokens * step.most_top_k;
}

inline float* weights_of(const StepCall& step, int64_t place) {
  return step.weights + place * step.tokens * step.most_top_k;
}

// Normalises the hidden states for the experts, and chooses these if the layer has a router.
void norm_and_route(Engine& engine, const LayerSpec& layer, const StepCall& step, int64_t place);

}  // namespace greenroom
