#include "layers/mixture.h"

#include <algorithm>
#include <cstring>

#include "formats/checks.h"
#include "layers/layer_adapters.h"
#include "layers/result_convolution.h"
#include "layers/sides.h"

namespace greenroom {
namespace {

// Adds what adapters add to the logits of an MLP's weighting, (tokens).
void add_to_gates(Context& context, const LayerSpec& layer, const StepCall& step, const float* x, float* gates) {
  LoraSums& sums = context.gate_lora;
  const LoraSite site{sums, LoraPlace::kDenseGate, x, step.hidden_size};
  const AdaptedRows rows = rows_of(layer, step);
  if (rows.are_routed()) {
    begin_routes(context, site, rows);
    for (int64_t row = 0; row < step.tokens; ++row) sums.routes.score(context.level, row, 0);
  }
  plan_lora(context, site, rows);
  for (int64_t tile = 0; tile < sums.num_tiles(); ++tile) sums.multiply_down(context.level, tile, 0);
  for (int64_t row = 0; row < step.tokens; row += kRowTile) {
    sums.add(context.level, 0, row, std::min(row + kRowTile, step.tokens), 0, 1, gates + row, 1);
  }
}

// The results of MLPs, (tokens, count, hidden), and their weights; null if they have none.
struct Weighted {
  float* results;
  const float* weights;
  int64_t count;
};

// The weighted results of experts, (tokens * top_k, hidden), and the norm of a token's sum.
struct Choices {
  const float* outputs;
  const float* weights;    // null if they are weighted already
  const int32_t* rows;     // chosen rows of the router, if some of them stand for the input or for nothing; else null
  int64_t num_experts;     // rows of the router that stand for experts
  int64_t top_k;
  float scale;
  Norm norm;
  bool is_deferred;
  bool has_skips;          // those rows stand for nothing
};

Weighted run_mlp(Context& context, const LayerSpec& layer, const Mlp& mlp, const StepCall& step) {
  const Level& level = context.level;
  const int64_t tokens = step.tokens, hidden_size = step.hidden_size;
  auto* results = context.shared.reserve<float>((tokens * hidden_size + tokens) * 4);
  float* gates = results + tokens * hidden_size;
  const float* x = step.normed;
  if (mlp.input_norm.kind != NormKind::kNone) {
    auto* rows = context.inputs.reserve<float>(tokens * hidden_size * 4);
    auto norm = [&](int64_t token, int) {
      const int64_t at = token * hidden_size;
      apply_norm(level, mlp.input_norm, step.hidden + at, hidden_size, rows + at);
    };
    const Phase phase = phase_of(tokens, norm);
    context.pool.run(&phase, 1);
    x = rows;
  }
  auto* numbers = context.sorted.reserve<int32_t>(tokens * 4);
  for (int64_t token = 0; token < tokens; ++token) numbers[token] = static_cast<int32_t>(token);
  const uint64_t slot = 0;
  const int32_t starts[] = {0, static_cast<int32_t>(tokens)};
  const int32_t number = 0;
  LoraExperts lora = lora_of_experts(context, layer, step, &number, [](const LoraLayer& of) {
    return ExpertParts{&parts_at(of, LoraPlace::kDenseFirst), &parts_at(of, LoraPlace::kDenseSecond)};
  });
  if (step.lora) lora.routing = step.lora->routing;
  const ExpertBatch batch{&slot,       starts, numbers,          x,            results, 1, 1, hidden_size,
                          Format::kFloat32, step.is_exact, step.lora ? &lora : nullptr};
  greenroom::run_experts(context, mlp.shape, batch);
  if (!mlp.weighting.outputs) return {results, nullptr, 1};
  Panel panel = place_panel(PanelKind::kFloat32, tokens, hidden_size,
                            context.rows.reserve(panel_bytes(PanelKind::kFloat32, tokens, hidden_size)));
  level.prepare(panel, x, Format::kFloat32, hidden_size, nullptr, 0, tokens);
  level.multiply(mlp.weighting, panel, 0, tokens, 0, 1, gates, 1);
  if (step.lora) add_to_gates(context, layer, step, x, gates);
  level.sigmoid(gates, tokens);
  return {results, gates, 1};
}

// Runs the MLPs that the router's shared rows weight.
Weighted run_shared(Context& context, const Mixture& mixture, const StepCall& step) {
  const int64_t count = mixture.router.num_shared, tokens = step.tokens;
  auto* results = context.shared.reserve<float>(tokens * count * step.hidden_size * 4);
  auto* slots = context.sorted.reserve<uint64_t>(count * 8 + (count + 1 + tokens * count) * 4);
  auto* starts = reinterpret_cast<int32_t*>(slots + count);
  int32_t* choices = starts + count + 1;
  for (int64_t i = 0; i < count; ++i) {
    slots[i] = static_cast<uint64_t>(i * mixture.shared_bytes);
    starts[i] = static_cast<int32_t>(i * tokens);
    for (int64_t token = 0; token < tokens; ++token) choices[i * tokens + token] = static_cast<int32_t>(token * count + i);
  }
  starts[count] = static_cast<int32_t>(count * tokens);
  const ExpertBatch batch{slots, starts, choices, step.normed, results, count, count, step.hidden_size, Format::kFloat32, step.is_exact, nullptr};
  greenroom::run_experts(context, mixture.shared.shape, batch);
  return {results, shares_of(context, mixture.router, step), count};
}

// Adds the results of experts and of an MLP to the hidden states.
void add_results(Context& context, const LayerSpec& layer, const StepCall& step, const Choices& choices,
                 const Weighted& mlp, const Mlp& dense) {
  const Level& level = context.level;
  const int64_t tokens = step.tokens, hidden_size = step.hidden_size;
  float* sums = context.middle.reserve<float>(context.pool.num_threads() * hidden_size * 4);
  const bool is_kept = choices.is_deferred || layer.adds_deferred;
  float* kept = layer.inner_convolution ? context.mixed.reserve<float>(tokens * hidden_size * 4) : nullptr;
  float* deferred = step.deferred;
  if (is_kept && !deferred) deferred = context.deferred.reserve<float>(tokens * hidden_size * 4);
  auto add = [&](int64_t token, int thread) {
    float* sum = sums + thread * hidden_size;
    std::memset(sum, 0, static_cast<size_t>(hidden_size) * sizeof(float));
    for (int64_t i = token * choices.top_k; i < (token + 1) * choices.top_k; ++i) {
      const float weight = choices.weights ? choices.weights[i] : 1.0f;
      const bool is_input = choices.rows && choices.rows[i] >= choices.num_experts;
      if (is_input && choices.has_skips) continue;
      const float* result = is_input ? step.normed + token * hidden_size : choices.outputs + i * hidden_size;
      level.add_scaled(sum, result, weight, hidden_size);
    }
    if (choices.scale != 1.0f) {
      for (int64_t i = 0; i < hidden_size; ++i) sum[i] *= choices.scale;
    }
    apply_norm(level, choices.norm, sum, hidden_size, sum);
    if (choices.is_deferred) {
      std::memcpy(deferred + token * hidden_size, sum, static_cast<size_t>(hidden_size) * sizeof(float));
      std::memset(sum, 0, static_cast<size_t>(hidden_size) * sizeof(float));
    }
    for (int64_t i = token * mlp.count; i < (token + 1) * mlp.count; ++i) {
      float* result = mlp.results + i * hidden_size;
      apply_norm(level, dense.output_norm, result, hidden_size, result);
      level.add_scaled(sum, result, mlp.weights ? mlp.weights[i] * dense.scale : dense.scale, hidden_size);
    }
    apply_norm(level, layer.output_norm, sum, hidden_size, sum);
    if (kept) {
      std::memcpy(kept + token * hidden_size, sum, static_cast<size_t>(hidden_size) * sizeof(float));
      return;
    }
    float* hidden = step.hidden + token * hidden_size;
    add_to_hidden(level, layer, layer.inner_residual_gate, sum, hidden_size, hidden);
    if (layer.adds_deferred) level.add_scaled(hidden, deferred + token * hidden_size, layer.residual_scale, hidden_size);
    if (layer.output_scale == 1.0f) return;
    for (int64_t i = 0; i < hidden_size; ++i) hidden[i] *= layer.output_scale;
  };
  const Phase phase = phase_of(tokens, add);
  context.pool.run(&phase, 1);
  if (kept) add_convolved(context, *layer.inner_convolution, layer, step, kept);
}

// The numbers of the rows that experts take.
int64_t width_of(const Mixture& mixture, const StepCall& step) {
  return mixture.input_projection.outputs ? mixture.input_projection.outputs : step.hidden_size;
}

// The rows that experts take, (tokens, width).
const float* rows_of_experts(Context& context, const Mixture& mixture, const StepCall& step) {
  if (!mixture.input_projection.outputs) return step.normed;
  if (step.projected) return step.projected;
  return context.projected.reserve<float>(step.tokens * width_of(mixture, step) * 4);
}

// Multiplies rows (tokens, inputs) by a projection into `results` (tokens, outputs).
void project(Context& context, const LayerSpec& layer, const StepCall& step, const Matrix& matrix, LoraPlace place,
             const float* x, float* results) {
  const Level& level = context.level;
  const PanelKind kind = level.panel_kind(matrix, step.is_exact);
  Panel panel = place_panel(kind, step.tokens, matrix.inputs,
                            context.rows.reserve(panel_bytes(kind, step.tokens, matrix.inputs)));
  LoraSums& lora = context.projection_lora;
  lora.clear();
  const LoraSite site{lora, place, x, matrix.inputs};
  const Side side{&matrix, nullptr, 0, &lora};
  auto prepare = [&](int64_t token, int) {
    level.prepare(panel, x, Format::kFloat32, matrix.inputs, nullptr, token, token + 1);
  };
  auto multiply_down = [&](int64_t tile, int thread) { lora.multiply_down(level, tile, thread); };
  const auto put = [&](int64_t row, int64_t output, const float* sums, int64_t count) {
    std::memcpy(results + row * matrix.outputs + output, sums, static_cast<size_t>(count) * sizeof(float));
  };
  auto multiply = multiply_sides(context, panel, &side, 1, kOutputTile, put);
  PhaseList phases(context.pool);
  phases.add(step.tokens, prepare);
  plan_sites(phases, &site, 1, context, layer, step);
  phases.add(lora.num_tiles(), multiply_down);
  phases.add(num_tiles(&side, 1, step.tokens, kOutputTile), multiply);
  phases.run();
}

// Computes the rows that experts take, if these are projections of the layer's.
void project_rows(Context& context, const LayerSpec& layer, const StepCall& step, const Mixture& mixture) {
  const int64_t width = mixture.input_projection.outputs;
  if (!width) return;
  auto* rows = const_cast<float*>(rows_of_experts(context, mixture, step));
  project(context, layer, step, mixture.input_projection, LoraPlace::kExpertsInput, step.normed, rows);
  auto norm = [&](int64_t token, int) {
    apply_norm(context.level, mixture.projected_norm, rows + token * width, width, rows + token * width);
  };
  const Phase phase = phase_of(step.tokens, norm);
  context.pool.run(&phase, 1);
}

// Returns the sums of weighted results, which have norms of their own or are projected back, (tokens, hidden).
const float* sum_results(Context& context, const LayerSpec& layer, const StepCall& step, const Mixture& mixture,
                         const Choices& choices) {
  const Level& level = context.level;
  const int64_t tokens = step.tokens, width = width_of(mixture, step), num_threads = context.pool.num_threads();
  auto* sums = context.summed.reserve<float>((tokens * (width + step.hidden_size) + num_threads * width) * 4);
  float *back = sums + tokens * width, *results = back + tokens * step.hidden_size;
  const float* inputs = rows_of_experts(context, mixture, step);
  auto add = [&](int64_t token, int thread) {
    float *sum = sums + token * width, *result = results + thread * width;
    std::fill(sum, sum + width, 0.0f);
    for (int64_t i = token * choices.top_k; i < (token + 1) * choices.top_k; ++i) {
      const float weight = choices.weights ? choices.weights[i] : 1.0f;
      if (choices.rows && choices.rows[i] >= choices.num_experts) {
        level.add_scaled(sum, inputs + token * width, weight, width);
        continue;
      }
      const float* given = choices.outputs + i * width;
      if (mixture.result_norm.kind != NormKind::kNone) {
        apply_norm(level, mixture.result_norm, given, width, result);
        given = result;
      }
      level.add_scaled(sum, given, weight, width);
    }
    for (int64_t i = 0; choices.scale != 1.0f && i < width; ++i) sum[i] *= choices.scale;
  };
  const Phase phase = phase_of(tokens, add);
  context.pool.run(&phase, 1);
  if (!mixture.output_projection.outputs) return sums;
  project(context, layer, step, mixture.output_projection, LoraPlace::kExpertsOutput, sums, back);
  return back;
}

// Gives each choice of a batch a row of its own, which the router's weight scales.
void weight_inputs(Context& context, const Router& router, const StepCall& step, const float* weights, ExpertBatch& batch,
                   LoraExperts& lora) {
  const int64_t size = step.hidden_size, num_choices = step.tokens * router.top_k;
  auto* rows = context.inputs.reserve<float>(num_choices * size * 4);
  for (int64_t choice = 0; choice < num_choices; ++choice) {
    const float* row = step.normed + choice / router.top_k * size;
    for (int64_t i = 0; i < size; ++i) rows[choice * size + i] = row[i] * weights[choice];
  }
  batch.x = rows;
  batch.top_k = 1;
  if (!step.lora) return;
  auto* factors = context.factors.reserve<float>(num_choices * lora.num_adapters * 4);
  for (int64_t choice = 0; choice < num_choices; ++choice) {
    const float* of_token = lora.factors + choice / router.top_k * lora.num_adapters;
    std::copy(of_token, of_token + lora.num_adapters, factors + choice * lora.num_adapters);
  }
  lora.factors = factors;
}

// The index in a layer's slots of the expert that a row of its router stands for; one beyond the last for an expert that
// returns its input. A row of -1 stands for none.
int64_t expert_of(const StepCall& step, const Mixture& mixture, int64_t place, int64_t token, int32_t row) {
  if (!step.sets || row < 0) return row;
  if (row >= mixture.num_experts && (mixture.num_identities || mixture.router.num_skips)) return step.most_experts;
  const ExpertSets& sets = *step.sets;
  return sets.places[(place * sets.num_sets + set_of_row(step, token)) * sets.width + row];
}

// Returns true if an expert is predicted for the next layer that is to be in memory, and has no slot.
bool lacks_predicted(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place) {
  const auto* next = static_cast<const Mixture*>(layer.next_mixture);
  if (!next || !step.predictions || !step.predictions->parts[place + 1]) return false;
  const StepPredictions& predictions = *step.predictions;
  const int64_t num_experts = step.sets ? step.most_experts : next->num_experts, top_k = next->router.top_k;
  const int32_t* predicted = predicted_of(step, place + 1);
  const uint64_t* slots = step.slots + (place + 1) * step.most_experts;
  auto* found = context.sorted.reserve<int32_t>(2 * num_experts * 4);  // distinct experts, and which are among them
  int32_t* is_found = found + num_experts;
  std::memset(is_found, 0, static_cast<size_t>(num_experts) * sizeof(int32_t));
  int64_t num_found = 0;
  for (int64_t rank = 0; rank < top_k; ++rank) {
    for (int64_t token = 0; token < step.tokens; ++token) {
      const int32_t row = predicted[token * top_k + rank];
      const int64_t expert = expert_of(step, *next, place + 1, token, row);
      if (expert >= num_experts || is_found[expert]) continue;
      is_found[expert] = 1;
      found[num_found++] = static_cast<int32_t>(expert);
    }
  }
  for (int64_t i = 0; i < num_found; ++i) {
    const int64_t part = i * predictions.num_parts / num_found;
    if ((predictions.parts[place + 1] >> part & 1) && !slots[found[i]]) return true;
  }
  return false;
}

// The choices of a layer by expert.
struct SortedChoices {
  const int32_t* chosen;   // the index of each choice's expert in the layer's slots; others are no experts
  const int32_t* numbers;  // by that index: the expert's number for adapters; null if they are the same
  int64_t* counts;         // rows of each expert
  uint64_t* given;         // room for the slot of each expert
  uint64_t* used_slots;    // room for those that run: their slots, numbers, and the start of each one's choices
  int32_t* used;
  int32_t* starts;
  int32_t* ends;           // by expert
  int32_t* choices;
  int64_t num_experts;
  int64_t num_choices;

  bool is_expert(int32_t index) const { return index >= 0 && index < num_experts; }
};

// Finds the expert of each choice, and counts its rows.
SortedChoices count_choices(Context& context, const Mixture& mixture, const StepCall& step, int64_t place) {
  SortedChoices sorted{};
  const int64_t num_choices = sorted.num_choices = step.tokens * mixture.router.top_k;
  const int64_t num_experts = sorted.num_experts = step.sets ? step.most_experts : mixture.num_experts;
  sorted.given = context.sorted.reserve<uint64_t>(2 * num_experts * 8 + (3 * num_experts + 2 + 2 * num_choices) * 4);
  sorted.used_slots = sorted.given + num_experts;
  sorted.starts = reinterpret_cast<int32_t*>(sorted.used_slots + num_experts);
  sorted.ends = sorted.starts + num_experts + 1;
  sorted.used = sorted.ends + num_experts + 1;
  sorted.choices = sorted.used + num_experts;
  sorted.chosen = choices_of(step, place);
  sorted.counts = step.counts + place * step.most_experts;
  if (step.sets) {
    int32_t* places = sorted.choices + num_choices;
    for (int64_t i = 0; i < num_choices; ++i) {
      places[i] = static_cast<int32_t>(expert_of(step, mixture, place, i / mixture.router.top_k, sorted.chosen[i]));
    }
    sorted.chosen = places;
    sorted.numbers = step.sets->numbers + place * step.most_experts;
  }
  std::fill(sorted.counts, sorted.counts + num_experts, 0);
  for (int64_t i = 0; i < num_choices; ++i) {
    if (sorted.is_expert(sorted.chosen[i])) ++sorted.counts[sorted.chosen[i]];
  }
  return sorted;
}

float* results_of(Context& context, const Mixture& mixture, const StepCall& step) {
  return context.results.reserve<float>(step.tokens * mixture.router.top_k * width_of(mixture, step) * 4);
}

// Runs those chosen experts that have a slot. If `needs_all`, runs none and returns false if another is chosen.
bool run_sorted(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place, const SortedChoices& sorted,
                const uint64_t* slots, bool needs_all) {
  const auto& mixture = *static_cast<const Mixture*>(layer.feed_forward);
  int64_t num_used = 0;
  int32_t end = 0;
  for (int64_t expert = 0; expert < sorted.num_experts; ++expert) {
    const auto count = static_cast<int32_t>(sorted.counts[expert]);
    sorted.ends[expert] = end;  // for now the start of its choices
    if (!count) continue;
    const uint64_t slot = slots[expert];  // read once, as other threads enter experts that arrive
    if (!slot && needs_all) return false;
    if (!slot) {
      sorted.ends[expert] = -1;
      continue;
    }
    sorted.starts[num_used] = end;
    sorted.used[num_used] = sorted.numbers ? sorted.numbers[expert] : static_cast<int32_t>(expert);
    sorted.used_slots[num_used++] = slot;
    end += count;
  }
  sorted.starts[num_used] = end;
  for (int64_t i = 0; i < sorted.num_choices; ++i) {
    const int32_t expert = sorted.chosen[i];
    if (sorted.is_expert(expert) && sorted.ends[expert] >= 0) sorted.choices[sorted.ends[expert]++] = static_cast<int32_t>(i);
  }
  LoraExperts lora = lora_of_experts(context, layer, step, sorted.used, [](const LoraLayer& of) {
    return ExpertParts{of.first, of.second};
  });
  ExpertBatch batch{sorted.used_slots, sorted.starts, sorted.choices, rows_of_experts(context, mixture, step),
                    results_of(context, mixture, step), num_used, mixture.router.top_k, width_of(mixture, step),
                    Format::kFloat32, step.is_exact, step.lora ? &lora : nullptr};
  if (mixture.scales_input) weight_inputs(context, mixture.router, step, weights_of(step, place), batch, lora);
  run_experts(context, mixture.experts, batch);
  return true;
}

// Runs the experts of a layer; returns null if one of them has no slot, or one that is predicted.
const float* run_resident_experts(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place) {
  const auto& mixture = *static_cast<const Mixture*>(layer.feed_forward);
  const bool may_run = step.slots && !lacks_predicted(context, layer, step, place);
  const SortedChoices sorted = count_choices(context, mixture, step, place);
  if (!may_run) return nullptr;
  const uint64_t* slots = step.slots + place * step.most_experts;
  return run_sorted(context, layer, step, place, sorted, slots, true) ? results_of(context, mixture, step) : nullptr;
}

// Runs some of the chosen experts of a layer; see `run_chosen_experts`.
void run_given_experts(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place,
                       const GivenExperts& given) {
  const SortedChoices sorted = count_choices(context, *static_cast<const Mixture*>(layer.feed_forward), step, place);
  std::fill(sorted.given, sorted.given + sorted.num_experts, 0);
  for (int64_t i = 0; i < given.count; ++i) sorted.given[given.experts[i]] = given.slots[i];
  if (given.count) run_sorted(context, layer, step, place, sorted, sorted.given, false);
}

const char* check_mlp(const Mlp& mlp, int64_t hidden_size) {
  if (const char* reason = check_experts(mlp.shape, hidden_size, 0)) return reason;
  for (const Norm& norm : {mlp.input_norm, mlp.output_norm}) {
    if (const char* reason = check_norm(norm)) return reason;
  }
  const bool is_weighted = mlp.weighting.outputs;
  return is_weighted && !is_shaped(mlp.weighting, 1, hidden_size) ? "a shared expert that is weighted otherwise" : nullptr;
}

const char* check_mixture(const void* feed_forward, int64_t hidden_size, int64_t slot_bytes) {
  const auto& mixture = *static_cast<const Mixture*>(feed_forward);
  if (const char* reason = check_router(mixture.router, hidden_size)) return reason;
  if (mixture.num_identities < 0 || num_choosable(mixture.router) != mixture.num_experts + mixture.num_identities + mixture.router.num_skips) {
    return "a router of other experts";
  }
  if (mixture.router.num_skips && (mixture.num_identities || mixture.scales_input || mixture.input_projection.outputs ||
                                   mixture.result_norm.kind != NormKind::kNone)) {
    return "a router that chooses no expert beside other kinds of experts";
  }
  if (mixture.num_identities && mixture.scales_input) return "weighted inputs of experts that return them";
  for (const Norm& norm : {mixture.router_norm, mixture.output_norm, mixture.result_norm, mixture.projected_norm}) {
    if (const char* reason = check_norm(norm)) return reason;
  }
  if (mixture.router.num_shared) {
    const Mlp& shared = mixture.shared;
    const bool has_norms = shared.input_norm.kind != NormKind::kNone || shared.output_norm.kind != NormKind::kNone;
    if (!mixture.has_shared || has_norms || shared.weighting.outputs) return "shared experts that the router doesn't weight alone";
    if (mixture.shared_bytes < 0 || (mixture.router.num_shared > 1 && !mixture.shared_bytes)) return "shared experts without a place";
  }
  if (!slot_bytes) return "experts without a slot";
  const int64_t width = mixture.input_projection.outputs;
  if (width && (!is_shaped(mixture.input_projection, width, hidden_size) || mixture.scales_input)) {
    return "experts whose rows are projected in an unknown way";
  }
  if (width ? !is_shaped(mixture.output_projection, hidden_size, width) : mixture.output_projection.outputs != 0) {
    return "experts whose sum is projected in an unknown way";
  }
  if (!width && mixture.projected_norm.kind != NormKind::kNone) return "a norm of rows that are not projected";
  if (const char* reason = check_experts(mixture.experts, width ? width : hidden_size, slot_bytes)) return reason;
  return mixture.has_shared ? check_mlp(mixture.shared, hidden_size) : nullptr;
}

void finish_mixture(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place, const float* outputs) {
  const auto& mixture = *static_cast<const Mixture*>(layer.feed_forward);
  Weighted shared{};
  if (mixture.has_shared) {
    shared = mixture.router.num_shared ? run_shared(context, mixture, step) : run_mlp(context, layer, mixture.shared, step);
  }
  const float* weights = mixture.scales_input ? nullptr : weights_of(step, place);
  const int32_t* rows = mixture.num_identities || mixture.router.num_skips ? choices_of(step, place) : nullptr;
  if (!outputs) outputs = results_of(context, mixture, step);
  Choices choices{outputs,          weights, rows, mixture.num_experts, mixture.router.top_k, mixture.experts_scale,
                  mixture.output_norm, mixture.is_deferred != 0, mixture.router.num_skips != 0};
  if (mixture.input_projection.outputs || mixture.result_norm.kind != NormKind::kNone) {
    const float* sums = sum_results(context, layer, step, mixture, choices);
    choices = {sums, nullptr, nullptr, 0, 1, 1.0f, choices.norm, choices.is_deferred, false};
  }
  add_results(context, layer, step, choices, shared, mixture.shared);
}

}  // namespace

const FeedForwardOperations kMlp = {
    false,
    [](const void* feed_forward, int64_t hidden_size, int64_t) {
      return check_mlp(*static_cast<const Mlp*>(feed_forward), hidden_size);
    },
    [](Context& context, const LayerSpec& layer, const StepCall& step, int64_t place) {
      norm_and_route(context, layer, nullptr, {}, step, place);
    },
    [](Context&, const LayerSpec&, const StepCall&, int64_t) -> const float* { return nullptr; },
    [](Context&, const LayerSpec&, const StepCall&, int64_t, const GivenExperts&) {},
    [](Context& context, const LayerSpec& layer, const StepCall& step, int64_t, const float*) {
      const auto& mlp = *static_cast<const Mlp*>(layer.feed_forward);
      const Choices none{nullptr, nullptr, nullptr, 0, 0, 1.0f, {}, false, false};
      add_results(context, layer, step, none, run_mlp(context, layer, mlp, step), mlp);
    },
};

const FeedForwardOperations kExperts = {
    true,
    check_mixture,
    [](Context& context, const LayerSpec& layer, const StepCall& step, int64_t place) {
      const auto& mixture = *static_cast<const Mixture*>(layer.feed_forward);
      const auto* next = static_cast<const Mixture*>(layer.next_mixture);
      norm_and_route(context, layer, &mixture.router, mixture.router_norm, step, place, next ? &next->router : nullptr);
      project_rows(context, layer, step, mixture);
    },
    run_resident_experts,
    run_given_experts,
    finish_mixture,
};

}  // namespace greenroom
