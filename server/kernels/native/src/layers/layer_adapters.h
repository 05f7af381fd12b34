// What the adapters of a step add to the matrices of a decoder layer.
#pragma once

#include "context.h"
#include "layers/layer.h"

namespace greenroom {

// A matrix of a layer that adapters may add to, and its input (tokens, inputs).
struct LoraSite {
  LoraSums& sums;
  LoraPlace place;
  const float* x;
  int64_t inputs;
};

inline bool is_routed(const StepCall& step) { return step.lora && step.lora->routing; }

// Prepares the computation of a site's factors from its input.
inline void begin_routes(const Context& context, const LoraSite& site, const LayerSpec& layer, const StepCall& step) {
  const LoraStep& lora = *step.lora;
  site.sums.routes.begin(*lora.routing, {lora.factors, lora.num_adapters, nullptr, 0}, step.tokens, site.x, site.inputs,
                         context.pool.num_threads(),
                         [&](int64_t adapter) { return lora.layers[adapter][layer.index].at(site.place); });
}

// Plans what the adapters of a step add at a site, after a router's factors were computed.
inline void plan_lora(const Context& context, const LoraSite& site, const LayerSpec& layer, const StepCall& step) {
  const LoraStep& lora = *step.lora;
  const int32_t starts[] = {0, static_cast<int32_t>(step.tokens)};
  const LoraFactors fixed{lora.factors, lora.num_adapters, nullptr, 0};
  site.sums.plan(lora.routing ? site.sums.routes.factors() : fixed, {site.x, Format::kFloat32, site.inputs, nullptr}, 1,
                 starts, context.pool.num_threads(),
                 [&](int64_t, int64_t adapter) { return lora.layers[adapter][layer.index].at(site.place); });
}

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

// Plans additions to matrices of the same input. If a router computes factors, runs the phases so far, which compute the
// input, and the routing.
inline void plan_sites(PhaseList& phases, const LoraSite* sites, int num_sites, const Context& context,
                       const LayerSpec& layer, const StepCall& step) {
  if (!step.lora) return;
  auto score = [&](int64_t row, int thread) {
    for (int i = 0; i < num_sites; ++i) sites[i].sums.routes.score(context.level, row, thread);
  };
  if (is_routed(step)) {
    for (int i = 0; i < num_sites; ++i) begin_routes(context, sites[i], layer, step);
    phases.add(step.tokens, score);
    phases.run();
  }
  for (int i = 0; i < num_sites; ++i) plan_lora(context, sites[i], layer, step);
}

}  // namespace greenroom
