#include "layer.h"

#include <cmath>
#include <numeric>

namespace driver {
namespace {

constexpr int32_t kGone = -1;  // in a block table: a block that no token attends to any more

}  // namespace

Weights trunk_weights(int64_t outputs, int64_t inputs) {
  Layout layout(trunk_format(), outputs, inputs);
  layout.is_transposed = false;
  return Weights(layout);
}

int64_t Layer::head_size() { return one_in(4) ? between(60, 80) : between(1, 40); }

Plan::Plan() {
  for (int64_t count = between(1, 3); count > 0; --count) {
    sequences.push_back({between(0, 3) ? between(0, 90) : 0, one_in(2) ? between(1, 3) : between(1, 24), tokens});
    tokens += sequences.back().num_tokens;
    positions = std::max(positions, sequences.back().end());
  }
}

Layer::Layer(const Plan& plan, int32_t number) : plan(plan) {
  set_attention(number);
  set_gates();
  set_experts();
  if (!attention.window && !one_in(3)) set_indexer();
  if (!attention.indexer && !one_in(4)) set_relative();
  if (convolves_keys) {
    set_convolution(key_inputs, kv_heads * key_dim);
    set_convolution(value_inputs, kv_heads * value_dim);
    attention.key_convolution = &key_inputs.spec;
    attention.value_convolution = &value_inputs.spec;
    if (one_in(2)) set_taps();
  }
  if (one_in(3)) set_limits();
  if (!attention.sinks && one_in(2)) attention.sink = sink.matrix();
  if (one_in(4)) {
    set_convolution(mixer_results, hidden);
    set_convolution(inner_results, hidden);
    spec.mixer_convolution = &mixer_results.spec;
    spec.inner_convolution = &inner_results.spec;
    spec.mixer_norm = spec.output_norm = {};
    spec.output_scale = 1.0f;
  } else if (one_in(4)) {
    set_residual_gates();
  }
  set_cache();
}

void Layer::set_gates() {
  for (int i = 0; i < 2; ++i) {
    gate_down.push_back(trunk_weights(gate_rank, hidden));
    gate_up.push_back(trunk_weights(hidden, gate_rank));
    gates[i] = {gate_down.back().matrix(), gate_up.back().matrix()};
  }
  if (one_in(3)) spec.input_gate = &gates[0];
  if (!spec.is_parallel && one_in(3)) spec.inner_gate = &gates[1];
}

void Layer::set_residual_gates() {
  for (ResidualGate& by : residual_gates) by = {keep(hidden, 0.3f, 0.8f), keep(hidden, 0.3f, 0.5f), maybe(hidden)};
  spec.mixer_residual_gate = &residual_gates[0];
  spec.inner_residual_gate = &residual_gates[1];
  spec.residual_scale = spec.output_scale = 1.0f;
  spec.is_parallel = 0;
}

void Layer::set_indexer() {
  index_query.push_back(trunk_weights(kv_heads * index_dim, hidden));
  index_key.push_back(trunk_weights(index_dim, hidden));
  indexer.query = index_query[0].matrix();
  indexer.key = index_key[0].matrix();
  if (one_in(2)) {
    indexer.query_norm = {keep(index_dim, 0.3f, 1.0f), nullptr, kHeadEpsilon, NormKind::kRms};
    indexer.key_norm = {keep(index_dim, 0.3f, 1.0f), maybe(index_dim), kHeadEpsilon, NormKind::kLayer};
  }
  indexer.heads = kv_heads;
  indexer.dim = index_dim;
  indexer.block_size = kCacheBlock * (one_in(4) ? 2 : 1);
  indexer.top_k = between(1, 3);
  indexer.num_local = between(0, 2);
  indexer.rope_kind = index_dim < attention.rotary_dim ? RopeKind::kNone : attention.rope_kind;
  attention.indexer = &indexer;
}

void Layer::set_relative() {
  relative.weights = profile_weights.matrix();
  relative.num_profiles = num_profiles;
  relative.extent = between(1, 90);
  const int64_t width = relative.extent + 2 * kCacheBlock;
  std::vector<float> profiles(static_cast<size_t>(num_profiles * width));
  for (int64_t i = 0; i < num_profiles * relative.extent; ++i) {
    const int64_t place = i / relative.extent * width + kCacheBlock + i % relative.extent;
    profiles[static_cast<size_t>(place)] = normal() / std::sqrt(static_cast<float>(hidden));
  }
  numbers.push_back(profiles);
  relative.profiles = numbers.back().data();
  attention.relative = &relative;
}

void Layer::set_taps() {
  key_taps.push_back(trunk_weights(kv_heads * key_inputs.spec.width, hidden));
  value_taps.push_back(trunk_weights(kv_heads * value_inputs.spec.width, hidden));
  attention.key_taps = key_taps[0].matrix();
  attention.value_taps = value_taps[0].matrix();
  attention.taps_scale = 0.5f;
}

void Layer::set_limits() {
  attention.norm_limit = 0.5f * std::sqrt(static_cast<float>(key_dim)) * (attention.key_norm ? 1.0f : static_cast<float>(hidden));
  attention.query_scales = keep(heads * key_dim, 0.3f, 1.0f);
  attention.key_scales = maybe(kv_heads * key_dim);
  if (!attention.relative) return;
  relative.scales = keep(heads * num_profiles, 0.3f, 1.0f);
  relative.limit = 0.5f * std::sqrt(static_cast<float>(num_profiles * hidden));
}

void Layer::set_convolution(Convolved& of, int64_t channels) {
  Convolution& by = of.spec;
  by.width = between(1, 4);
  by.dilation = one_in(2) ? 1 : static_cast<int32_t>(between(1, 3));
  by.channels = channels;
  by.weight = keep(by.width * channels, 0.5f, 0.0f);
  by.bias = maybe(channels);
  by.has_silu = static_cast<int32_t>(between(0, 1));
  const int64_t size = kept_inputs(by) * channels;
  for (const Sequence& sequence : plan.sequences) {
    const std::vector<float> given = sequence.first_position ? normals(size) : std::vector<float>(static_cast<size_t>(size), NAN);
    of.states.insert(of.states.end(), given.begin(), given.end());
    of.states.resize(of.states.size() + static_cast<size_t>((kStateRows - 1) * size), NAN);
  }
  of.states.shrink_to_fit();
  by.states = of.states.data();
}

void Layer::settle(int64_t sequence, int64_t num_chunks) {
  for (Convolved* of : convolutions) {
    const int64_t size = kept_inputs(of->spec) * of->spec.channels;
    float* first = of->states.data() + (kStateRows * sequence + 1) * size;
    if (num_chunks % 2 == 0) std::copy(first + size, first + 2 * size, first);
    std::fill(first + size, first + 2 * size, NAN);
  }
}

const float* Layer::keep(int64_t count, float scale, float mean) {
  numbers.push_back(normals(count, scale, mean));
  return numbers.back().data();
}

Norm Layer::any_norm(int64_t size) {
  const auto kind = static_cast<NormKind>(between(0, 3));
  if (kind == NormKind::kNone) return {};
  return {keep(size, 0.3f, 1.0f), kind == NormKind::kLayer ? maybe(size) : nullptr, kEpsilon, kind};
}

const float* Layer::maybe(int64_t count) { return one_in(2) ? keep(count, 1.0f, 0.0f) : nullptr; }

void Layer::set_attention(int32_t number) {
  spec.mixer_kind = MixerKind::kGroupedAttention;
  spec.mixer = &attention;
  spec.input_norm = any_norm();
  spec.mixer_norm = any_norm();
  spec.inner_norm = any_norm();
  spec.output_norm = any_norm();
  attention.query = query.matrix();
  if (!is_joined) attention.key = key.matrix();
  if (!is_joined && !shares_keys) attention.value = value.matrix();
  attention.output = output.matrix();
  attention.has_gates_in_query = has_gate;
  attention.has_keys_in_query = is_joined;
  if (one_in(3)) attention.clip = 1.5f;
  if (has_own_gate) attention.gate = gate.matrix();
  if (has_own_gate) attention.gate_bias = maybe(gate.layout.outputs);
  if (has_gate || has_own_gate) attention.gate_kind = static_cast<GateKind>(between(1, 2));
  attention.norms_rotated = attention.clip == 0 && one_in(2);
  attention.scales_queries = between(0, 1);
  attention.value_scale = one_in(2) ? 1.0f : 0.7f;
  attention.value_norm = one_in(2) ? keep(value_dim, 0.3f, 1.0f) : nullptr;
  attention.result_norm = one_in(3) ? keep(value_dim, 0.3f, 1.0f) : nullptr;
  attention.query_bias = maybe(query.layout.outputs);
  attention.key_bias = maybe(kv_heads * key_dim);
  attention.value_bias = maybe(kv_heads * value_dim);
  attention.output_bias = maybe(hidden);
  attention.norms_together = between(0, 1);
  if (one_in(2)) {
    attention.query_norm = keep(attention.norms_together ? heads * key_dim : key_dim, 0.3f, 1.0f);
    attention.key_norm = keep(attention.norms_together ? kv_heads * key_dim : key_dim, 0.3f, 1.0f);
  }
  attention.sinks = maybe(heads);
  attention.heads = heads;
  attention.kv_heads = kv_heads;
  attention.key_dim = key_dim;
  attention.value_dim = value_dim;
  attention.rope_kind = key_dim > 1 ? static_cast<RopeKind>(between(0, 2)) : RopeKind::kNone;
  attention.rotary_dim = attention.rope_kind == RopeKind::kNone ? 0 : 2 * between(1, key_dim / 2);
  cosines.resize(static_cast<size_t>(plan.positions * attention.rotary_dim / 2));
  sines.resize(cosines.size());
  for (int64_t i = 0; i < plan.positions; ++i) query_scales.push_back(1.0f + 0.1f * static_cast<float>(i % 7));
  for (size_t i = 0; i < cosines.size(); ++i) {
    cosines[i] = std::cos(static_cast<float>(i));
    sines[i] = std::sin(static_cast<float>(i));
  }
  attention.rope = attention.group = spec.index = number;
  if (one_in(2)) attention.window = between(1, 70);
  attention.is_chunked = attention.window && one_in(2);
  attention.head_norm_epsilon = kHeadEpsilon;
  attention.scaling = 2 / std::sqrt(static_cast<float>(key_dim)) / (attention.key_norm ? 1.0f : static_cast<float>(hidden));
  attention.softcap = one_in(3) ? 1.5f : 0.0f;
  spec.residual_scale = one_in(2) ? 1.0f : 0.3f;
  spec.output_scale = one_in(2) ? 1.0f : 0.7f;
  spec.is_parallel = one_in(4);
}

void Layer::set_experts() {
  const bool is_routed = !one_in(4), has_shared = !is_routed || one_in(2);
  spec.feed_forward_kind = is_routed ? FeedForwardKind::kExperts : FeedForwardKind::kMlp;
  spec.feed_forward = is_routed ? static_cast<const void*>(&mixture) : &mixture.shared;
  if (is_routed) {
    Router& by = mixture.router;
    by.num_groups = one_in(2) ? 1 : static_cast<int32_t>(between(2, 4));
    const auto size = static_cast<int32_t>(between(2, 6));  // experts per group
    by.is_by_best = one_in(2);
    by.top_groups = static_cast<int32_t>(between(1, by.num_groups));
    by.top_k = static_cast<int32_t>(between(1, std::min(4, by.top_groups * size)));
    mixture.num_experts = by.num_groups * size;
    router.emplace_back(trunk_weights(mixture.num_experts, hidden));
    by.matrix = router[0].matrix();
    by.bias = maybe(mixture.num_experts);
    by.expert_scales = one_in(2) ? keep(mixture.num_experts, 0.3f, 1.0f) : nullptr;
    mixture.router_norm = any_norm();
    mixture.output_norm = any_norm();
    mixture.scales_input = one_in(3);
    by.correction = one_in(2) ? keep(mixture.num_experts, 0.1f, 0.0f) : nullptr;
    by.kind = static_cast<RouterKind>(between(0, 4));
    by.is_normalised = between(0, 1);
    by.near = 0.3f;
    by.logits_scale = one_in(2) ? 1.0f : 0.6f;
    by.scale = one_in(2) ? 1.0f : 2.5f;
    const int64_t width = one_in(3) ? between(1, 60) : hidden;
    if (width != hidden) {
      projections.emplace_back(trunk_weights(width, hidden));
      projections.emplace_back(trunk_weights(hidden, width));
      mixture.input_projection = projections[0].matrix();
      mixture.output_projection = projections[1].matrix();
      mixture.projected_norm = any_norm(width);
      mixture.scales_input = 0;
    }
    mixture.result_norm = one_in(3) ? any_norm(width) : Norm{};
    const Format format = format_for(width);
    experts.emplace_back(format, mixture.num_experts, width, supported(format, between(1, 40)), one_in(2));
    mixture.experts = experts[0].shape;
  }
  mixture.experts_scale = one_in(2) ? 1.0f : 0.6f;
  mixture.shared.scale = one_in(2) ? 1.0f : 0.6f;
  mixture.has_shared = has_shared;
  if (!has_shared) return;
  const Format format = format_for(hidden);
  dense.emplace_back(format, 1, hidden, supported(format, between(1, 40)), false);
  mixture.shared.shape = dense[0].placed();
  mixture.shared.input_norm = any_norm();
  mixture.shared.output_norm = any_norm();
  if (one_in(2)) return;
  dense_gate.emplace_back(trunk_weights(1, hidden));
  mixture.shared.weighting = dense_gate[0].matrix();
}

// A cache of exactly the blocks that the step's tokens attend to, in any order. Places that no token wrote are NaN, as
// the leftovers of another sequence may be.
void Layer::set_cache() {
  int32_t num_blocks = 0;
  for (const Sequence& sequence : plan.sequences) {
    for (int64_t block = 0; block < divide_up(sequence.end(), kCacheBlock); ++block) {
      blocks.push_back(block < oldest_seen(sequence.first_position) / kCacheBlock ? kGone : num_blocks++);
    }
  }
  blocks.shrink_to_fit();
  std::vector<int32_t> places(static_cast<size_t>(num_blocks));
  std::iota(places.begin(), places.end(), 0);
  std::shuffle(places.begin(), places.end(), random_bits);
  for (int32_t& block : blocks) block = block == kGone ? kGone : places[static_cast<size_t>(block)];
  attention.cache_format = plain_format();
  attention.cache_slots = num_blocks * kCacheBlock;
  attention.cache_dim = std::max(key_dim, value_dim) + between(0, 3);
  const auto bytes = static_cast<size_t>(kv_heads * attention.cache_slots * attention.cache_dim * bytes_of(attention.cache_format));
  keys.assign(bytes, '\xFF');
  values.assign(bytes, '\xFF');
  const float key_size = attention.key_norm ? 1.0f : std::sqrt(static_cast<float>(hidden));
  const int32_t* table = blocks.data();
  for (const Sequence& sequence : plan.sequences) {
    for (int64_t position = oldest_seen(sequence.first_position); position < sequence.first_position; ++position) {
      for (int64_t head = 0; head < kv_heads; ++head) {
        for (int64_t d = 0; d < key_dim; ++d) {
          put_plain(attention.cache_format, key_size * normal(), keys.data() + key_place(table, head, position, d));
        }
        for (int64_t d = 0; d < value_dim; ++d) {
          put_plain(attention.cache_format, normal(), values.data() + value_place(table, head, position, d));
        }
      }
    }
    table += divide_up(sequence.end(), kCacheBlock);
  }
  if (attention.indexer) {
    index_keys.assign(static_cast<size_t>(attention.cache_slots * index_dim * bytes_of(attention.cache_format)), '\xFF');
    table = blocks.data();
    for (const Sequence& sequence : plan.sequences) {
      for (int64_t position = 0; position < sequence.first_position; ++position) {
        for (int64_t d = 0; d < index_dim; ++d) {
          put_plain(attention.cache_format, normal(), index_keys.data() + index_place(table, position, d));
        }
      }
      table += divide_up(sequence.end(), kCacheBlock);
    }
    indexer.cache = index_keys.data();
  }
  attention.key_cache = keys.data();
  attention.value_cache = values.data();
}

int64_t Layer::oldest_seen(int64_t position) const {
  if (!attention.window) return 0;
  if (attention.is_chunked) return position / attention.window * attention.window;
  return std::max<int64_t>(0, position - attention.window + 1);
}

Step::Step(const Plan& plan, const std::deque<Layer>& layers, const std::vector<Chunk>& chunks,
           const std::vector<float>& given, bool is_exact) {
  for (const Chunk& chunk : chunks) {
    const auto state = static_cast<int32_t>((chunk.sequence - plan.sequences.data()) * kStateRows);
    const int32_t given_state = chunk.sequence->first_position ? state : -1;
    const auto turn = static_cast<int32_t>(chunk.number % 2);
    int64_t first_block = 0;
    for (const Sequence& before : plan.sequences) {
      if (&before == chunk.sequence) break;
      first_block += divide_up(before.end(), kCacheBlock);
    }
    sequences.push_back({static_cast<int32_t>(call.tokens), static_cast<int32_t>(chunk.count),
                         static_cast<int32_t>(chunk.sequence->first_position + chunk.first),
                         static_cast<int32_t>(first_block), chunk.number ? state + 2 - turn : given_state,
                         state + 1 + turn});
    const auto begin = given.begin() + (chunk.sequence->first_row + chunk.first) * plan.hidden;
    hidden.insert(hidden.end(), begin, begin + chunk.count * plan.hidden);
    call.tokens += chunk.count;
  }
  hidden.shrink_to_fit();
  sequences.shrink_to_fit();
  for (const Layer& layer : layers) {
    tables.push_back(layer.blocks.data());
    cosines.push_back(layer.cosines.data());
    sines.push_back(layer.sines.data());
    if (!layer.has_router()) continue;
    ++num_routed;
    call.most_top_k = std::max<int64_t>(call.most_top_k, layer.mixture.router.top_k);
    call.most_experts = std::max<int64_t>(call.most_experts, layer.mixture.num_experts);
  }
  for (const Layer& layer : layers) {
    if (!layer.has_router()) continue;
    const std::vector<uint64_t> addresses = layer.experts[0].addresses();
    slots.insert(slots.end(), addresses.begin(), addresses.end());
    slots.resize(slots.size() + static_cast<size_t>(call.most_experts) - addresses.size());
  }
  for (auto* addresses : {&cosines, &sines}) addresses->shrink_to_fit();
  tables.shrink_to_fit();
  slots.shrink_to_fit();
  normed.resize(hidden.size());
  chosen.resize(static_cast<size_t>(num_routed * call.tokens * call.most_top_k));
  weights.resize(chosen.size());
  counts.resize(static_cast<size_t>(num_routed * call.most_experts));
  call.hidden = hidden.data();
  call.sequences = sequences.data();
  call.block_tables = tables.data();
  call.cosines = cosines.data();
  call.sines = sines.data();
  call.query_scales = layers[0].query_scales.data();  // the same in all layers
  call.normed = normed.data();
  call.chosen = chosen.data();
  call.weights = weights.data();
  call.slots = slots.data();
  call.counts = counts.data();
  call.num_sequences = static_cast<int64_t>(sequences.size());
  call.hidden_size = plan.hidden;
  call.is_exact = is_exact;
}

}  // namespace driver
