#include "layers/router.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "formats/checks.h"
#include "layers/layer_adapters.h"

namespace greenroom {
namespace {

constexpr int64_t kRouterTile = 16;  // experts

// Finds the best `count` of `scores`, and overwrites these; of equal ones, takes the first.
void take_best(float* scores, int64_t size, int64_t count, int32_t* best) {
  for (int64_t i = 0; i < count; ++i) {
    int64_t found = 0;
    for (int64_t j = 1; j < size; ++j) found = scores[j] > scores[found] ? j : found;
    best[i] = static_cast<int32_t>(found);
    scores[found] = -INFINITY;
  }
}

// Keeps the scores of the groups whose best, or whose two best together, have the greatest scores, and sets the others to
// -infinity. `sums` is memory for a number of each group.
void keep_best_groups(const Router& router, int64_t num_experts, float* scores, float* sums) {
  const int64_t size = num_experts / router.num_groups;
  for (int64_t group = 0; group < router.num_groups; ++group) {
    float first = -INFINITY, second = -INFINITY;
    for (int64_t i = group * size; i < (group + 1) * size; ++i) {
      if (scores[i] > first) {
        second = first;
        first = scores[i];
      } else if (scores[i] > second) {
        second = scores[i];
      }
    }
    sums[group] = router.is_by_best ? first : first + second;
  }
  const auto is_before = [&](int64_t group, int64_t other) {  // of equal groups, the first is better
    return sums[group] > sums[other] || (sums[group] == sums[other] && group < other);
  };
  for (int64_t group = 0; group < router.num_groups; ++group) {
    int64_t num_better = 0;
    for (int64_t other = 0; other < router.num_groups; ++other) num_better += is_before(other, group);
    if (num_better < router.top_groups) continue;
    std::fill(scores + group * size, scores + (group + 1) * size, -INFINITY);
  }
}

// Sets the weight of each choice to its share in a softmax over the experts that were left when it was made, without
// those that are further from it than `near` (arXiv 2409.12136). `spare` is memory for as many numbers as `scores`.
void mix_sparsely(const Level& level, const Router& router, int64_t num_experts, float* scores, float* spare,
                  const int32_t* chosen, float* weights) {
  std::memcpy(spare, scores, static_cast<size_t>(num_experts) * sizeof(float));
  for (int32_t i = 0; i < router.top_k; ++i) {
    const float best = scores[chosen[i]];
    for (int64_t j = 0; j < num_experts; ++j) {
      const float size = std::max(std::fabs(spare[j]), best);
      if ((best - spare[j]) / size > router.near) scores[j] = -INFINITY;
    }
    level.soft_max(scores, num_experts);
    weights[i] = scores[chosen[i]];
    std::memcpy(scores, spare, static_cast<size_t>(num_experts) * sizeof(float));
    for (int32_t made = 0; made <= i; ++made) scores[chosen[made]] = -INFINITY;
  }
}

// The square root of log(1 + e^x).
float sqrt_soft_plus(float x) { return std::sqrt(std::max(x, 0.0f) + std::log1p(std::exp(-std::fabs(x)))); }

// `scores` are the logits of a token with this number in the vocabulary; `spare` is memory for as many numbers, and for one
// of each group. `shares` takes the weights of shared rows; or null.
void choose(const Level& level, const Router& router, int64_t num_experts, int32_t token_id, float* scores, float* spare,
            int32_t* chosen, float* weights, float* shares) {
  if (router.kind == RouterKind::kSoftmaxFirst) level.soft_max(scores, num_experts);
  if (router.kind == RouterKind::kSigmoid) level.sigmoid(scores, num_experts + router.num_shared);
  if (router.kind == RouterKind::kSqrtSoftplus) std::transform(scores, scores + num_experts, scores, sqrt_soft_plus);
  if (router.table) {
    const int64_t row = std::clamp<int64_t>(token_id, 0, router.table_rows - 1);
    std::copy_n(router.table + row * router.top_k, router.top_k, chosen);
  } else {
    std::memcpy(spare, scores, static_cast<size_t>(num_experts) * sizeof(float));
    if (router.correction) level.add_scaled(spare, router.correction, 1.0f, num_experts);
    if (router.num_groups > 1) keep_best_groups(router, num_experts, spare, spare + num_experts);
    take_best(spare, num_experts, router.top_k, chosen);
  }
  const int64_t num_weighted = num_experts - router.num_skips;
  for (int32_t i = 0; i < router.top_k; ++i) weights[i] = chosen[i] < num_weighted ? scores[chosen[i]] : 0.0f;
  if (router.kind == RouterKind::kSparseMixer) mix_sparsely(level, router, num_experts, scores, spare, chosen, weights);
  if (router.kind == RouterKind::kTopSigmoid) level.sigmoid(weights, router.top_k);
  if (router.kind == RouterKind::kTopFirst) level.soft_max(weights, router.top_k);
  float total = 1.0f;
  if (router.is_normalised) {
    total = 1e-20f;
    for (int32_t i = 0; i < router.top_k; ++i) total += weights[i];
    for (int64_t i = 0; i < router.num_shared; ++i) total += scores[num_experts + i];
  }
  for (int64_t i = 0; shares && i < router.num_shared; ++i) shares[i] = scores[num_experts + i] / total * router.scale;
  for (int32_t i = 0; i < router.top_k; ++i) weights[i] = weights[i] / total * router.scale;
  if (router.expert_scales) {
    for (int32_t i = 0; i < router.top_k; ++i) weights[i] *= router.expert_scales[chosen[i]];
  }
}

const Router& router_of(const Router& own, const StepCall& step, int64_t place, int64_t set) {
  if (!step.sets) return own;
  const Router& router = step.sets->routers[place * step.sets->num_sets + set];
  return router.matrix.outputs ? router : own;
}

// Where the choices of a router go, (tokens, top_k), and their weights.
struct Chosen {
  int32_t* experts;
  float* weights;
  float* shares;  // (tokens, num_shared); null if there are none, or nobody reads them
};

// Computes the logits of all rows. Each row has its own router; the tiles of one router lie together, and rows of others
// are left out.
class RouterLogits {
 public:
  // `lora` is what adapters add; null for nothing.
  RouterLogits(Context& context, const Router& own, const StepCall& step, int64_t place, const Panel& panel,
               Buffer& memory, Chosen chosen, const LoraSums* lora)
      : context_(context), own_(own), step_(step), place_(place), panel_(panel), chosen_(chosen), lora_(lora),
        width_(own.matrix.outputs) {
    for (int64_t set = 0; set < (step.sets ? step.sets->num_sets : 1); ++set) {
      const int64_t outputs = router(set).matrix.outputs;
      width_ = std::max<int64_t>(width_, outputs);
      spare_ = std::max<int64_t>(spare_, outputs + router(set).num_groups);
      output_tiles_ += divide_up(outputs, kRouterTile);
    }
    logits_ = memory.reserve<float>((step.tokens * width_ + context.pool.num_threads() * spare_) * 4);
  }

  int64_t num_tiles() const { return output_tiles_ * divide_up(step_.tokens, kRowTile); }

  void compute(int64_t tile) const {
    const int64_t row_tiles = divide_up(step_.tokens, kRowTile);
    int64_t output_tile = tile / row_tiles, set = 0;
    for (int64_t tiles; output_tile >= (tiles = divide_up(router(set).matrix.outputs, kRouterTile)); ++set) {
      output_tile -= tiles;
    }
    const Router& router = this->router(set);
    const int64_t first = output_tile * kRouterTile, last = std::min(first + kRouterTile, router.matrix.outputs);
    const int64_t end = std::min((tile % row_tiles + 1) * kRowTile, step_.tokens);
    alignas(64) float sums[kRowTile * kRouterTile];
    for (int64_t row = tile % row_tiles * kRowTile, after; row < end; row = after) {
      const int64_t row_set = set_of_row(step_, row);
      for (after = row + 1; after < end && set_of_row(step_, after) == row_set;) ++after;
      if (row_set != set) continue;
      context_.level.multiply(router.matrix, panel_, row, after, first, last, sums, kRouterTile);
      if (router.bias) {
        add_bias(context_.level, router.bias, Format::kFloat32, after - row, first, last, sums, kRouterTile);
      }
      if (lora_) lora_->add(context_.level, 0, row, after, first, last, sums, kRouterTile);
      for (int64_t i = row; i < after; ++i) {
        float* logits = logits_ + i * width_;
        std::memcpy(logits + first, sums + (i - row) * kRouterTile, static_cast<size_t>(last - first) * 4);
        for (int64_t j = first; router.logits_scale != 1.0f && j < last; ++j) logits[j] *= router.logits_scale;
      }
    }
  }

  void choose(int64_t token, int thread) const {
    const Router& router = this->router(set_of_row(step_, token));
    const int64_t top_k = own_.top_k;
    float* spare = logits_ + step_.tokens * width_ + thread * spare_;
    const int32_t token_id = step_.token_ids ? step_.token_ids[token] : 0;
    float* shares = chosen_.shares ? chosen_.shares + token * own_.num_shared : nullptr;
    greenroom::choose(context_.level, router, num_choosable(router), token_id, logits_ + token * width_, spare,
                      chosen_.experts + token * top_k, chosen_.weights + token * top_k, shares);
  }

 private:
  const Router& router(int64_t set) const { return router_of(own_, step_, place_, set); }

  const Context& context_;
  const Router& own_;  // the layer's
  const StepCall& step_;
  const int64_t place_;
  const Panel& panel_;
  const Chosen chosen_;
  const LoraSums* lora_;
  int64_t width_;             // logits of a token
  int64_t spare_ = 0;         // numbers of a thread
  int64_t output_tiles_ = 0;  // of all routers
  float* logits_;             // (tokens, width), then (threads, spare)
};

}  // namespace

int64_t set_of_row(const StepCall& step, int64_t row) {
  if (!step.sets) return 0;
  const StepSequence* sequence = step.sequences;
  while (row >= sequence->first_row + sequence->num_tokens) ++sequence;
  return step.sets->set_of_sequence[sequence - step.sequences];
}

void norm_and_route(Context& context, const LayerSpec& layer, const Router* router, const Norm& router_norm,
                    const StepCall& step, int64_t place, const Router* next) {
  const Level& level = context.level;
  const int64_t tokens = step.tokens, hidden_size = step.hidden_size;
  Panel panel{};
  if (router) {
    panel = place_panel(PanelKind::kFloat32, tokens, hidden_size,
                        context.hidden.reserve(panel_bytes(PanelKind::kFloat32, tokens, hidden_size)));
  }
  const bool has_own_rows = router && router_norm.kind != NormKind::kNone;
  float* own_rows = has_own_rows ? context.inputs.reserve<float>(tokens * hidden_size * 4) : step.normed;
  const float* rows = own_rows;
  auto norm = [&](int64_t token, int) {
    const int64_t at = token * hidden_size;
    if (!layer.is_parallel) {
      norm_hidden(level, layer.inner_norm, layer.inner_residual, step.hidden + at, hidden_size, step.normed + at);
    }
    if (has_own_rows) apply_norm(level, router_norm, step.hidden + at, hidden_size, own_rows + at);
    if (router) level.prepare(panel, rows, Format::kFloat32, hidden_size, nullptr, token, token + 1);
  };
  PhaseList phases(context.pool);
  phases.add(tokens, norm);
  if (!router) return phases.run();
  if (router->mlp) {
    phases.run();
    rows = run_router_mlp(context, *router->mlp, layer, step, rows, panel);
  }

  LoraSums& lora = context.router_lora;
  lora.clear();
  const LoraSite site{lora, LoraPlace::kRouter, rows, router->matrix.inputs};
  plan_sites(phases, &site, 1, context, layer, step);
  const Chosen own{choices_of(step, place), weights_of(step, place), shares_of(context, *router, step)};
  const RouterLogits logits(context, *router, step, place, panel, context.logits, own, &lora);
  std::optional<RouterLogits> ahead;
  if (next && step.predictions) {
    const Chosen predicted{predicted_of(step, place + 1),
                           context.ahead_weights.reserve<float>(tokens * next->top_k * 4), nullptr};
    ahead.emplace(context, *next, step, place + 1, panel, context.ahead, predicted, nullptr);
  }
  const int64_t num_tiles = logits.num_tiles();
  auto multiply_down = [&](int64_t tile, int thread) { lora.multiply_down(level, tile, thread); };
  auto compute = [&](int64_t tile, int) { tile < num_tiles ? logits.compute(tile) : ahead->compute(tile - num_tiles); };
  auto choose_experts = [&](int64_t token, int thread) {
    token < tokens ? logits.choose(token, thread) : ahead->choose(token - tokens, thread);
  };
  phases.add(lora.num_tiles(), multiply_down);
  phases.add(num_tiles + (ahead ? ahead->num_tiles() : 0), compute);
  phases.add(ahead ? 2 * tokens : tokens, choose_experts);
  phases.run();
}

const char* check_router(const Router& router, int64_t hidden_size) {
  const Matrix& matrix = router.matrix;
  if (router.mlp) {
    if (const char* reason = check_router_mlp(*router.mlp, hidden_size)) return reason;
    hidden_size = router.mlp->second.outputs;
  }
  if (!is_shaped(matrix, matrix.outputs, hidden_size)) return "a router that doesn't fit its hidden states";
  if (router.kind < RouterKind::kSoftmaxFirst || router.kind > RouterKind::kSqrtSoftplus) return "an unknown kind of router";
  const int64_t experts = num_choosable(router);
  if (router.num_shared < 0 || (router.num_shared && (router.kind != RouterKind::kSigmoid || !router.is_normalised))) {
    return "a router that weights shared experts in an unknown way";
  }
  if (router.top_k < 1 || router.top_k > experts) return "a router that chooses more experts than there are";
  if (router.table) {
    if (!is_count(router.table_rows)) return "a router with an empty table";
    for (const int32_t* each = router.table; each < router.table + router.table_rows * router.top_k; ++each) {
      if (*each < 0 || *each >= experts) return "a router whose table has other experts";
    }
  }
  if (router.num_skips < 0 || router.num_skips >= experts) return "a router whose rows all stand for no expert";
  if (router.num_skips && (router.table || router.num_groups != 1 || router.kind != RouterKind::kSoftmaxFirst)) {
    return "a router that chooses no expert in an unknown way";
  }
  if (router.num_groups == 1) return nullptr;
  // A group is chosen by its two best experts.
  if (router.num_groups < 1 || experts % router.num_groups || experts / router.num_groups < 2) {
    return "groups that its experts can't be divided into";
  }
  const int64_t size = experts / router.num_groups;
  const bool is_possible = router.top_groups >= 1 && router.top_groups <= router.num_groups;
  return is_possible && router.top_k <= router.top_groups * size ? nullptr : "groups with too few experts to choose";
}

}  // namespace greenroom
