// What the adapters of a step add to the matrices of a decoder layer.
#pragma once

#include "layers/layer.h"
#include "layers/lora_sites.h"

namespace greenroom {

// An adapter's additions to the first and the second matrix of experts, by expert, or null.
struct ExpertParts {
  const LoraParts *first, *second;
};

// Returns what the adapters of a step add to some experts of a layer. `numbers` are the experts of the batch.
template <typename PartsOf>
LoraExperts lora_of_experts(Context& context, const LayerSpec& layer, const StepCall& step, const int32_t* numbers,
                            PartsOf parts_of) {
  if (!step.lora) return {};
  const LoraStep& lora = *step.lora;
  auto* first = context.adapters.reserve<const LoraParts*>(2 * lora.num_adapters * 8);
  const LoraParts** second = first + lora.num_adapters;
  for (int64_t adapter = 0; adapter < lora.num_adapters; ++adapter) {
    const ExpertParts parts = parts_of(lora.layers[adapter][layer.index]);
    first[adapter] = parts.first;
    second[adapter] = parts.second;
  }
  return {first, second, lora.factors, lora.num_adapters, numbers, nullptr};
}

// The rows of a step in a layer.
inline AdaptedRows rows_of(const LayerSpec& layer, const StepCall& step) {
  return {step.lora, layer.index, step.tokens, nullptr};
}

inline void plan_sites(PhaseList& phases, const LoraSite* sites, int num_sites, const Context& context,
                       const LayerSpec& layer, const StepCall& step) {
  plan_sites(phases, sites, num_sites, context, rows_of(layer, step));
}

}  // namespace greenroom
