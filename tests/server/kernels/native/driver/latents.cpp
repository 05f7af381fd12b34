// Checks latent attention of random sizes against plain loops in double precision, and tokens by themselves, in any
// chunks, against the same bits.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <deque>
#include <numeric>

#include "adapters.h"
#include "loops.h"
#include "model/blocks/latent_attention/latent_attention.h"

namespace driver {
namespace {

enum Part {  // as in latent_attention.cpp
  kQuery, kQueryDown, kLatent, kExpansion, kOutput, kGate, kIndexQuery, kIndexKey, kIndexWeights, kNumParts
};

Weights plain_weights(int64_t outputs, int64_t inputs) {
  Layout layout(plain_format(), outputs, inputs);
  layout.is_transposed = false;
  return Weights(layout);
}

void scale_by(Vector& x, double factor) {
  for (double& number : x) number *= factor;
}

// A layer of latent attention, and its memory.
class Latents {
 public:
  explicit Latents(const Plan& plan) : plan(plan) {
    const auto keep = [&](int64_t count, float mean) {
      numbers_.push_back(normals(count, mean ? 0.3f : 1.0f, mean));
      return numbers_.back().data();
    };
    spec.query_down = has_down ? down[0].matrix() : Matrix{};
    spec.query = query.matrix();
    if (!has_source) spec.latent = latent.matrix();
    spec.to_keys = to_keys.matrix();
    spec.to_values = to_values.matrix();
    spec.output = output.matrix();
    if (has_gate) spec.gate = gate[0].matrix();
    spec.takes_raw = takes_raw;
    spec.has_gates_in_query = gates_in_query;
    if (one_in(2)) spec.head_scales = {keep(heads, 1.0f), keep(heads, 1.0f)};
    spec.query_norm = has_down && one_in(2) ? keep(query_rank, 1.0f) : nullptr;
    spec.latent_norm = keep(rank, 1.0f);
    if (one_in(3)) spec.rope_norm = keep(rope, 1.0f);
    if (has_down && one_in(2)) spec.query_down_bias = keep(query_rank, 0.0f);
    if (one_in(2)) spec.query_bias = keep(query.layout.outputs, 0.0f);
    if (one_in(2)) spec.latent_bias = keep(rank + rope, 0.0f);
    if (one_in(2)) spec.output_bias = keep(plan.hidden, 0.0f);
    if (has_gate && one_in(2)) spec.gate_bias = keep(gate[0].layout.outputs, 0.0f);
    spec.heads = heads;
    spec.rank = rank;
    spec.nope_dim = nope;
    spec.rope_dim = rope;
    spec.value_dim = value;
    spec.rope_kind = rope > 1 ? static_cast<RopeKind>(between(0, 2)) : RopeKind::kNone;
    spec.rotary_dim = spec.rope_kind == RopeKind::kNone ? 0 : 2 * between(1, rope / 2);
    spec.query_norm_epsilon = spec.latent_norm_epsilon = kHeadEpsilon;
    spec.scaling = 1 / static_cast<float>(plan.hidden);
    spec.scales_queries = one_in(3);
    if (one_in(2)) spec.sinks = keep(heads, 1.0f);
    for (int64_t i = 0; i < plan.positions; ++i) query_scales.push_back(1.0f + 0.1f * static_cast<float>(i % 7));
    for (int64_t i = 0; i < plan.positions * spec.rotary_dim / 2; ++i) {
      cosines.push_back(std::cos(static_cast<float>(i)));
      sines.push_back(std::sin(static_cast<float>(i)));
    }
    if (has_indexer) {
      indexer.query = index[0].matrix();
      indexer.key = index[1].matrix();
      indexer.weights = index[2].matrix();
      const bool has_mean = one_in(2);
      indexer.key_norm = {keep(index_dim, 1.0f), has_mean ? keep(index_dim, 0.0f) : nullptr, kHeadEpsilon,
                          has_mean ? NormKind::kLayer : NormKind::kRms};
      indexer.takes_hidden = index_takes_hidden;
      if (index_takes_hidden && one_in(2)) {
        indexer.query_input_norm = {keep(plan.hidden, 1.0f), nullptr, kHeadEpsilon, NormKind::kRms};
      }
      if (one_in(2)) indexer.head_scales = {keep(index_heads, 1.0f), keep(index_heads, 1.0f)};
      indexer.heads = index_heads;
      indexer.dim = index_dim;
      indexer.top_k = top_k;
      indexer.rope_kind = index_dim < spec.rotary_dim ? RopeKind::kNone : spec.rope_kind;
      indexer.rotates_last = one_in(2);
      indexer.chooses = 1;
      indexer.pool = static_cast<int32_t>(pool);
      if (pool) indexer.pool_gate = index[3].matrix();
      if (pool) indexer.pool_bias = keep(pool * index_dim, 0.0f);
      chosen.resize(static_cast<size_t>(plan.tokens * most_chosen(indexer)));
      indexer.chosen = chosen.data();
      spec.indexer = &indexer;
    } else if (has_window) {
      indexer.top_k = top_k;
      indexer.is_window = 1;
      spec.indexer = &indexer;
    }
    set_cache();
    layer.mixer = &spec;
    layer.mixer_kind = MixerKind::kLatentAttention;
    layer.feed_forward = &mlp;
    layer.feed_forward_kind = FeedForwardKind::kMlp;
    layer.input_norm = {keep(plan.hidden, 1.0f), nullptr, kEpsilon, NormKind::kRms};
    layer.residual_scale = one_in(2) ? 1.0f : 0.3f;
    layer.output_scale = 1.0f;
    const int64_t inputs[] = {query.layout.inputs, plan.hidden, plan.hidden, rank, heads * value,
                              plan.hidden, index[0].layout.inputs, plan.hidden, plan.hidden};
    const int64_t outputs[] = {query.layout.outputs, query_rank, rank + rope, heads * (nope + value), plan.hidden,
                               gate[0].layout.outputs, index_heads * index_dim, index_dim, index_heads};
    for (int part = 0; part < kNumParts; ++part) lora.places[part] = memory_.parts(outputs[part], inputs[part]);
  }

  double get(const int32_t* table, int64_t position, int64_t d) const {
    return get(cache, spec.cache_dim, table, position, d);
  }

  double get(const std::vector<char>& from, int64_t dim, const int32_t* table, int64_t position, int64_t d) const {
    const int64_t first = table[position / kCacheBlock] * kCacheBlock * dim;
    return get_plain(spec.cache_format, from.data() + (first + d * kCacheBlock + position % kCacheBlock) *
                                                          bytes_of(spec.cache_format));
  }

  static void scale_heads(Vector& queries, const HeadScales& by, int64_t count, int64_t position) {
    const size_t size = queries.size() / static_cast<size_t>(count);
    for (size_t i = 0; by.scales && i < queries.size(); ++i) {
      queries[i] *= by.scales[i / size] * std::log(static_cast<double>(position + 1)) + by.offsets[i / size];
    }
  }

  // Moves the gates behind each head's query to a vector of their own.
  void take_gates(Vector& queries, Vector& gates) const {
    Vector left;
    for (size_t i = 0; i < queries.size(); ++i) {
      const bool is_gate = static_cast<int64_t>(i) % (nope + rope + value) >= nope + rope;
      (is_gate ? gates : left).push_back(queries[i]);
    }
    queries = left;
  }

  Vector product(const Weights& weights, const float* bias, const Vector& x) const {
    Vector y;
    double size;
    for (int64_t i = 0; i < weights.layout.outputs; ++i) y.push_back(weights.sum(x.data(), i, &size) + (bias ? bias[i] : 0));
    return y;
  }

  void rotate(double* x, int64_t position, RopeKind kind) const {
    const int64_t pairs = kind == RopeKind::kNone ? 0 : spec.rotary_dim / 2;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const bool is_interleaved = kind == RopeKind::kInterleaved;
      double& first = x[is_interleaved ? 2 * pair : pair];
      double& second = x[is_interleaved ? 2 * pair + 1 : pair + pairs];
      const double cosine = cosines[position * pairs + pair], sine = sines[position * pairs + pair];
      const double turned = first * cosine - second * sine;
      second = second * cosine + first * sine;
      first = turned;
    }
  }

  // The first number of an index key that is rotated.
  int64_t first_rotated() const { return indexer.rotates_last ? index_dim - spec.rotary_dim : 0; }

  // A key without a score of its own.
  bool is_between_pools(int64_t key) const { return pool && (key + 1) % pool; }

  // The last key of a key's pool, or a key of the pool that is not complete at a position.
  int32_t last_of_pool(int64_t key, int64_t position) const {
    return static_cast<int32_t>(std::min((key / pool + 1) * pool - 1, position));
  }

  // A number of the mean of a pool, with the cache as the kernels left it, but for the key of its last token.
  double pooled(const int32_t* table, int64_t position, int64_t d, double last) const {
    double total = 0, sum = 0;
    for (int64_t i = 0; i < pool; ++i) {
      const int64_t key = position - pool + 1 + i;
      const double weight = std::exp(get(table, key, rank + rope + index_dim + d) + indexer.pool_bias[i * index_dim + d]);
      total += weight;
      sum += weight * (key == position ? last : get(table, key, rank + rope + d));
    }
    return sum / total;
  }

  // The keys that a token attends to: those that the kernels chose, if no other has a higher score.
  std::vector<int64_t> keys_of(const int32_t* table, const Vector& x, const Vector& rows, int64_t row, int64_t position,
                               const char* level) const {
    std::vector<int64_t> keys(static_cast<size_t>(position + 1));
    std::iota(keys.begin(), keys.end(), 0);
    if (has_window && position >= top_k) keys.erase(keys.begin(), keys.end() - top_k);
    if (!has_indexer) return keys;
    Vector own = product(index[1], nullptr, x);
    const double mean = std::accumulate(own.begin(), own.end(), 0.0) / static_cast<double>(index_dim);
    for (double& number : own) number -= indexer.key_norm.bias ? mean : 0;
    normalise(own.data(), indexer.key_norm.weight, kHeadEpsilon, index_dim);
    for (int64_t d = 0; indexer.key_norm.bias && d < index_dim; ++d) own[static_cast<size_t>(d)] += indexer.key_norm.bias[d];
    rotate(own.data() + first_rotated(), position, indexer.rope_kind);
    const double rounding = spec.cache_format == Format::kFloat32 ? 0 : 1.0 / 256;
    const Vector gates = pool ? product(index[3], nullptr, x) : Vector{};
    for (int64_t d = 0; d < index_dim; ++d) {
      const auto number = static_cast<size_t>(d);
      if (pool) {
        check("a gate of a pool", level, spec.cache_format, get(table, position, rank + rope + index_dim + d), gates[number],
              rounding * std::fabs(gates[number]) + kNear * (largest(gates) + 1));
      }
      if (pool && (position + 1) % pool == 0) own[number] = pooled(table, position, d, own[number]);
    }
    for (int64_t d = 0; d < index_dim; ++d) {
      const double wanted = own[static_cast<size_t>(d)];
      check("an index key", level, spec.cache_format, get(table, position, rank + rope + d), wanted,
            rounding * std::fabs(wanted) + kNear * (largest(own) + 1));
    }
    if (sees_all(indexer, position)) return keys;
    Vector inputs = index_takes_hidden ? x : Vector(rows.begin(), rows.begin() + query_rank), scores;
    if (indexer.query_input_norm.weight) {
      normalise(inputs.data(), indexer.query_input_norm.weight, kHeadEpsilon, plan.hidden);
    }
    Vector queries = product(index[0], nullptr, inputs);
    scale_heads(queries, indexer.head_scales, index_heads, position);
    const Vector weights = product(index[2], nullptr, x);
    for (int64_t head = 0; head < index_heads; ++head) {
      rotate(queries.data() + head * index_dim + first_rotated(), position, indexer.rope_kind);
    }
    for (const int64_t key : keys) {
      double score = 0;
      for (int64_t head = 0; !is_between_pools(key) && head < index_heads; ++head) {
        double sum = 0;
        for (int64_t d = 0; d < index_dim; ++d) {
          sum += queries[static_cast<size_t>(head * index_dim + d)] * get(table, key, rank + rope + d);
        }
        score += weights[static_cast<size_t>(head)] * std::max(sum, 0.0);
      }
      scores.push_back(score);
    }
    const int32_t* taken = chosen.data() + row * most_chosen(indexer);
    const int64_t count = top_k + (pool ? (position + 1) % pool : 0);
    double least = INFINITY, most_left = -INFINITY;
    for (int64_t i = 0, key = 0; key <= position; ++key) {
      const double score = scores[static_cast<size_t>(key)];
      const bool is_taken = i < count && taken[i] == key;
      i += is_taken;
      if (!is_between_pools(key)) (is_taken ? least : most_left) = is_taken ? std::min(least, score) : std::max(most_left, score);
      const bool is_with_last = !pool || is_taken == std::binary_search(taken, taken + count, last_of_pool(key, position));
      check("a key of a pool", level, spec.cache_format, is_with_last, true, 0);
    }
    const double size = largest(scores) + 1;
    check("the least chosen key", level, spec.cache_format, std::max(most_left - least, 0.0), 0, kNear * size);
    return std::vector<int64_t>(taken, taken + count);
  }

  // What the layer adds to the hidden states of a token, with the cache as the kernels left it.
  Vector run(const int32_t* table, const float* given, int64_t row, int64_t position, const char* level) const {
    Vector x = widened(given, plan.hidden);
    normalise(x.data(), layer.input_norm.weight, kEpsilon, plan.hidden);
    Vector own;
    if (has_source) {
      for (int64_t d = 0; d < rank + rope; ++d) own.push_back(get(source, spec.source_dim, table, position, d));
    } else {
      own = product(latent, spec.latent_bias, x);
      normalise(own.data(), spec.latent_norm, kHeadEpsilon, rank);
      if (spec.rope_norm) normalise(own.data() + rank, spec.rope_norm, kHeadEpsilon, rope);
      rotate(own.data() + rank, position, spec.rope_kind);
    }
    const double rounding = spec.cache_format == Format::kFloat32 ? 0 : 1.0 / 256;
    for (int64_t d = 0; d < rank + rope; ++d) {
      const double wanted = own[static_cast<size_t>(d)];
      check("a latent", level, spec.cache_format, get(table, position, d), wanted,
            rounding * std::fabs(wanted) + kNear * largest(own));
    }
    Vector rows = x;
    if (has_down) {
      rows = product(down[0], spec.query_down_bias, x);
      const Vector raw = rows;
      if (spec.query_norm) normalise(rows.data(), spec.query_norm, kHeadEpsilon, query_rank);
      if (takes_raw) rows.insert(rows.end(), raw.begin(), raw.end());
    }
    Vector queries = product(query, spec.query_bias, rows), attended, gates;
    if (has_gate) gates = product(gate[0], spec.gate_bias, x);
    if (gates_in_query) take_gates(queries, gates);
    scale_heads(queries, spec.head_scales, heads, position);
    if (spec.scales_queries) scale_by(queries, query_scales[static_cast<size_t>(position)]);
    const std::vector<int64_t> keys = keys_of(table, x, rows, row, position, level);
    for (int64_t head = 0; head < heads; ++head) {
      double* q = queries.data() + head * (nope + rope);
      rotate(q + nope, position, spec.rope_kind);
      Vector absorbed(static_cast<size_t>(rank)), weighted(static_cast<size_t>(rank)), scores;
      for (int64_t i = 0; i < rank; ++i) {
        double size;
        absorbed[static_cast<size_t>(i)] = to_keys.sum(q, head * rank + i, &size);
      }
      for (const int64_t key : keys) {
        double score = 0;
        for (int64_t i = 0; i < rank; ++i) score += absorbed[static_cast<size_t>(i)] * get(table, key, i);
        for (int64_t i = 0; i < rope; ++i) score += q[nope + i] * get(table, key, rank + i);
        scores.push_back(score * spec.scaling);
      }
      if (spec.sinks) scores.push_back(spec.sinks[head]);
      const double most = *std::max_element(scores.begin(), scores.end());
      double total = 0;
      for (double& score : scores) total += score = std::exp(score - most);
      for (size_t place = 0; place < keys.size(); ++place) {
        const double weight = scores[place] / total;
        for (int64_t i = 0; i < rank; ++i) weighted[static_cast<size_t>(i)] += weight * get(table, keys[place], i);
      }
      for (int64_t i = 0; i < value; ++i) {
        double size;
        const bool is_by_head = static_cast<int64_t>(gates.size()) == heads;
        const auto number = static_cast<size_t>(is_by_head ? head : head * value + i);
        const double by = gates.empty() ? 1 : 1 / (1 + std::exp(-gates[number]));
        attended.push_back(by * to_values.sum(weighted.data(), head * value + i, &size));
      }
    }
    Vector added = product(output, spec.output_bias, attended);
    scale_by(added, layer.residual_scale);
    return added;
  }

  const Plan& plan;
  int64_t heads = one_in(3) ? between(9, 20) : between(1, 6), rank = one_in(4) ? between(60, 80) : between(1, 40);
  int64_t nope = between(1, 20), rope = between(0, 12), value = between(1, 24), query_rank = between(1, 30);
  bool has_down = one_in(2), has_gate = one_in(3), index_takes_hidden = !has_down || one_in(3), has_indexer = one_in(2);
  bool takes_raw = has_down && one_in(3), gates_in_query = has_down && !has_gate && one_in(3), has_source = one_in(4);
  bool has_window = !has_indexer && one_in(3);
  int64_t index_heads = between(1, 20), index_dim = between(1, 40);
  int64_t pool = has_indexer && one_in(3) ? int64_t{1} << between(1, 4) : 0, top_k = pool ? pool * between(1, 3) : between(1, 20);
  std::deque<Weights> down = {trunk_weights(query_rank, plan.hidden)}, gate = {trunk_weights(one_in(2) ? heads : heads * value, plan.hidden)};
  Weights query = trunk_weights(heads * (nope + rope + (gates_in_query ? value : 0)),
                                has_down ? query_rank * (takes_raw ? 2 : 1) : plan.hidden);
  Weights latent = trunk_weights(rank + rope, plan.hidden);
  std::deque<Weights> index = {trunk_weights(index_heads * index_dim, index_takes_hidden ? plan.hidden : query_rank), trunk_weights(index_dim, plan.hidden),
                               trunk_weights(index_heads, plan.hidden), trunk_weights(index_dim, plan.hidden)};
  Weights to_keys = plain_weights(heads * rank, nope), to_values = plain_weights(heads * value, rank);
  Weights output = trunk_weights(plan.hidden, heads * value);
  std::vector<float> cosines, sines, query_scales;
  std::vector<int32_t> blocks;
  std::vector<char> cache, source;
  std::vector<int32_t> chosen;
  Indexer indexer{};
  LatentAttention spec{};
  Mlp mlp{};
  LayerSpec layer{};
  LoraLayer lora{};

 private:
  // Places that no token wrote are NaN, as the leftovers of another sequence may be.
  void set_cache() {
    int32_t num_blocks = 0;
    for (const Sequence& sequence : plan.sequences) {
      for (int64_t block = 0; block < divide_up(sequence.end(), kCacheBlock); ++block) blocks.push_back(num_blocks++);
    }
    std::shuffle(blocks.begin(), blocks.end(), random_bits);
    blocks.shrink_to_fit();
    spec.cache_format = plain_format();
    spec.cache_slots = num_blocks * kCacheBlock;
    const int64_t numbers = rank + rope + index_key_size(spec.indexer);
    spec.cache_dim = numbers + between(0, 3);
    cache.assign(static_cast<size_t>(spec.cache_slots * spec.cache_dim * bytes_of(spec.cache_format)), '\xFF');
    const int32_t* table = blocks.data();
    for (const Sequence& sequence : plan.sequences) {
      for (int64_t position = 0; position < sequence.first_position; ++position) {
        const int64_t first = table[position / kCacheBlock] * kCacheBlock * spec.cache_dim + position % kCacheBlock;
        for (int64_t d = 0; d < numbers; ++d) {
          put_plain(spec.cache_format, normal(), cache.data() + (first + d * kCacheBlock) * bytes_of(spec.cache_format));
        }
      }
      table += divide_up(sequence.end(), kCacheBlock);
    }
    spec.cache = cache.data();
    if (!has_source) return;
    spec.source_dim = rank + rope + between(0, 3);
    source.resize(static_cast<size_t>(spec.cache_slots * spec.source_dim * bytes_of(spec.cache_format)));
    for (int64_t i = 0; i < spec.cache_slots * spec.source_dim; ++i) {
      put_plain(spec.cache_format, normal(), source.data() + i * bytes_of(spec.cache_format));
    }
    spec.source = source.data();
  }

  std::deque<std::vector<float>> numbers_;
  PartMemory memory_;
};

// Runs the mixer for some tokens; returns the hidden states.
std::vector<float> mixed(Handle* handle, const Latents& latents, const std::vector<Chunk>& chunks,
                         const std::vector<float>& given, bool is_exact, bool has_adapters) {
  std::vector<StepSequence> sequences;
  std::vector<float> hidden, factors;
  StepCall call{};
  for (const Chunk& chunk : chunks) {
    int64_t first_block = 0;
    for (const Sequence& before : latents.plan.sequences) {
      if (&before == chunk.sequence) break;
      first_block += divide_up(before.end(), kCacheBlock);
    }
    sequences.push_back({static_cast<int32_t>(call.tokens), static_cast<int32_t>(chunk.count),
                         static_cast<int32_t>(chunk.sequence->first_position + chunk.first),
                         static_cast<int32_t>(first_block), 0, 0});
    const auto begin = given.begin() + (chunk.sequence->first_row + chunk.first) * latents.plan.hidden;
    hidden.insert(hidden.end(), begin, begin + chunk.count * latents.plan.hidden);
    factors.insert(factors.end(), static_cast<size_t>(chunk.count), chunk.sequence->first_row % 2 ? 0.0f : 0.7f);
    call.tokens += chunk.count;
  }
  sequences.shrink_to_fit();
  std::vector<float> normed(hidden.size());
  const int32_t* tables = latents.blocks.data();
  const float *cosines = latents.cosines.data(), *sines = latents.sines.data();
  const LoraLayer* layers = &latents.lora;
  const LoraStep adapters{&layers, factors.data(), 1, 1, nullptr};
  call.hidden = hidden.data();
  call.normed = normed.data();
  call.sequences = sequences.data();
  call.num_sequences = static_cast<int64_t>(sequences.size());
  call.block_tables = &tables;
  call.cosines = &cosines;
  call.sines = &sines;
  call.query_scales = latents.query_scales.data();
  call.hidden_size = latents.plan.hidden;
  call.is_exact = is_exact;
  call.lora = has_adapters ? &adapters : nullptr;
  if (greenroom_begin_layer(handle, &latents.layer, &call, 0)) std::abort();
  return hidden;
}

}  // namespace

void run_latents(Handle* handle, const char* level) {
  const Plan plan;
  Latents latents(plan);
  const bool is_exact = !one_in(3);
  const std::vector<float> given = normals(plan.tokens * plan.hidden);
  const std::vector<char> before = latents.cache;
  std::vector<Chunk> chunks;
  for (const Sequence& sequence : plan.sequences) chunks.push_back({&sequence, 0, sequence.num_tokens});
  for (const bool has_adapters : {false, true}) {
    latents.cache.assign(before.begin(), before.end());
    const std::vector<float> together = mixed(handle, latents, chunks, given, is_exact, has_adapters);
    const std::vector<char> after = latents.cache;
    const int32_t* table = latents.blocks.data();
    for (const Sequence& sequence : plan.sequences) {
      for (int64_t i = 0; is_exact && !has_adapters && i < sequence.num_tokens; ++i) {
        const int64_t first = (sequence.first_row + i) * plan.hidden;
        Vector wanted = latents.run(table, given.data() + first, sequence.first_row + i, sequence.first_position + i, level);
        for (int64_t d = 0; d < plan.hidden; ++d) wanted[static_cast<size_t>(d)] += given[static_cast<size_t>(first + d)];
        check_vector("latent attention", level, latents.spec.cache_format, together.data() + first, wanted,
                     kNear * (largest(wanted) + 1));
      }
      table += divide_up(sequence.end(), kCacheBlock);
    }
    latents.cache.assign(before.begin(), before.end());
    for (const Sequence& sequence : plan.sequences) {
      for (int64_t first = 0, count; first < sequence.num_tokens; first += count) {
        count = between(1, sequence.num_tokens - first);
        const std::vector<float> alone = mixed(handle, latents, {{&sequence, first, count}}, given, is_exact, has_adapters);
        check_same("latents of tokens by themselves", level, alone.data(),
                   together.data() + (sequence.first_row + first) * plan.hidden, count * plan.hidden * 4);
      }
    }
    check_same("a cache of latents", level, latents.cache.data(), after.data(), static_cast<int64_t>(after.size()));
  }
}

}  // namespace driver
