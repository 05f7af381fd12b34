#include "model/blocks/latent_attention/latent_attention.h"

#include <algorithm>

#include "formats/checks.h"
#include "layers/layer_adapters.h"
#include "layers/sides.h"
#include "model/blocks/latent_attention/latent_expansion.h"
#include "model/blocks/latent_attention/latent_step.h"

namespace greenroom {
namespace {

// Sums of adapters.
struct Memory {
  LoraSums down_lora, query_lora, latent_lora, gate_lora, output_lora;
  LoraSums index_query_lora, index_key_lora, index_weights_lora, index_pool_lora;
};

constexpr int kMostSides = 7;  // products with the normed rows

// The matrices that adapters may add to, in the order of their places.
enum Place { kQuery, kQueryDown, kLatent, kExpansion, kOutput, kGate, kIndexQuery, kIndexKey, kIndexWeights, kIndexPool };

void run(Context& context, const LayerSpec& layer, const StepCall& step) {
  const auto& spec = *static_cast<const LatentAttention*>(layer.mixer);
  const Level& level = context.level;
  const LatentExpansion expansion(level, spec, layer, step, mixer_place(kExpansion));
  LatentStep latents(context, layer, spec, step, expansion);
  IndexerStep indexer(context, spec, step, latents.panel, latents.query_panel);
  const bool has_down = latents.query_rank() > 0;
  auto& own = context.mixers.of<Memory>();
  LoraSums &query_lora = own.query_lora, &output_lora = own.output_lora;
  for (LoraSums* sums : {&own.down_lora, &query_lora, &own.latent_lora, &own.gate_lora, &output_lora, &own.index_query_lora,
                         &own.index_key_lora, &own.index_weights_lora, &own.index_pool_lora}) {
    sums->clear();
  }

  Side sides[kMostSides];
  LoraSums* lora[kMostSides];
  LoraPlace places[kMostSides];
  int num_sides = 0;
  const auto add_side = [&](const Side& side, LoraSums& sums, Place place) {
    sides[num_sides] = side;
    sides[num_sides].lora = lora[num_sides] = &sums;
    places[num_sides++] = mixer_place(place);
  };
  if (has_down) {
    add_side({&spec.query_down, spec.query_down_bias, 0}, own.down_lora, kQueryDown);
  } else {
    add_side({&spec.query, spec.query_bias, 0}, query_lora, kQuery);
  }
  add_side({&spec.latent, spec.latent_bias, latents.first_latent()}, own.latent_lora, kLatent);
  if (spec.gate.outputs) add_side({&spec.gate, spec.gate_bias, latents.first_gate()}, own.gate_lora, kGate);
  const int64_t first_index = latents.first_gate() + spec.gate.outputs;
  LoraSums* const index_lora[] = {&own.index_key_lora, &own.index_weights_lora, &own.index_query_lora, &own.index_pool_lora};
  const Place index_places[] = {kIndexKey, kIndexWeights, kIndexQuery, kIndexPool};
  for (int i = 0; i < indexer.num_sides(); ++i) {
    const int part = indexer.part_of(i);
    add_side(indexer.side(i, first_index), *index_lora[part], index_places[part]);
  }
  Side query_sides[2] = {{&spec.query, spec.query_bias, 0, &query_lora}};
  const int num_query_sides = 1 + indexer.has_queries();
  const int64_t first_index_query = spec.query.outputs;
  if (indexer.has_queries()) {
    query_sides[1] = indexer.query_side(first_index_query);
    query_sides[1].lora = &own.index_query_lora;
  }
  const Side output_side{&spec.output, spec.output_bias, 0, &output_lora};
  const auto site = [&](int i) {
    const bool is_index_query = lora[i] == &own.index_query_lora;
    return LoraSite{*lora[i], places[i], is_index_query ? indexer.query_rows() : step.normed, step.hidden_size};
  };
  const auto last = [&](int i) { return site(std::min(i, num_sides - 1)); };
  const LoraSite sites[kMostSides] = {last(0), last(1), last(2), last(3), last(4), last(5), last(6)};
  const int64_t rank = latents.query_rank();
  const LoraSite query_sites[] = {
      {query_lora, mixer_place(kQuery), latents.downs, latents.downs_size()},
      {own.index_query_lora, mixer_place(kIndexQuery), latents.downs, rank, latents.downs_size() - rank}};
  const LoraSite output_site{output_lora, mixer_place(kOutput), latents.attended, latents.attended_size()};

  auto norm = [&](int64_t token, int) {
    latents.norm(token);
    indexer.prepare(token);
  };
  auto multiply_down = [&](int64_t tile, int thread) { multiply_sites_down(level, sites, num_sides, tile, thread); };
  const auto take_first = [&](int64_t row, int64_t output, const float* sums, int64_t count) {
    if (output >= first_index) return indexer.take(row, output - first_index, sums, count);
    latents.take_first(row, output, sums, count);
  };
  auto project = multiply_sides(context, latents.panel, sides, num_sides, kOutputTile, take_first);
  auto place = [&](int64_t token, int) {
    latents.place(token);
    indexer.place(token, latents.downs);
  };
  auto place_pool = [&](int64_t token, int) { indexer.place_pool(token); };
  auto multiply_query_down = [&](int64_t tile, int thread) {
    multiply_sites_down(level, query_sites, num_query_sides, tile, thread);
  };
  const auto take_query = [&](int64_t row, int64_t output, const float* sums, int64_t count) {
    if (output >= first_index_query) return indexer.take_query(row, output - first_index_query, sums, count);
    latents.take_query(row, output, sums, count);
  };
  auto project_queries =
      multiply_sides(context, latents.query_panel, query_sides, num_query_sides, kOutputTile, take_query);
  auto turn_index = [&](int64_t row, int) { indexer.turn(row); };
  auto score = [&](int64_t tile, int thread) { indexer.score(tile, thread); };
  auto choose = [&](int64_t row, int thread) { indexer.choose(row, thread); };
  auto turn = [&](int64_t row, int) { latents.turn(row); };
  auto absorb = [&](int64_t tile, int) { latents.absorb(tile); };
  auto attend = [&](int64_t tile, int thread) { latents.attend(indexer, tile, thread); };
  auto join = [&](int64_t tile, int) { latents.join(indexer, tile); };
  auto expand = [&](int64_t tile, int) { latents.expand(tile); };
  auto finish_heads = [&](int64_t row, int thread) { latents.finish_heads(row, thread); };
  auto prepare_output = [&](int64_t token, int thread) {
    if (token >= step.tokens) return output_lora.multiply_down(level, token - step.tokens, thread);
    latents.prepare_output(token);
  };
  const auto take_output = [&](auto... results) { latents.take_output(results...); };
  auto project_back = multiply_sides(context, latents.output_panel, &output_side, 1, kOutputTile, take_output);

  PhaseList phases(context.pool);
  phases.add(step.tokens, norm);
  plan_sites(phases, sites, num_sides, context, layer, step);
  phases.add(num_down_tiles(sites, num_sides), multiply_down);
  phases.add(num_tiles(sides, num_sides, step.tokens, kOutputTile), project);
  phases.add(step.tokens, place);
  phases.add(indexer.has_pools() ? step.tokens : 0, place_pool);
  if (has_down) {
    plan_sites(phases, query_sites, num_query_sides, context, layer, step);
    phases.add(num_down_tiles(query_sites, num_query_sides), multiply_query_down);
    phases.add(num_tiles(query_sides, num_query_sides, step.tokens, kOutputTile), project_queries);
  }
  while (indexer.begin_pass()) {
    phases.add(indexer.pass_rows(), turn_index);
    phases.add(indexer.num_score_tiles(), score);
    phases.add(indexer.pass_rows(), choose);
    phases.run();  // since the next pass changes what these refer to
  }
  while (latents.begin_pass(indexer)) {
    phases.add(latents.pass_rows(), turn);
    phases.add(latents.num_absorb_tiles(), absorb);
    phases.add(latents.num_attend_tiles(), attend);
    phases.add(latents.num_joins(), join);
    phases.add(latents.num_value_tiles(), expand);
    if (latents.has_gates() || !expansion.is_empty()) phases.add(latents.pass_rows(), finish_heads);
    if (latents.is_last_pass()) break;
    phases.run();  // since the next pass changes what these refer to
  }
  plan_sites(phases, &output_site, 1, context, layer, step);
  phases.add(step.tokens + output_lora.num_tiles(), prepare_output);
  phases.add(num_tiles(&output_side, 1, step.tokens, kOutputTile), project_back);
  phases.run();
}

// A matrix of all heads, of which each begins with a block of outputs.
bool is_of_heads(const Matrix& matrix, int64_t heads, int64_t outputs, int64_t inputs) {
  const bool is_in_blocks = is_plain(matrix.format) ? !matrix.is_transposed : outputs % kBlock == 0;
  return is_in_blocks && !matrix.order && is_shaped(matrix, heads * outputs, inputs);
}

const char* check(const void* mixer, int64_t hidden_size) {
  const auto& spec = *static_cast<const LatentAttention*>(mixer);
  for (const int64_t count : {spec.heads, spec.rank, spec.nope_dim, spec.value_dim}) {
    if (!is_count(count)) return "heads or latents without a size";
  }
  if (spec.rope_dim && !is_count(spec.rope_dim)) return "heads or latents without a size";
  const int64_t query_rank = spec.query_down.outputs, value_gates = spec.has_gates_in_query ? spec.value_dim : 0;
  const int64_t query_inputs = query_rank ? query_rank * (spec.takes_raw ? 2 : 1) : hidden_size;
  if (query_rank && !is_shaped(spec.query_down, query_rank, hidden_size)) return "queries of an impossible rank";
  if (!query_rank && (spec.takes_raw || spec.has_gates_in_query)) return "queries without a rank";
  if (!is_shaped(spec.query, spec.heads * (spec.nope_dim + spec.rope_dim + value_gates), query_inputs) ||
      (spec.latent.outputs && !is_shaped(spec.latent, spec.rank + spec.rope_dim, hidden_size)) ||
      !is_shaped(spec.output, hidden_size, spec.heads * spec.value_dim)) {
    return "projections that don't fit its heads";
  }
  if (!is_of_heads(spec.to_keys, spec.heads, spec.rank, spec.nope_dim) ||
      !is_of_heads(spec.to_values, spec.heads, spec.value_dim, spec.rank)) {
    return "an expansion that doesn't fit its heads";
  }
  const bool fits_gates = is_shaped(spec.gate, spec.heads, hidden_size) ||
                          is_shaped(spec.gate, spec.heads * spec.value_dim, hidden_size);
  if (spec.gate.outputs && (spec.has_gates_in_query || !fits_gates)) return "gates that don't fit its heads";
  if (spec.latent.outputs ? !spec.latent_norm : spec.cache && !spec.source) return "latents without a norm or a source";
  if (spec.head_scales.scales && !spec.head_scales.offsets) return "queries that are scaled without offsets";
  if (spec.rope_kind < RopeKind::kNone || spec.rope_kind > RopeKind::kInterleaved) return "an unknown kind of positions";
  if (spec.rope_kind != RopeKind::kNone && (spec.rotary_dim < 0 || spec.rotary_dim > spec.rope_dim)) {
    return "rotary positions that are larger than their part of a head";
  }
  if (spec.indexer) {
    const int64_t rotary_dim = spec.rope_kind == RopeKind::kNone ? 0 : spec.rotary_dim;
    if (const char* reason = check_indexer(*spec.indexer, hidden_size, query_rank, rotary_dim)) return reason;
  }
  if (!is_plain(spec.cache_format)) return "a cache of no known format";
  if (!spec.cache) return nullptr;
  if (!spec.latent.outputs && spec.source_dim < spec.rank + spec.rope_dim) return "a source that its latents don't fit";
  const bool fits = spec.cache_dim >= spec.rank + spec.rope_dim + index_key_size(spec.indexer) && spec.cache_slots >= 0;
  return fits ? nullptr : "a cache that its latents don't fit";
}

}  // namespace

const MixerOperations kLatentAttention = {check, run};

}  // namespace greenroom
