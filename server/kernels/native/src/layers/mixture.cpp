#include "layers/mixture.h"

#include <algorithm>
#include <cstring>

#include "formats/checks.h"
#include "layers/layer_adapters.h"

namespace greenroom {
namespace {

// Adds what adapters add to the logits of an MLP's weighting, (tokens).
void add_to_gates(Context& context, const LayerSpec& layer, const StepCall& step, float* gates) {
  LoraSums& sums = context.gate_lora;
  const LoraSite site{sums, LoraPlace::kDenseGate, step.normed, step.hidden_size};
  if (is_routed(step)) {
    begin_routes(context, site, layer, step);
    for (int64_t row = 0; row < step.tokens; ++row) sums.routes.score(context.level, row, 0);
  }
  plan_lora(context, site, layer, step);
  for (int64_t tile = 0; tile < sums.num_tiles(); ++tile) sums.multiply_down(context.level, tile, 0);
  for (int64_t row = 0; row < step.tokens; row += kRowTile) {
    sums.add(context.level, 0, row, std::min(row + kRowTile, step.tokens), 0, 1, gates + row, 1);
  }
}

// The results of an MLP, (tokens, hidden), and their weights; null if they have none.
struct Weighted {
  const float* results;
  const float* weights;
};

Weighted run_mlp(Context& context, const LayerSpec& layer, const Mlp& mlp, const StepCall& step) {
  const Level& level = context.level;
  const int64_t tokens = step.tokens, hidden_size = step.hidden_size;
  auto* results = context.shared.reserve<float>((tokens * hidden_size + tokens) * 4);
  float* gates = results + tokens * hidden_size;
  auto* numbers = context.sorted.reserve<int32_t>(tokens * 4);
  for (int64_t token = 0; token < tokens; ++token) numbers[token] = static_cast<int32_t>(token);
  const uint64_t slot = 0;
  const int32_t starts[] = {0, static_cast<int32_t>(tokens)};
  const int32_t number = 0;
  LoraExperts lora = lora_of_experts(context, layer, step, &number, [](const LoraLayer& of) {
    return ExpertParts{&of.at(LoraPlace::kDenseFirst), &of.at(LoraPlace::kDenseSecond)};
  });
  if (step.lora) lora.routing = step.lora->routing;
  const ExpertBatch batch{&slot,       starts, numbers,          step.normed,  results, 1, 1, hidden_size,
                          Format::kFloat32, step.is_exact, step.lora ? &lora : nullptr};
  greenroom::run_experts(context, mlp.shape, batch);
  if (!mlp.weighting.outputs) return {results, nullptr};
  Panel panel = place_panel(PanelKind::kFloat32, tokens, hidden_size,
                            context.rows.reserve(panel_bytes(PanelKind::kFloat32, tokens, hidden_size)));
  level.prepare(panel, step.normed, Format::kFloat32, hidden_size, nullptr, 0, tokens);
  level.multiply(mlp.weighting, panel, 0, tokens, 0, 1, gates, 1);
  if (step.lora) add_to_gates(context, layer, step, gates);
  level.sigmoid(gates, tokens);
  return {results, gates};
}

// Adds the weighted `outputs (tokens * top_k, hidden)` of experts and the results of an MLP to the hidden states.
void add_results(Context& context, const LayerSpec& layer, const StepCall& step, const float* outputs, const float* weights,
                 int64_t top_k, const Weighted& mlp) {
  const Level& level = context.level;
  const int64_t tokens = step.tokens, hidden_size = step.hidden_size;
  float* sums = context.middle.reserve<float>(context.pool.num_threads() * hidden_size * 4);
  auto add = [&](int64_t token, int thread) {
    float* sum = sums + thread * hidden_size;
    std::memset(sum, 0, static_cast<size_t>(hidden_size) * sizeof(float));
    for (int64_t i = token * top_k; i < (token + 1) * top_k; ++i) {
      level.add_scaled(sum, outputs + i * hidden_size, weights[i], hidden_size);
    }
    if (mlp.results) {
      level.add_scaled(sum, mlp.results + token * hidden_size, mlp.weights ? mlp.weights[token] : 1.0f, hidden_size);
    }
    level.add_scaled(step.hidden + token * hidden_size, sum, layer.residual_scale, hidden_size);
  };
  const Phase phase = phase_of(tokens, add);
  context.pool.run(&phase, 1);
}

// Runs the experts of a layer, all of which are in memory.
const float* run_resident_experts(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place) {
  const auto& mixture = *static_cast<const Mixture*>(layer.feed_forward);
  const int64_t num_choices = step.tokens * mixture.router.top_k;
  const int64_t num_experts = step.sets ? step.most_experts : mixture.num_experts;
  const int32_t* chosen = choices_of(step, place);
  const uint64_t* slots = step.slots + place * step.most_experts;
  auto* used_slots = context.sorted.reserve<uint64_t>(num_experts * 8 + (3 * num_experts + 2 + 2 * num_choices) * 4);
  auto* starts = reinterpret_cast<int32_t*>(used_slots + num_experts);
  int32_t* ends = starts + num_experts + 1;  // by expert
  int32_t* used = ends + num_experts + 1;
  int32_t* choices = used + num_experts;
  const int32_t* numbers = nullptr;  // by place
  if (step.sets) {
    const ExpertSets& sets = *step.sets;
    int32_t* places = choices + num_choices;
    for (int64_t token = 0; token < step.tokens; ++token) {
      const int32_t* table = sets.places + (place * sets.num_sets + set_of_row(step, token)) * sets.width;
      for (int64_t i = token * mixture.router.top_k; i < (token + 1) * mixture.router.top_k; ++i) {
        places[i] = table[chosen[i]];
      }
    }
    chosen = places;
    numbers = sets.numbers + place * step.most_experts;
  }
  std::memset(ends, 0, static_cast<size_t>(num_experts) * sizeof(int32_t));
  for (int64_t i = 0; i < num_choices; ++i) ++ends[chosen[i]];
  int64_t* counts = step.counts + place * step.most_experts;
  int64_t num_used = 0;
  int32_t end = 0;
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    const int32_t count = ends[expert];
    counts[expert] = count;
    ends[expert] = end;  // for now the start of its choices
    if (!count) continue;
    starts[num_used] = end;
    used[num_used] = numbers ? numbers[expert] : static_cast<int32_t>(expert);
    used_slots[num_used++] = slots[expert];
    end += count;
  }
  starts[num_used] = end;
  for (int64_t i = 0; i < num_choices; ++i) choices[ends[chosen[i]]++] = static_cast<int32_t>(i);
  float* results = context.results.reserve<float>(num_choices * step.hidden_size * 4);
  const LoraExperts lora = lora_of_experts(context, layer, step, used, [](const LoraLayer& of) {
    return ExpertParts{of.first, of.second};
  });
  const ExpertBatch batch{used_slots, starts,       choices,          step.normed,  results, num_used, mixture.router.top_k,
                          step.hidden_size, Format::kFloat32, step.is_exact, step.lora ? &lora : nullptr};
  run_experts(context, mixture.experts, batch);
  return results;
}

const char* check_mlp(const Mlp& mlp, int64_t hidden_size) {
  if (const char* reason = check_experts(mlp.shape, hidden_size, 0)) return reason;
  const bool is_weighted = mlp.weighting.outputs;
  return is_weighted && !is_shaped(mlp.weighting, 1, hidden_size) ? "a shared expert that is weighted otherwise" : nullptr;
}

const char* check_mixture(const void* feed_forward, int64_t hidden_size, int64_t slot_bytes) {
  const auto& mixture = *static_cast<const Mixture*>(feed_forward);
  if (const char* reason = check_router(mixture.router, hidden_size)) return reason;
  if (mixture.router.matrix.outputs != mixture.num_experts) return "a router of other experts";
  if (!slot_bytes) return "experts without a slot";
  if (const char* reason = check_experts(mixture.experts, hidden_size, slot_bytes)) return reason;
  return mixture.has_shared ? check_mlp(mixture.shared, hidden_size) : nullptr;
}

void finish_mixture(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place, const float* outputs) {
  const auto& mixture = *static_cast<const Mixture*>(layer.feed_forward);
  const Weighted shared = mixture.has_shared ? run_mlp(context, layer, mixture.shared, step) : Weighted{};
  add_results(context, layer, step, outputs, weights_of(step, place), mixture.router.top_k, shared);
}

}  // namespace

const FeedForwardOperations kMlp = {
    false,
    [](const void* feed_forward, int64_t hidden_size, int64_t) {
      return check_mlp(*static_cast<const Mlp*>(feed_forward), hidden_size);
    },
    [](Context& context, const LayerSpec& layer, const StepCall& step, int64_t place) {
      norm_and_route(context, layer, nullptr, step, place);
    },
    [](Context&, const LayerSpec&, const StepCall&, int64_t) -> const float* { return nullptr; },
    [](Context& context, const LayerSpec& layer, const StepCall& step, int64_t, const float*) {
      const Weighted mlp = run_mlp(context, layer, *static_cast<const Mlp*>(layer.feed_forward), step);
      add_results(context, layer, step, nullptr, nullptr, 0, mlp);
    },
};

const FeedForwardOperations kExperts = {
    true,
    check_mixture,
    [](Context& context, const LayerSpec& layer, const StepCall& step, int64_t place) {
      norm_and_route(context, layer, &static_cast<const Mixture*>(layer.feed_forward)->router, step, place);
    },
    run_resident_experts,
    finish_mixture,
};

}  // namespace greenroom
