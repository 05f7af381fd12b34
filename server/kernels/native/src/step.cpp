#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace greenroom {
namespace {

constexpr int64_t kTokenTile = 16;   // tokens of one sequence per tile of attention
constexpr int64_t kRouterTile = 16;  // experts

// Some matrices with the same rows; their outputs are concatenated in `y`.
struct Side {
  const Matrix* matrix;
  const float* bias;
  int64_t offset;                 // offset of its first output
  const LoraSums* lora = nullptr;  // what adapters add
};

template <typename Put>
auto multiply_sides(const Engine& engine, const Panel& panel, const Side* sides, int num_sides, int64_t output_tile,
                    Put put) {
  return [&engine, &panel, sides, num_sides, output_tile, put](int64_t tile, int) {
    const int64_t row_tiles = divide_up(panel.rows, kRowTile);
    int64_t place = tile / row_tiles;
    const int64_t first_row = tile % row_tiles * kRowTile, last_row = std::min(first_row + kRowTile, panel.rows);
    for (int i = 0; i < num_sides; ++i) {
      const int64_t tiles = divide_up(sides[i].matrix->outputs, output_tile);
      if (place >= tiles) {
        place -= tiles;
        continue;
      }
      const int64_t first = place * output_tile, last = std::min(first + output_tile, sides[i].matrix->outputs);
      alignas(64) float sums[kRowTile * kOutputTile];
      engine.level.multiply(*sides[i].matrix, panel, first_row, last_row, first, last, sums, kOutputTile);
      if (sides[i].bias) {
        add_bias(engine.level, sides[i].bias, Format::kFloat32, last_row - first_row, first, last, sums, kOutputTile);
      }
      if (sides[i].lora) sides[i].lora->add(engine.level, 0, first_row, last_row, first, last, sums, kOutputTile);
      for (int64_t row = first_row; row < last_row; ++row) {
        put(row, sides[i].offset + first, sums + (row - first_row) * kOutputTile, last - first);
      }
      return;
    }
  };
}

int64_t num_tiles(const Side* sides, int num_sides, int64_t rows, int64_t output_tile) {
  int64_t tiles = 0;
  for (int i = 0; i < num_sides; ++i) tiles += divide_up(sides[i].matrix->outputs, output_tile);
  return tiles * divide_up(rows, kRowTile);
}

// Applies the norms of heads and the rotary embedding to one token, and writes its keys and values to the cache.
void place_token(const Level& level, const LayerSpec& layer, const StepCall& step, const StepSequence& sequence,
                 int64_t token, float* query, float* key, const float* value) {
  const int64_t position = sequence.first_position + token - sequence.first_row;
  const auto norm_heads = [&](float* x, const float* weight, int64_t heads) {
    if (!weight) return;
    if (layer.norms_together) {
      level.normalise(x, weight, layer.head_norm_epsilon, heads * layer.key_dim, x);
      return;
    }
    for (int64_t head = 0; head < heads; ++head) {
      level.normalise(x + head * layer.key_dim, weight, layer.head_norm_epsilon, layer.key_dim, x + head * layer.key_dim);
    }
  };
  norm_heads(query, layer.query_norm, layer.heads);
  norm_heads(key, layer.key_norm, layer.kv_heads);
  if (layer.rope_kind != RopeKind::kNone) {
    const float* cosines = step.cosines[layer.rope] + position * (layer.rotary_dim / 2);
    const float* sines = step.sines[layer.rope] + position * (layer.rotary_dim / 2);
    const bool is_interleaved = layer.rope_kind == RopeKind::kInterleaved;
    for (int64_t head = 0; head < layer.heads; ++head) {
      level.rotate(query + head * layer.key_dim, cosines, sines, layer.rotary_dim, is_interleaved);
    }
    for (int64_t head = 0; head < layer.kv_heads; ++head) {
      level.rotate(key + head * layer.key_dim, cosines, sines, layer.rotary_dim, is_interleaved);
    }
  }
  const int32_t* blocks = step.block_tables[layer.group] + sequence.first_block;
  const int64_t block = blocks[position / kCacheBlock], place = position % kCacheBlock;
  const int64_t bytes = bytes_of(layer.cache_format), head_numbers = layer.cache_slots * layer.cache_dim;
  for (int64_t head = 0; head < layer.kv_heads; ++head) {
    char* keys = static_cast<char*>(layer.key_cache) + (head * head_numbers + block * kCacheBlock * layer.cache_dim) * bytes;
    char* values = static_cast<char*>(layer.value_cache) +
                   (head * head_numbers + (block * kCacheBlock + place) * layer.cache_dim) * bytes;
    level.narrow(value + head * layer.value_dim, layer.cache_format, values, layer.value_dim);
    constexpr int64_t kPiece = 64;
    alignas(64) char numbers[kPiece * 4];
    for (int64_t d = 0; d < layer.key_dim; d += kPiece) {
      const int64_t count = std::min(kPiece, layer.key_dim - d);
      level.narrow(key + head * layer.key_dim + d, layer.cache_format, numbers, count);
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(keys + ((d + i) * kCacheBlock + place) * bytes, numbers + i * bytes, static_cast<size_t>(bytes));
      }
    }
  }
}

// Finds the best `count` of `scores`, and overwrites these; of equal ones, takes the first.
void take_best(float* scores, int64_t size, int64_t count, int32_t* best) {
  for (int64_t i = 0; i < count; ++i) {
    int64_t found = 0;
    for (int64_t j = 1; j < size; ++j) found = scores[j] > scores[found] ? j : found;
    best[i] = static_cast<int32_t>(found);
    scores[found] = -INFINITY;
  }
}

// Keeps the scores of the groups whose two best have the greatest sums, and sets the others to -infinity.
void keep_best_groups(const Router& router, int64_t num_experts, float* scores) {
  constexpr int64_t kMostGroups = 64;
  const int64_t size = num_experts / router.num_groups;
  float sums[kMostGroups];
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
    sums[group] = first + second;
  }
  int32_t best[kMostGroups];
  take_best(sums, router.num_groups, router.top_groups, best);
  for (int64_t group = 0; group < router.num_groups; ++group) {
    if (std::find(best, best + router.top_groups, group) != best + router.top_groups) continue;
    std::fill(scores + group * size, scores + (group + 1) * size, -INFINITY);
  }
}

// `scores` are a token's logits; `spare` is memory for as many numbers.
void choose(const Level& level, const Router& router, int64_t num_experts, float* scores, float* spare, int32_t* chosen,
            float* weights) {
  if (router.kind == RouterKind::kSoftMaxFirst) level.soft_max(scores, num_experts);
  if (router.kind == RouterKind::kSigmoid) level.sigmoid(scores, num_experts);
  std::memcpy(spare, scores, static_cast<size_t>(num_experts) * sizeof(float));
  if (router.correction) level.add_scaled(spare, router.correction, 1.0f, num_experts);
  if (router.num_groups > 1) keep_best_groups(router, num_experts, spare);
  take_best(spare, num_experts, router.top_k, chosen);
  for (int32_t i = 0; i < router.top_k; ++i) weights[i] = scores[chosen[i]];
  if (router.kind == RouterKind::kTopFirst) level.soft_max(weights, router.top_k);
  float total = 1.0f;
  if (router.is_normalised) {
    total = 1e-20f;
    for (int32_t i = 0; i < router.top_k; ++i) total += weights[i];
  }
  for (int32_t i = 0; i < router.top_k; ++i) weights[i] = weights[i] / total * router.scale;
}

// The set of experts of a row's sequence.
int64_t set_of_row(const StepCall& step, int64_t row) {
  if (!step.sets) return 0;
  const StepSequence* sequence = step.sequences;
  while (row >= sequence->first_row + sequence->num_tokens) ++sequence;
  return step.sets->set_of_sequence[sequence - step.sequences];
}

const Router& router_of(const LayerSpec& layer, const StepCall& step, int64_t place, int64_t set) {
  if (!step.sets) return layer.router;
  const Router& router = step.sets->routers[place * step.sets->num_sets + set];
  return router.matrix.outputs ? router : layer.router;
}

// A matrix of a layer that adapters may add to, and its input (tokens, inputs).
struct LoraSite {
  LoraSums& sums;
  LoraParts LoraLayer::* matrix;
  const float* x;
  int64_t inputs;
};

bool is_routed(const StepCall& step) { return step.lora && step.lora->routing; }

// Prepares the computation of a site's factors from its input.
void begin_routes(const Engine& engine, const LoraSite& site, const LayerSpec& layer, const StepCall& step) {
  const LoraStep& lora = *step.lora;
  site.sums.routes.begin(*lora.routing, {lora.factors, lora.num_adapters, nullptr, 0}, step.tokens, site.x, site.inputs,
                         engine.pool.num_threads(),
                         [&](int64_t adapter) { return lora.layers[adapter][layer.index].*site.matrix; });
}

// Plans what the adapters of a step add at a site, after a router's factors were computed.
void plan_lora(const Engine& engine, const LoraSite& site, const LayerSpec& layer, const StepCall& step) {
  const LoraStep& lora = *step.lora;
  const int32_t starts[] = {0, static_cast<int32_t>(step.tokens)};
  const LoraFactors fixed{lora.factors, lora.num_adapters, nullptr, 0};
  site.sums.plan(lora.routing ? site.sums.routes.factors() : fixed, {site.x, Format::kFloat32, site.inputs, nullptr}, 1,
                 starts, engine.pool.num_threads(),
                 [&](int64_t, int64_t adapter) { return lora.layers[adapter][layer.index].*site.matrix; });
}

// An adapter's additions to the first and the second matrix of experts, by expert, or null.
struct ExpertParts {
  const LoraParts *first, *second;
};

// Returns what the adapters of a step add to some experts of a layer. `numbers` are the experts of the batch.
template <typename PartsOf>
LoraExperts lora_of_experts(Engine& engine, const LayerSpec& layer, const StepCall& step, const int32_t* numbers,
                            PartsOf parts_of) {
  if (!step.lora) return {};
  const LoraStep& lora = *step.lora;
  auto* first = engine.adapters.reserve<const LoraParts*>(2 * lora.num_adapters * 8);
  const LoraParts** second = first + lora.num_adapters;
  for (int64_t adapter = 0; adapter < lora.num_adapters; ++adapter) {
    const ExpertParts parts = parts_of(lora.layers[adapter][layer.index]);
    first[adapter] = parts.first;
    second[adapter] = parts.second;
  }
  return {first, second, lora.factors, lora.num_adapters, numbers, nullptr};
}

// Adds what adapters add to the logits of the dense expert's gate, (tokens).
void add_to_gates(Engine& engine, const LayerSpec& layer, const StepCall& step, float* gates) {
  LoraSums& sums = engine.gate_lora;
  const LoraSite site{sums, &LoraLayer::dense_gate, step.normed, step.hidden_size};
  if (is_routed(step)) {
    begin_routes(engine, site, layer, step);
    for (int64_t row = 0; row < step.tokens; ++row) sums.routes.score(engine.level, row, 0);
  }
  plan_lora(engine, site, layer, step);
  for (int64_t tile = 0; tile < sums.num_tiles(); ++tile) sums.multiply_down(engine.level, tile, 0);
  for (int64_t row = 0; row < step.tokens; row += kRowTile) {
    sums.add(engine.level, 0, row, std::min(row + kRowTile, step.tokens), 0, 1, gates + row, 1);
  }
}

int32_t* choices_of(const StepCall& step, int64_t place) {
  return step.chosen + place * step.tokens * step.most_top_k;
}

float* weights_of(const StepCall& step, int64_t place) {
  return step.weights + place * step.tokens * step.most_top_k;
}

}  // namespace

void run_attention(Engine& engine, const LayerSpec& layer, const StepCall& step, int64_t place) {
  const Level& level = engine.level;
  const int64_t tokens = step.tokens, hidden_size = step.hidden_size;
  const int64_t queries = layer.heads * layer.key_dim, keys = layer.kv_heads * layer.key_dim;
  const int64_t values = layer.kv_heads * layer.value_dim, width = queries + keys + values;
  const int64_t attended_size = layer.heads * layer.value_dim, threads = engine.pool.num_threads();
  PanelKind kind = level.panel_kind(layer.query, step.is_exact);
  for (const Matrix* matrix : {&layer.key, &layer.value}) {  // they share the panel: all take rows in float32
    if (level.panel_kind(*matrix, step.is_exact) != kind) kind = PanelKind::kFloat32;
  }
  const PanelKind output_kind = level.panel_kind(layer.output, step.is_exact);
  const int64_t panel_size = panel_bytes(kind, tokens, hidden_size);
  const int64_t output_size = panel_bytes(output_kind, tokens, attended_size);
  Panel panel = place_panel(kind, tokens, hidden_size, engine.rows.reserve(round_up(panel_size, 64) + output_size));
  Panel output_panel =
      place_panel(output_kind, tokens, attended_size, static_cast<char*>(panel.data) + round_up(panel_size, 64));
  Panel router_panel = place_panel(PanelKind::kFloat32, tokens, hidden_size,
                                   engine.hidden.reserve(panel_bytes(PanelKind::kFloat32, tokens, hidden_size)));
  float* heads = engine.heads.reserve<float>(tokens * width * 4);
  const int64_t scratch_size = attention_scratch(layer.value_dim);
  float* attended = engine.attended.reserve<float>((tokens * attended_size + threads * scratch_size) * 4);
  float* scratch = attended + tokens * attended_size;

  LoraSums* const inner_lora[] = {&engine.query_lora, &engine.key_lora, &engine.value_lora};
  LoraSums &output_lora = engine.output_lora, &router_lora = engine.router_lora;
  const LoraSite inner_sites[] = {{*inner_lora[0], &LoraLayer::query, step.normed, hidden_size},
                                  {*inner_lora[1], &LoraLayer::key, step.normed, hidden_size},
                                  {*inner_lora[2], &LoraLayer::value, step.normed, hidden_size}};
  const LoraSite output_site{output_lora, &LoraLayer::output, attended, attended_size};
  const LoraSite router_site{router_lora, &LoraLayer::router, step.normed, hidden_size};
  for (LoraSums* sums : {inner_lora[0], inner_lora[1], inner_lora[2], &output_lora, &router_lora}) sums->clear();

  auto norm = [&](int64_t token, int) {
    float* normed = step.normed + token * hidden_size;
    level.normalise(step.hidden + token * hidden_size, layer.input_norm, layer.norm_epsilon, hidden_size, normed);
    level.prepare(panel, step.normed, Format::kFloat32, hidden_size, nullptr, token, token + 1);
  };
  auto multiply_down = [&](int64_t tile, int thread) {
    for (LoraSums* sums : inner_lora) {
      if (tile < sums->num_tiles()) return sums->multiply_down(level, tile, thread);
      tile -= sums->num_tiles();
    }
  };
  const Side sides[] = {{&layer.query, layer.query_bias, 0, inner_lora[0]},
                        {&layer.key, layer.key_bias, queries, inner_lora[1]},
                        {&layer.value, layer.value_bias, queries + keys, inner_lora[2]}};
  auto project = multiply_sides(engine, panel, sides, 3, kOutputTile,
                                [&](int64_t row, int64_t output, const float* sums, int64_t count) {
                                  std::memcpy(heads + row * width + output, sums, static_cast<size_t>(count) * 4);
                                });
  auto put = [&](int64_t token, int) {
    const StepSequence* sequence = step.sequences;
    while (token >= sequence->first_row + sequence->num_tokens) ++sequence;
    float* row = heads + token * width;
    place_token(level, layer, step, *sequence, token, row, row + queries, row + queries + keys);
  };

  int64_t token_tiles = 0;
  for (int64_t i = 0; i < step.num_sequences; ++i) token_tiles += divide_up(step.sequences[i].num_tokens, kTokenTile);
  auto attend = [&](int64_t tile, int thread) {
    const int64_t kv_head = tile % layer.kv_heads, group = layer.heads / layer.kv_heads;
    // The last tokens of a sequence attend to the most keys, so they are taken first.
    int64_t place_of_tile = token_tiles - 1 - tile / layer.kv_heads;
    const StepSequence* sequence = step.sequences;
    for (int64_t count; place_of_tile >= (count = divide_up(sequence->num_tokens, kTokenTile)); ++sequence) {
      place_of_tile -= count;
    }
    const int64_t first = place_of_tile * kTokenTile, row = sequence->first_row + first;
    const int64_t bytes = bytes_of(layer.cache_format), begin = kv_head * layer.cache_slots * layer.cache_dim * bytes;
    Attention attention{};
    attention.query = heads + row * width + kv_head * group * layer.key_dim;
    attention.output = attended + row * attended_size + kv_head * group * layer.value_dim;
    attention.query_stride = width;
    attention.output_stride = attended_size;
    attention.keys = static_cast<const char*>(layer.key_cache) + begin;
    attention.values = static_cast<const char*>(layer.value_cache) + begin;
    attention.blocks = step.block_tables[layer.group] + sequence->first_block;
    attention.sinks = layer.sinks ? layer.sinks + kv_head * group : nullptr;
    attention.scratch = scratch + thread * scratch_size;
    attention.first_position = sequence->first_position + first;
    attention.tokens = std::min<int64_t>(kTokenTile, sequence->num_tokens - first);
    attention.heads = group;
    attention.dim = layer.cache_dim;
    attention.key_dim = layer.key_dim;
    attention.value_dim = layer.value_dim;
    attention.window = layer.window;
    attention.is_chunked = layer.is_chunked;
    attention.format = layer.cache_format;
    attention.scaling = layer.scaling;
    attention.softcap = layer.softcap;
    level.attend(attention);
  };
  auto prepare = [&](int64_t token, int thread) {
    if (token >= tokens) return output_lora.multiply_down(level, token - tokens, thread);
    level.prepare(output_panel, attended, Format::kFloat32, attended_size, nullptr, token, token + 1);
  };
  const Side output_side[] = {{&layer.output, layer.output_bias, 0, &output_lora}};
  auto project_back = multiply_sides(engine, output_panel, output_side, 1, kOutputTile,
                                     [&](int64_t row, int64_t output, const float* sums, int64_t count) {
                                       level.add_scaled(step.hidden + row * hidden_size + output, sums,
                                                        layer.residual_scale, count);
                                     });
  auto norm_again = [&](int64_t token, int) {
    float* normed = step.normed + token * hidden_size;
    level.normalise(step.hidden + token * hidden_size, layer.inner_norm, layer.norm_epsilon, hidden_size, normed);
    if (layer.has_router) {
      level.prepare(router_panel, step.normed, Format::kFloat32, hidden_size, nullptr, token, token + 1);
    }
  };
  Phase phases[11];
  int num_phases = 0;
  const auto then = [&](int64_t count, auto& function) { phases[num_phases++] = phase_of(count, function); };
  const auto run = [&] {
    engine.pool.run(phases, num_phases);
    num_phases = 0;
  };
  // Plans additions to matrices. If a router computes factors, their input is computed before.
  const auto plan = [&](const LoraSite* sites, int num_sites) {
    if (!step.lora) return;
    auto score = [&](int64_t row, int thread) {
      for (int i = 0; i < num_sites; ++i) sites[i].sums.routes.score(level, row, thread);
    };
    if (step.lora->routing) {
      for (int i = 0; i < num_sites; ++i) begin_routes(engine, sites[i], layer, step);
      then(tokens, score);
      run();
    }
    for (int i = 0; i < num_sites; ++i) plan_lora(engine, sites[i], layer, step);
  };
  then(tokens, norm);
  plan(inner_sites, 3);
  int64_t down_tiles = 0;
  for (const LoraSums* sums : inner_lora) down_tiles += sums->num_tiles();
  if (down_tiles) then(down_tiles, multiply_down);
  then(num_tiles(sides, 3, tokens, kOutputTile), project);
  then(tokens, put);
  then(token_tiles * layer.kv_heads, attend);
  plan(&output_site, 1);
  then(tokens + output_lora.num_tiles(), prepare);
  then(num_tiles(output_side, 1, tokens, kOutputTile), project_back);
  then(tokens, norm_again);
  if (!layer.has_router) {
    run();
    return;
  }
  plan(&router_site, 1);
  const int64_t top_k = layer.router.top_k;
  int64_t num_experts = layer.num_experts;
  for (int64_t set = 1; step.sets && set < step.sets->num_sets; ++set) {
    num_experts = std::max(num_experts, step.sets->routers[place * step.sets->num_sets + set].matrix.outputs);
  }
  float* logits = engine.logits.reserve<float>((tokens + threads) * num_experts * 4);
  float* spare = logits + tokens * num_experts;
  // Each row has its own router; the tiles of one router lie together, and rows of others are left out.
  const int64_t num_routers = step.sets ? step.sets->num_sets : 1;
  int64_t router_tiles = 0;
  for (int64_t set = 0; set < num_routers; ++set) {
    router_tiles += divide_up(router_of(layer, step, place, set).matrix.outputs, kRouterTile);
  }
  auto score = [&](int64_t tile, int) {
    const int64_t row_tiles = divide_up(tokens, kRowTile);
    int64_t output_tile = tile / row_tiles, set = 0;
    const Router* router = &router_of(layer, step, place, set);
    for (int64_t tiles; output_tile >= (tiles = divide_up(router->matrix.outputs, kRouterTile));) {
      output_tile -= tiles;
      router = &router_of(layer, step, place, ++set);
    }
    const int64_t first = output_tile * kRouterTile, last = std::min(first + kRouterTile, router->matrix.outputs);
    const int64_t end = std::min((tile % row_tiles + 1) * kRowTile, tokens);
    alignas(64) float sums[kRowTile * kRouterTile];
    for (int64_t row = tile % row_tiles * kRowTile, after; row < end; row = after) {
      const int64_t row_set = set_of_row(step, row);
      for (after = row + 1; after < end && set_of_row(step, after) == row_set;) ++after;
      if (row_set != set) continue;
      level.multiply(router->matrix, router_panel, row, after, first, last, sums, kRouterTile);
      if (router->bias) {
        add_bias(level, router->bias, Format::kFloat32, after - row, first, last, sums, kRouterTile);
      }
      router_lora.add(level, 0, row, after, first, last, sums, kRouterTile);
      for (int64_t i = row; i < after; ++i) {
        std::memcpy(logits + i * num_experts + first, sums + (i - row) * kRouterTile, static_cast<size_t>(last - first) * 4);
      }
    }
  };
  auto multiply_router_down = [&](int64_t tile, int thread) { router_lora.multiply_down(level, tile, thread); };
  auto choose_experts = [&](int64_t token, int thread) {
    const Router& router = router_of(layer, step, place, set_of_row(step, token));
    choose(level, router, router.matrix.outputs, logits + token * num_experts, spare + thread * num_experts,
           choices_of(step, place) + token * top_k, weights_of(step, place) + token * top_k);
  };
  if (!router_lora.is_empty()) then(router_lora.num_tiles(), multiply_router_down);
  then(router_tiles * divide_up(tokens, kRowTile), score);
  then(tokens, choose_experts);
  run();
}

void finish_layer(Engine& engine, const LayerSpec& layer, const StepCall& step, int64_t place, const float* outputs) {
  const Level& level = engine.level;
  const int64_t tokens = step.tokens, hidden_size = step.hidden_size;
  float* shared = nullptr;
  float* gates = nullptr;
  if (layer.has_dense) {
    shared = engine.shared.reserve<float>((tokens * hidden_size + tokens) * 4);
    gates = shared + tokens * hidden_size;
    auto* numbers = engine.sorted.reserve<int32_t>(tokens * 4);
    for (int64_t token = 0; token < tokens; ++token) numbers[token] = static_cast<int32_t>(token);
    const uint64_t slot = 0;
    const int32_t starts[] = {0, static_cast<int32_t>(tokens)};
    const int32_t number = 0;
    LoraExperts lora = lora_of_experts(engine, layer, step, &number, [](const LoraLayer& of) {
      return ExpertParts{&of.dense_first, &of.dense_second};
    });
    if (step.lora) lora.routing = step.lora->routing;
    const ExpertBatch batch{&slot,       starts, numbers,          step.normed,  shared, 1, 1, hidden_size,
                            Format::kFloat32, step.is_exact, step.lora ? &lora : nullptr};
    run_experts(engine, layer.dense, batch);
    if (layer.dense_gate.outputs) {
      Panel panel = place_panel(PanelKind::kFloat32, tokens, hidden_size,
                                engine.rows.reserve(panel_bytes(PanelKind::kFloat32, tokens, hidden_size)));
      level.prepare(panel, step.normed, Format::kFloat32, hidden_size, nullptr, 0, tokens);
      level.multiply(layer.dense_gate, panel, 0, tokens, 0, 1, gates, 1);
      if (step.lora) add_to_gates(engine, layer, step, gates);
      level.sigmoid(gates, tokens);
    }
  }
  const int64_t top_k = layer.has_router ? layer.router.top_k : 0;
  const float* weights = layer.has_router ? weights_of(step, place) : nullptr;
  float* sums = engine.middle.reserve<float>(engine.pool.num_threads() * hidden_size * 4);
  auto add = [&](int64_t token, int thread) {
    float* sum = sums + thread * hidden_size;
    std::memset(sum, 0, static_cast<size_t>(hidden_size) * sizeof(float));
    for (int64_t i = token * top_k; i < (token + 1) * top_k; ++i) {
      level.add_scaled(sum, outputs + i * hidden_size, weights[i], hidden_size);
    }
    if (shared) {
      level.add_scaled(sum, shared + token * hidden_size, layer.dense_gate.outputs ? gates[token] : 1.0f, hidden_size);
    }
    level.add_scaled(step.hidden + token * hidden_size, sum, layer.residual_scale, hidden_size);
  };
  const Phase phase = phase_of(tokens, add);
  engine.pool.run(&phase, 1);
}

namespace {

// Runs the experts of a layer, all of which are in memory.
const float* run_resident_experts(Engine& engine, const LayerSpec& layer, const StepCall& step, int64_t place) {
  const int64_t num_choices = step.tokens * layer.router.top_k;
  const int64_t num_experts = step.sets ? step.most_experts : layer.num_experts;
  const int32_t* chosen = choices_of(step, place);
  const uint64_t* slots = step.slots + place * step.most_experts;
  auto* used_slots = engine.sorted.reserve<uint64_t>(num_experts * 8 + (3 * num_experts + 2 + 2 * num_choices) * 4);
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
      for (int64_t i = token * layer.router.top_k; i < (token + 1) * layer.router.top_k; ++i) {
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
  float* results = engine.results.reserve<float>(num_choices * step.hidden_size * 4);
  const LoraExperts lora = lora_of_experts(engine, layer, step, used, [](const LoraLayer& of) {
    return ExpertParts{of.first, of.second};
  });
  const ExpertBatch batch{used_slots, starts,       choices,          step.normed,  results, num_used, layer.router.top_k,
                          step.hidden_size, Format::kFloat32, step.is_exact, step.lora ? &lora : nullptr};
  run_experts(engine, layer.experts, batch);
  return results;
}

}  // namespace

void run_layers(Engine& engine, const LayerSpec* layers, int64_t num_layers, const StepCall& step) {
  int64_t place = 0;
  for (int64_t i = 0; i < num_layers; ++i) {
    const LayerSpec& layer = layers[i];
    run_attention(engine, layer, step, place);
    const float* outputs = layer.has_router ? run_resident_experts(engine, layer, step, place) : nullptr;
    finish_layer(engine, layer, step, place, outputs);
    place += layer.has_router;
  }
}

void run_head(Engine& engine, const HeadCall& call) {
  const Level& level = engine.level;
  const int64_t hidden_size = call.hidden_size, rows = call.num_logits, vocabulary = call.matrix.outputs;
  const PanelKind kind = level.panel_kind(call.matrix, call.is_exact);
  Panel panel =
      place_panel(kind, rows, hidden_size, engine.rows.reserve(panel_bytes(kind, rows, hidden_size)));
  auto norm = [&](int64_t row, int) {
    float* normed = call.normed + row * hidden_size;
    level.normalise(call.hidden + call.rows[row] * hidden_size, call.norm, call.norm_epsilon, hidden_size, normed);
    if (row < rows) level.prepare(panel, call.normed, Format::kFloat32, hidden_size, nullptr, row, row + 1);
  };
  LoraSums& lora = engine.head_lora;
  lora.clear();
  Phase phases[4];
  int num_phases = 0;
  const auto then = [&](int64_t count, auto& function) { phases[num_phases++] = phase_of(count, function); };
  auto score = [&](int64_t row, int thread) { lora.routes.score(level, row, thread); };
  auto multiply_down = [&](int64_t tile, int thread) { lora.multiply_down(level, tile, thread); };
  const Side side[] = {{&call.matrix, call.bias, 0, &lora}};
  auto multiply = multiply_sides(engine, panel, side, 1, kOutputTile,
                                 [&](int64_t row, int64_t output, const float* sums, int64_t count) {
                                   float* y = call.logits + row * vocabulary + output;
                                   for (int64_t i = 0; i < count; ++i) y[i] = sums[i] * call.scale;
                                 });
  then(call.num_rows, norm);
  if (call.lora) {
    const LoraStep& step = *call.lora;
    LoraFactors factors{step.factors, step.num_adapters, call.rows, 0};
    if (step.routing) {
      lora.routes.begin(*step.routing, factors, rows, call.normed, hidden_size, engine.pool.num_threads(),
                        [&](int64_t adapter) { return step.heads[adapter]; });
      then(rows, score);
      engine.pool.run(phases, num_phases);
      num_phases = 0;
      factors = lora.routes.factors();
    }
    const int32_t starts[] = {0, static_cast<int32_t>(rows)};
    lora.plan(factors, {call.normed, Format::kFloat32, hidden_size, nullptr}, 1, starts, engine.pool.num_threads(),
              [&](int64_t, int64_t adapter) { return step.heads[adapter]; });
  }
  if (!lora.is_empty()) then(lora.num_tiles(), multiply_down);
  then(num_tiles(side, 1, rows, kOutputTile), multiply);
  engine.pool.run(phases, num_phases);
}

}  // namespace greenroom
