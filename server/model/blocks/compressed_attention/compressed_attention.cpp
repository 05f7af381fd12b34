#include "model/blocks/compressed_attention/compressed_attention.h"

#include <algorithm>

#include "formats/checks.h"
#include "layers/layer_adapters.h"
#include "layers/sides.h"
#include "model/blocks/compressed_attention/compressed_step.h"

namespace greenroom {
namespace {

constexpr int kMostSides = 7;  // products with the normed rows

// The matrices that adapters may add to, in the order of their places.
enum Place {
  kQuery, kQueryDown, kKey, kOutput, kCompressedKey, kCompressedGate, kIndexKey, kIndexGate, kIndexQuery, kIndexWeights,
  kNumPlaces
};

// Sums of adapters.
struct Memory {
  LoraSums lora[kNumPlaces];
};

void run(Context& context, const LayerSpec& layer, const StepCall& step) {
  const auto& spec = *static_cast<const CompressedAttention*>(layer.mixer);
  const Level& level = context.level;
  CompressedStep own(context, layer, spec, step);
  auto& lora = context.mixers.of<Memory>().lora;
  for (LoraSums& sums : lora) sums.clear();

  Side sides[kMostSides];
  Place places[kMostSides];
  int num_sides = 0;
  int64_t offset = 0;
  const auto add_side = [&](const Matrix& matrix, Place place) {
    if (matrix.outputs) {
      places[num_sides] = place;
      sides[num_sides++] = {&matrix, nullptr, offset, &lora[place]};
    }
    offset += matrix.outputs;
  };
  add_side(spec.query_down, kQueryDown);
  add_side(spec.key, kKey);
  add_side(spec.keys.key, kCompressedKey);
  add_side(spec.keys.gate, kCompressedGate);
  add_side(spec.index.key, kIndexKey);
  add_side(spec.index.gate, kIndexGate);
  if (own.chooses()) add_side(spec.index_weights, kIndexWeights);
  const Side query_sides[] = {{&spec.query, nullptr, 0, &lora[kQuery]},
                              {&spec.index_query, nullptr, own.query_size(), &lora[kIndexQuery]}};
  const int num_query_sides = own.chooses() ? 2 : 1;
  const Side output_side{&spec.output, nullptr, 0, &lora[kOutput]};
  const auto site = [&](int i) {
    const Place place = places[std::min(i, num_sides - 1)];
    return LoraSite{lora[place], mixer_place(place), step.normed, step.hidden_size};
  };
  const LoraSite sites[kMostSides] = {site(0), site(1), site(2), site(3), site(4), site(5), site(6)};
  const auto query_site = [&](Place place) {
    const int64_t inputs = spec.query.inputs;
    return LoraSite{lora[place], mixer_place(place), own.rows, inputs, own.width() - inputs};
  };
  const LoraSite query_sites[] = {query_site(kQuery), query_site(kIndexQuery)};
  const LoraSite output_site{lora[kOutput], mixer_place(kOutput), own.grouped, spec.output.inputs};

  auto norm = [&](int64_t token, int) { own.norm(token); };
  auto multiply_down = [&](int64_t tile, int thread) { multiply_sites_down(level, sites, num_sides, tile, thread); };
  const auto take_first = [&](auto... results) { own.take_first(results...); };
  auto project = multiply_sides(context, own.panel, sides, num_sides, kOutputTile, take_first);
  auto place = [&](int64_t token, int) { own.place(token); };
  auto compress = [&](int64_t token, int thread) { own.compress(token, thread); };
  auto multiply_query_down = [&](int64_t tile, int thread) {
    multiply_sites_down(level, query_sites, num_query_sides, tile, thread);
  };
  const auto take_query = [&](auto... results) { own.take_query(results...); };
  auto project_queries =
      multiply_sides(context, own.query_panel, query_sides, num_query_sides, kOutputTile, take_query);
  auto turn = [&](int64_t token, int) { own.turn(token); };
  auto score = [&](int64_t tile, int thread) { own.score(tile, thread); };
  auto choose = [&](int64_t row, int thread) { own.choose(row, thread); };
  auto attend = [&](int64_t tile, int thread) { own.attend(tile, thread); };
  auto join = [&](int64_t tile, int) { own.join(tile); };
  auto finish_heads = [&](int64_t token, int thread) { own.finish_heads(token, thread); };
  auto multiply_groups = [&](int64_t tile, int) { own.multiply_groups(tile); };
  auto prepare_output = [&](int64_t token, int thread) {
    if (token >= step.tokens) return lora[kOutput].multiply_down(level, token - step.tokens, thread);
    own.prepare_output(token);
  };
  const auto take_output = [&](auto... results) { own.take_output(results...); };
  auto project_back = multiply_sides(context, own.output_panel, &output_side, 1, kOutputTile, take_output);

  PhaseList phases(context.pool);
  phases.add(step.tokens, norm);
  plan_sites(phases, sites, num_sides, context, layer, step);
  phases.add(num_down_tiles(sites, num_sides), multiply_down);
  phases.add(num_tiles(sides, num_sides, step.tokens, kOutputTile), project);
  phases.add(step.tokens, place);
  if (own.has_periods()) phases.add(step.tokens, compress);
  plan_sites(phases, query_sites, num_query_sides, context, layer, step);
  phases.add(num_down_tiles(query_sites, num_query_sides), multiply_query_down);
  phases.add(num_tiles(query_sides, num_query_sides, step.tokens, kOutputTile), project_queries);
  phases.add(step.tokens, turn);
  while (own.begin_pass()) {
    phases.add(own.num_score_tiles(), score);
    phases.add(own.pass_rows(), choose);
    phases.run();  // since the next pass changes what these refer to
  }
  own.plan_attention();
  phases.add(own.num_attend_tiles(), attend);
  phases.add(own.num_joins(), join);
  phases.add(step.tokens, finish_heads);
  phases.add(own.num_group_tiles(), multiply_groups);
  plan_sites(phases, &output_site, 1, context, layer, step);
  phases.add(step.tokens + lora[kOutput].num_tiles(), prepare_output);
  phases.add(num_tiles(&output_side, 1, step.tokens, kOutputTile), project_back);
  phases.run();
}

const char* check_compressor(const Compressor& of, const CompressedAttention& spec, int64_t hidden_size) {
  if (!is_count(of.dim)) return "compressed keys without a size";
  const int64_t outputs = num_series(spec) * of.dim;
  if (!is_shaped(of.key, outputs, hidden_size) || !is_shaped(of.gate, outputs, hidden_size)) {
    return "compressed keys whose projections don't fit them";
  }
  return of.bias && of.norm ? nullptr : "compressed keys without a bias or a norm";
}

const char* check(const void* mixer, int64_t hidden_size) {
  const auto& spec = *static_cast<const CompressedAttention*>(mixer);
  for (const int64_t count : {spec.heads, spec.dim, spec.num_groups, spec.window}) {
    if (!is_count(count)) return "heads or a window without a size";
  }
  const Matrix& groups = spec.groups;
  const int64_t query_rank = spec.query_down.outputs, query_size = spec.heads * spec.dim;
  if (!is_count(query_rank) || !is_shaped(spec.query_down, query_rank, hidden_size) ||
      !is_shaped(spec.query, query_size, query_rank) || !is_shaped(spec.key, spec.dim, hidden_size)) {
    return "projections that don't fit its heads";
  }
  if (query_size % spec.num_groups || groups.outputs % spec.num_groups ||
      !is_shaped(groups, groups.outputs, query_size / spec.num_groups) ||
      !is_shaped(spec.output, hidden_size, groups.outputs)) {
    return "groups that its results can't be divided into";
  }
  const bool is_in_blocks =
      is_plain(groups.format) ? !groups.is_transposed : groups.outputs / spec.num_groups % kBlock == 0;
  if (!is_in_blocks || groups.order) return "groups that its results can't be divided into";
  if (!spec.query_norm || !spec.head_norm || !spec.key_norm) return "queries or keys without a norm";
  if (spec.rope_kind < RopeKind::kNone || spec.rope_kind > RopeKind::kInterleaved) return "an unknown kind of positions";
  const auto fits = [&](int64_t dim) { return spec.rotary_dim >= 0 && spec.rotary_dim <= dim; };
  if (!fits(spec.dim) || spec.rotary_dim % 2) return "rotary positions that are larger than a head";
  if (spec.keys.key.outputs) {
    if (!is_count(spec.period) || spec.period > kMost / 2) return "compressed keys of no tokens";
    if (spec.keys.dim != spec.dim) return "compressed keys of another size";
    if (const char* reason = check_compressor(spec.keys, spec, hidden_size)) return reason;
  } else if (spec.keys.gate.outputs) {
    return "gates of compressed keys that it does not have";
  }
  if (spec.index.key.outputs) {
    if (!spec.keys.key.outputs) return "an index without compressed keys";
    if (const char* reason = check_compressor(spec.index, spec, hidden_size)) return reason;
    if (!is_count(spec.top_k) || !is_count(spec.index_heads)) return "an index that chooses no keys";
    if (!is_shaped(spec.index_query, spec.index_heads * spec.index.dim, query_rank) ||
        !is_shaped(spec.index_weights, spec.index_heads, hidden_size)) {
      return "an index whose projections don't fit its heads";
    }
    if (!fits(spec.index.dim)) return "rotary positions that don't fit an index key";
    if (!spec.chooses && !spec.chosen) return "an index that chooses no keys";
  } else if (spec.index.gate.outputs || spec.index_weights.outputs) {
    return "parts of an index that it does not have";
  }
  if (!is_plain(spec.cache_format)) return "a cache of no known format";
  if (!spec.cache) return nullptr;
  return spec.cache_dim >= cached_size(spec) && spec.cache_slots >= 0 ? nullptr : "a cache that its keys don't fit";
}

}  // namespace

const MixerOperations kCompressedAttention = {check, run};

}  // namespace greenroom
