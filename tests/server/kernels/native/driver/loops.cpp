#include "loops.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace driver {

void normalise(double* x, const float* weight, float epsilon, int64_t size) {
  double squares = 0;
  for (int64_t i = 0; i < size; ++i) squares += x[i] * x[i];
  const double factor = 1 / std::sqrt(squares / static_cast<double>(size) + epsilon);
  for (int64_t i = 0; i < size; ++i) x[i] *= (weight ? weight[i] : 1.0f) * factor;
}

Vector normed(const Norm& norm, Vector x) {
  if (norm.kind == NormKind::kNone) return x;
  const auto size = static_cast<int64_t>(x.size());
  if (norm.kind == NormKind::kLayer) {
    const double mean = std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(size);
    for (double& number : x) number -= mean;
  }
  const bool is_input = norm.kind == NormKind::kInput;
  for (int64_t i = 0; is_input && i < size; ++i) x[i] *= norm.weight[i];
  normalise(x.data(), is_input ? nullptr : norm.weight, norm.epsilon, size);
  for (int64_t i = 0; norm.bias && i < size; ++i) x[i] += norm.bias[i];
  return x;
}

double largest(const Vector& x) {
  double most = 0;
  for (const double number : x) most = std::fmax(most, std::fabs(number));
  return most;
}

void check_vector(const char* what, const char* level, Format format, const float* found, const Vector& wanted,
                  double most) {
  for (size_t i = 0; i < wanted.size(); ++i) check(what, level, format, found[i], wanted[i], most);
}

namespace {

Vector product(const Weights& weights, const float* bias, const Vector& x) {
  Vector y;
  double size;
  for (int64_t output = 0; output < weights.layout.outputs; ++output) {
    y.push_back(weights.sum(x.data(), output, &size) + (bias ? bias[output] : 0));
  }
  return y;
}

void soft_max(Vector& x) {
  const double most = *std::max_element(x.begin(), x.end());
  double total = 0;
  for (double& number : x) total += number = std::exp(number - most);
  for (double& number : x) number /= total;
}

// An input of a convolution by its place among a sequence's tokens in a step, negative for those before; empty if unknown.
Vector input(const Convolved& by, const StepSequence& sequence, const std::vector<Vector>& inputs, int64_t place) {
  if (place >= 0) return inputs[static_cast<size_t>(place)];
  const int64_t kept = kept_inputs(by.spec), channels = by.spec.channels;
  if (sequence.state_from < 0) return Vector(static_cast<size_t>(channels));
  return widened(by.states.data() + (sequence.state_from * kept + kept + place) * channels, channels);
}

// The result of a convolution for one of a sequence's tokens in a step; empty if an input is unknown. `taps` are what the
// token adds to the taps of each of some heads, the newest first.
Vector convolved(const Convolved& by, const StepSequence& sequence, const std::vector<Vector>& inputs, size_t token,
                 const Vector& taps = {}) {
  const Convolution& spec = by.spec;
  Vector y(static_cast<size_t>(spec.channels));
  for (int64_t tap = 0; tap < spec.width; ++tap) {
    const int64_t place = static_cast<int64_t>(token) - kept_inputs(spec) + tap * spec.dilation;
    const Vector x = input(by, sequence, inputs, place);
    if (x.empty()) return {};
    for (size_t i = 0; i < y.size(); ++i) {
      const size_t heads = taps.size() / static_cast<size_t>(spec.width);
      const size_t first = heads ? i / (y.size() / heads) * static_cast<size_t>(spec.width) : 0;
      const double own = heads ? taps[first + static_cast<size_t>(spec.width - 1 - tap)] : 0.0;
      y[i] += (spec.weight[static_cast<size_t>(tap) * y.size() + i] + own) * x[i];
    }
  }
  for (size_t i = 0; i < y.size(); ++i) {
    if (spec.bias) y[i] += spec.bias[i];
    if (spec.has_silu) y[i] /= 1 + std::exp(-y[i]);
  }
  return y;
}

void check_states(const char* level, const Convolved& by, const StepSequence& sequence, const std::vector<Vector>& inputs) {
  const int64_t kept = kept_inputs(by.spec), channels = by.spec.channels;
  for (int64_t i = 0; i < kept; ++i) {
    const Vector wanted = input(by, sequence, inputs, sequence.num_tokens - kept + i);
    check_vector("a state of a convolution", level, Format::kFloat32,
                 by.states.data() + (sequence.state_to * kept + i) * channels, wanted, kNear * (largest(wanted) + 1));
  }
}

// A norm of a layer's rows, with gates if it has some.
Vector normed_rows(const Layer& layer, bool is_inner, const Vector& states) {
  Vector y = normed(is_inner ? layer.spec.inner_norm : layer.spec.input_norm, states);
  if (!(is_inner ? layer.spec.inner_gate : layer.spec.input_gate)) return y;
  Vector ranks = product(layer.gate_down[is_inner], nullptr, y);
  for (double& number : ranks) number /= 1 + std::exp(-number);
  const Vector gates = product(layer.gate_up[is_inner], nullptr, ranks);
  for (size_t i = 0; i < y.size(); ++i) y[i] /= 1 + std::exp(-gates[i]);
  return y;
}

// Keys and values of a sequence's tokens in a step, before their convolutions.
struct ConvolvedHeads {
  ConvolvedHeads(const Layer& layer, const StepSequence& sequence, const float* given) {
    for (int64_t i = 0; layer.convolves_keys && i < sequence.num_tokens; ++i) {
      const Vector x = normed_rows(layer, false, widened(given + (sequence.first_row + i) * layer.hidden, layer.hidden));
      keys.push_back(product(layer.key, layer.attention.key_bias, x));
      values.push_back(product(layer.value, layer.attention.value_bias, x));
    }
  }

  std::vector<Vector> keys, values;
};

// Queries, keys and values of a token, after norms and rotary embedding.
struct Heads {
  Heads(const Layer& layer, const float* given, const StepSequence& sequence, const ConvolvedHeads& before, int64_t token) {
    const GroupedAttention& spec = layer.attention;
    const int64_t position = sequence.first_position + token;
    const Vector x = normed_rows(layer, false, widened(given + (sequence.first_row + token) * layer.hidden, layer.hidden));
    query = product(layer.query, spec.query_bias, x);
    if (spec.has_gates_in_query) take_gates(layer);
    if (layer.has_own_gate) gates = product(layer.gate, spec.gate_bias, x);
    if (spec.has_keys_in_query) {
      take_keys(layer);
    } else if (layer.convolves_keys) {
      const Vector key_taps = taps(layer, layer.key_taps, x), value_taps = taps(layer, layer.value_taps, x);
      key = convolved(layer.key_inputs, sequence, before.keys, static_cast<size_t>(token), key_taps);
      value = convolved(layer.value_inputs, sequence, before.values, static_cast<size_t>(token), value_taps);
    } else {
      key = product(layer.key, spec.key_bias, x);
      value = layer.shares_keys ? key : product(layer.value, spec.value_bias, x);
    }
    for (int64_t head = 0; spec.value_norm && head < layer.kv_heads; ++head) {
      normalise(value.data() + head * layer.value_dim, spec.value_norm, kHeadEpsilon, layer.value_dim);
    }
    for (double& number : value) number *= spec.value_scale;
    const auto clip = [&](Vector& vector) {
      for (double& number : vector) number = spec.clip != 0 ? std::clamp<double>(number, -spec.clip, spec.clip) : number;
    };
    clip(value);
    for (Vector* vector : {&query, &key}) {
      const float* weight = vector == &query ? spec.query_norm : spec.key_norm;
      const auto size = static_cast<int64_t>(vector->size()), piece = spec.norms_together ? size : layer.key_dim;
      const auto norm = [&] {
        for (int64_t i = 0; weight && i < size; i += piece) normalise(vector->data() + i, weight, kHeadEpsilon, piece);
      };
      if (!spec.norms_rotated) norm();
      limit(*vector, vector == &query ? spec.query_scales : spec.key_scales, layer.key_dim, spec.norm_limit);
      clip(*vector);
      for (int64_t i = 0; i < size; i += layer.key_dim) rotate(layer, spec.rope_kind, vector->data() + i, position);
      if (spec.norms_rotated) norm();
    }
    if (spec.indexer) index(layer, x, position);
    if (spec.relative) {
      profile_weights = product(layer.profile_weights, nullptr, x);
      limit(profile_weights, spec.relative->scales, spec.relative->num_profiles, spec.relative->limit);
    }
    if (spec.sink.outputs) sinks = product(layer.sink, nullptr, x);
    for (Vector* vector : {&query, &profile_weights}) {
      for (double& number : *vector) number *= spec.scales_queries ? layer.query_scales[position] : 1.0f;
    }
  }

  static Vector taps(const Layer& layer, const std::deque<Weights>& by, const Vector& x) {
    if (by.empty()) return {};
    Vector y = product(by[0], nullptr, x);
    for (double& number : y) number *= layer.attention.taps_scale;
    return y;
  }

  // Multiplies numbers by factors, and limits the norms of heads.
  static void limit(Vector& x, const float* scales, int64_t dim, float most) {
    for (size_t i = 0; scales && i < x.size(); ++i) x[i] *= scales[i];
    for (size_t first = 0; most != 0 && first < x.size(); first += static_cast<size_t>(dim)) {
      double squares = 0;
      for (int64_t i = 0; i < dim; ++i) squares += x[first + i] * x[first + i];
      const double factor = std::fmin(1.0, most / (std::sqrt(squares) + 1e-6));
      for (int64_t i = 0; i < dim; ++i) x[first + i] *= factor;
    }
  }

  // What is added to the score of a key for a head.
  double bias(const Layer& layer, int64_t head, int64_t distance) const {
    const RelativeBiases& by = layer.relative;
    double sum = 0;
    for (int64_t i = 0; layer.attention.relative && distance < by.extent && i < by.num_profiles; ++i) {
      sum += profile_weights[static_cast<size_t>(head * by.num_profiles + i)] *
             by.profiles[i * (by.extent + 2 * kCacheBlock) + kCacheBlock + by.extent - 1 - distance];
    }
    return sum;
  }

  void index(const Layer& layer, const Vector& x, int64_t position) {
    const KeyBlockIndexer& by = layer.indexer;
    index_key = normed(by.key_norm, product(layer.index_key[0], nullptr, x));
    rotate(layer, by.rope_kind, index_key.data(), position);
    index_query = product(layer.index_query[0], nullptr, x);
    for (int64_t head = 0; head < by.heads; ++head) {
      const auto first = index_query.begin() + head * by.dim;
      const Vector own = normed(by.query_norm, Vector(first, first + by.dim));
      std::copy(own.begin(), own.end(), first);
      rotate(layer, by.rope_kind, index_query.data() + head * by.dim, position);
    }
  }

  // Moves keys and values, which follow all queries, to vectors of their own.
  void take_keys(const Layer& layer) {
    const auto first = query.begin() + layer.heads * layer.key_dim, last = first + layer.kv_heads * layer.key_dim;
    key = Vector(first, last);
    value = Vector(last, query.end());
    query.erase(first, query.end());
  }

  // Moves each head's gates, which follow its queries, to a vector of their own.
  void take_gates(const Layer& layer) {
    Vector queries;
    for (size_t i = 0; i < query.size(); ++i) {
      (i / static_cast<size_t>(layer.key_dim) % 2 ? gates : queries).push_back(query[i]);
    }
    query = queries;
  }

  static void rotate(const Layer& layer, RopeKind kind, double* head, int64_t position) {
    const int64_t pairs = kind == RopeKind::kNone ? 0 : layer.attention.rotary_dim / 2;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const bool is_interleaved = kind == RopeKind::kInterleaved;
      double& first = head[is_interleaved ? 2 * pair : pair];
      double& second = head[is_interleaved ? 2 * pair + 1 : pair + pairs];
      const double cosine = layer.cosines[position * pairs + pair], sine = layer.sines[position * pairs + pair];
      const double turned = first * cosine - second * sine;
      second = second * cosine + first * sine;
      first = turned;
    }
  }

  Vector query, key, value, gates, index_query, index_key, profile_weights, sinks;
};

// Adds the results of a part to the hidden states of a token.
void add_to(const Layer& layer, const ResidualGate* gate, const float* hidden, Vector& results) {
  for (size_t d = 0; d < results.size(); ++d) {
    const double kept = gate ? gate->kept[d] : 1.0, added = gate ? gate->added[d] : layer.spec.residual_scale;
    results[d] = kept * hidden[d] + added * results[d] + (gate && gate->bias ? gate->bias[d] : 0.0);
  }
}

// True if two scores are too close to tell which is greater.
bool are_near(double a, double b) { return std::fabs(a - b) <= 1e-4 * (std::fabs(a) + std::fabs(b)); }

// The keys that a head of keys sees; empty if the scores of its indexer are too close to tell.
std::vector<int64_t> keys_of(const Layer& layer, const int32_t* table, const Heads& heads, int64_t kv_head, int64_t position) {
  std::vector<int64_t> keys;
  for (int64_t key = layer.oldest_seen(position); key <= position; ++key) keys.push_back(key);
  const KeyBlockIndexer& by = layer.indexer;
  const int64_t blocks = layer.attention.indexer ? position / by.block_size + 1 : 0;
  if (blocks <= by.top_k) return keys;
  Vector scores(static_cast<size_t>(blocks), -INFINITY);
  for (const int64_t key : keys) {
    double score = 0;
    for (int64_t d = 0; d < by.dim; ++d) {
      score += heads.index_query[static_cast<size_t>(kv_head * by.dim + d)] *
               get_plain(layer.attention.cache_format, layer.index_keys.data() + layer.index_place(table, key, d));
    }
    double& best = scores[static_cast<size_t>(key / by.block_size)];
    best = std::max(best, score);
  }
  for (int64_t i = 0; i < std::min(blocks, by.num_local); ++i) scores[static_cast<size_t>(blocks - 1 - i)] = 1e30;
  Vector sorted = scores;
  std::sort(sorted.rbegin(), sorted.rend());
  const double least = sorted[static_cast<size_t>(by.top_k - 1)], next = sorted[static_cast<size_t>(by.top_k)];
  if (least == next || std::fabs(least - next) <= 1e-3 * (std::fabs(sorted.back()) + std::fabs(least))) return {};
  keys.erase(std::remove_if(keys.begin(), keys.end(),
                            [&](int64_t key) { return scores[static_cast<size_t>(key / by.block_size)] < least; }),
             keys.end());
  return keys;
}

// Attention of a token over the cache; empty if it is too close to tell which keys it sees.
Vector attended(const Layer& layer, const int32_t* table, const Heads& heads, int64_t position) {
  const GroupedAttention& spec = layer.attention;
  const Vector& query = heads.query;
  Vector result(static_cast<size_t>(layer.heads * layer.value_dim));
  for (int64_t head = 0; head < layer.heads; ++head) {
    const int64_t kv_head = head / (layer.heads / layer.kv_heads);
    const std::vector<int64_t> keys = keys_of(layer, table, heads, kv_head, position);
    if (keys.empty()) return {};
    Vector scores;
    for (const int64_t key : keys) {
      double score = 0;
      for (int64_t d = 0; d < layer.key_dim; ++d) {
        score += query[head * layer.key_dim + d] *
                 get_plain(spec.cache_format, layer.keys.data() + layer.key_place(table, kv_head, key, d));
      }
      score *= spec.scaling;
      score = spec.softcap ? std::tanh(score / spec.softcap) * spec.softcap : score;
      scores.push_back(score + heads.bias(layer, head, position - key));
    }
    if (spec.sinks) scores.push_back(spec.sinks[head]);
    if (spec.sink.outputs) scores.push_back(heads.sinks[static_cast<size_t>(head)]);
    soft_max(scores);
    for (size_t i = 0; i < keys.size(); ++i) {
      for (int64_t d = 0; d < layer.value_dim; ++d) {
        result[head * layer.value_dim + d] +=
            scores[i] *
            get_plain(spec.cache_format, layer.values.data() + layer.value_place(table, kv_head, keys[i], d));
      }
    }
  }
  return result;
}

// Copies a token's keys and values to another cache.
void copy_token(const Layer& layer, const int32_t* table, int64_t position, std::vector<char>& keys,
                std::vector<char>& values) {
  const int64_t bytes = bytes_of(layer.attention.cache_format);
  for (int64_t head = 0; head < layer.kv_heads; ++head) {
    for (int64_t d = 0; d < layer.key_dim; ++d) {
      const int64_t place = layer.key_place(table, head, position, d);
      std::memcpy(keys.data() + place, layer.keys.data() + place, static_cast<size_t>(bytes));
    }
    const int64_t place = layer.value_place(table, head, position, 0);
    std::memcpy(values.data() + place, layer.values.data() + place, static_cast<size_t>(layer.value_dim * bytes));
  }
}

void check_cache(const char* level, const Layer& layer, const int32_t* table, int64_t position, const Heads& heads) {
  const Format format = layer.attention.cache_format;
  const double rounding = format == Format::kFloat32 ? 0 : format == Format::kBFloat16 ? 1.0 / 256 : 1.0 / 2048;
  const double key_size = largest(heads.key), value_size = largest(heads.value);
  for (int64_t head = 0; head < layer.kv_heads; ++head) {
    for (int64_t d = 0; d < layer.key_dim; ++d) {
      const double wanted = heads.key[head * layer.key_dim + d];
      const double found = get_plain(format, layer.keys.data() + layer.key_place(table, head, position, d));
      check("a key", level, format, found, wanted, rounding * std::fabs(wanted) + kNear * key_size);
    }
    for (int64_t d = 0; d < layer.value_dim; ++d) {
      const double wanted = heads.value[head * layer.value_dim + d];
      const double found = get_plain(format, layer.values.data() + layer.value_place(table, head, position, d));
      check("a value", level, format, found, wanted, rounding * std::fabs(wanted) + kNear * value_size);
    }
  }
}

// The indices of scores, the greatest first.
std::vector<size_t> ranked(const Vector& scores) {
  std::vector<size_t> places(scores.size());
  std::iota(places.begin(), places.end(), 0);
  std::stable_sort(places.begin(), places.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
  return places;
}

// Computes the scores for the choice, with very low ones for groups not chosen; false if groups are too close to tell.
bool keep_groups(const Router& router, Vector& scores) {
  if (router.num_groups == 1) return true;
  const auto size = static_cast<int64_t>(scores.size()) / router.num_groups;
  Vector sums;
  for (int64_t group = 0; group < router.num_groups; ++group) {
    Vector some(scores.begin() + group * size, scores.begin() + (group + 1) * size);
    std::sort(some.rbegin(), some.rend());
    sums.push_back(router.is_by_best ? some[0] : some[0] + some[1]);
  }
  const std::vector<size_t> order = ranked(sums);
  const auto count = static_cast<size_t>(router.top_groups);
  for (size_t i = count; i < order.size(); ++i) {
    std::fill_n(scores.begin() + static_cast<int64_t>(order[i]) * size, size, -1e30);
  }
  return count == order.size() || !are_near(sums[order[count - 1]], sums[order[count]]);
}

void check_router(const char* level, const Layer& layer, const Vector& rows, const int32_t* chosen,
                  const float* weights) {
  const Router& router = layer.mixture.router;
  Vector scores = product(layer.router[0], router.bias, rows);
  for (double& score : scores) score *= router.logits_scale;
  if (router.kind == RouterKind::kSoftmaxFirst) soft_max(scores);
  if (router.kind == RouterKind::kSigmoid) {
    for (double& score : scores) score = 1 / (1 + std::exp(-score));
  }
  Vector choice = scores;
  for (size_t i = 0; router.correction && i < choice.size(); ++i) choice[i] += router.correction[i];
  if (!keep_groups(router, choice)) return;
  const std::vector<size_t> order = ranked(choice);
  Vector wanted;
  for (int32_t i = 0; i < router.top_k; ++i) {
    const size_t best = order[static_cast<size_t>(i)], found = static_cast<size_t>(chosen[i]);
    if (found >= choice.size() || !are_near(choice[found], choice[best])) {
      return check("a choice", level, Format::kFloat32, chosen[i], static_cast<double>(best), 0);
    }
    if (std::count(chosen, chosen + i, chosen[i])) check("a choice made twice", level, Format::kFloat32, 1, 0, 0);
    wanted.push_back(scores[found]);
  }
  if (router.kind == RouterKind::kTopFirst) soft_max(wanted);
  if (router.kind == RouterKind::kTopSigmoid) {
    for (double& weight : wanted) weight = 1 / (1 + std::exp(-weight));
  }
  for (int32_t i = 0; router.kind == RouterKind::kSparseMixer && i < router.top_k; ++i) {
    const double best = scores[static_cast<size_t>(chosen[i])];
    double total = 0;
    for (size_t j = 0; j < scores.size(); ++j) {
      const bool is_gone = std::find(chosen, chosen + i, static_cast<int32_t>(j)) != chosen + i;
      const double distance = (best - scores[j]) / std::max(std::fabs(scores[j]), best);
      if (std::fabs(distance - router.near) < 1e-3) return;  // too close to tell
      if (!is_gone && !(distance > router.near)) total += std::exp(scores[j] - best);
    }
    wanted[static_cast<size_t>(i)] = 1 / total;
  }
  const double total = router.is_normalised ? std::accumulate(wanted.begin(), wanted.end(), 1e-20) : 1;
  for (size_t i = 0; i < wanted.size(); ++i) {
    wanted[i] *= router.scale / total * (router.expert_scales ? router.expert_scales[chosen[i]] : 1.0f);
  }
  check_vector("a weight", level, Format::kFloat32, weights, wanted, kNear * largest(wanted) + std::numeric_limits<float>::min());
}

}  // namespace

void check_attention(const char* level, const Layer& layer, const Step& step, const std::vector<float>& given,
                     std::vector<char> keys, std::vector<char> values) {
  const GroupedAttention& spec = layer.attention;
  const int64_t hidden = layer.hidden;
  for (const StepSequence& sequence : step.sequences) {
    const int32_t* table = layer.blocks.data() + sequence.first_block;
    const ConvolvedHeads before(layer, sequence, given.data());
    std::vector<Vector> added;  // empty for a token that is not compared
    for (int64_t i = 0; i < sequence.num_tokens; ++i) {
      const int64_t position = sequence.first_position + i;
      added.emplace_back();
      copy_token(layer, table, position, keys, values);
      if (!step.call.is_exact) continue;
      const Heads heads(layer, given.data(), sequence, before, i);
      check_cache(level, layer, table, position, heads);
      for (int64_t d = 0; spec.indexer && d < layer.index_dim; ++d) {
        const double own = heads.index_key[static_cast<size_t>(d)];
        check("an index key of blocks", level, spec.cache_format,
              get_plain(spec.cache_format, layer.index_keys.data() + layer.index_place(table, position, d)), own,
              (spec.cache_format == Format::kFloat32 ? 0 : 1.0 / 256) * std::fabs(own) + kNear * (largest(heads.index_key) + 1));
      }
      Vector result = attended(layer, table, heads, position);
      if (result.empty()) continue;
      for (int64_t head = 0; spec.result_norm && head < layer.heads; ++head) {
        normalise(result.data() + head * layer.value_dim, spec.result_norm, kHeadEpsilon, layer.value_dim);
      }
      for (size_t d = 0; !heads.gates.empty() && d < result.size(); ++d) {
        const double gate = heads.gates[d * heads.gates.size() / result.size()];
        result[d] *= spec.gate_kind == GateKind::kSigmoid ? 1 / (1 + std::exp(-gate)) : std::fmax(gate, 0.0) + std::log1p(std::exp(-std::fabs(gate)));
      }
      added.back() = normed(layer.spec.mixer_norm, product(layer.output, spec.output_bias, result));
    }
    for (size_t i = 0; i < added.size(); ++i) {
      const int64_t row = sequence.first_row + static_cast<int64_t>(i);
      Vector wanted = layer.spec.mixer_convolution ? convolved(layer.mixer_results, sequence, added, i) : added[i];
      if (wanted.empty()) continue;
      add_to(layer, layer.spec.mixer_residual_gate, given.data() + row * hidden, wanted);
      check_vector("attention", level, spec.cache_format, step.hidden.data() + row * hidden, wanted,
                   kNear * (largest(wanted) + 1));
    }
    if (!step.call.is_exact) continue;
    if (layer.convolves_keys) {
      check_states(level, layer.key_inputs, sequence, before.keys);
      check_states(level, layer.value_inputs, sequence, before.values);
    }
    if (layer.spec.mixer_convolution) check_states(level, layer.mixer_results, sequence, added);
  }
  check_same("a cache of keys", level, keys.data(), layer.keys.data(), static_cast<int64_t>(keys.size()));
  check_same("a cache of values", level, values.data(), layer.values.data(), static_cast<int64_t>(values.size()));
}

void check_input_norm(const char* level, const Layer& layer, const Step& step) {
  const int64_t hidden = layer.hidden;
  for (int64_t token = 0; token < step.call.tokens; ++token) {
    const Vector wanted = normed_rows(layer, false, widened(step.hidden.data() + token * hidden, hidden));
    if (!step.call.is_exact && layer.spec.input_gate) continue;
    check_vector("a norm of inputs", level, Format::kFloat32, step.normed.data() + token * hidden, wanted,
                 kNear * (largest(wanted) + 1));
  }
}

void check_norm_and_router(const char* level, const Layer& layer, const Step& step, const std::vector<float>& given,
                           int64_t place) {
  const int64_t hidden = layer.hidden, top_k = layer.mixture.router.top_k;
  for (int64_t token = 0; token < step.call.tokens; ++token) {
    const Vector states = widened(step.hidden.data() + token * hidden, hidden);
    const bool is_inner = !layer.spec.is_parallel;
    const Vector before = is_inner ? states : widened(given.data() + token * hidden, hidden);
    const Vector wanted = normed_rows(layer, is_inner, before);
    if (step.call.is_exact || !(is_inner ? layer.spec.inner_gate : layer.spec.input_gate)) {
      check_vector("a norm", level, Format::kFloat32, step.normed.data() + token * hidden, wanted,
                   kNear * (largest(wanted) + largest(normed(is_inner ? layer.spec.inner_norm : layer.spec.input_norm, before))));
    }
    if (!layer.has_router()) continue;
    const int64_t first = step.place_of_choices(place) + token * top_k;
    const Norm& own = layer.mixture.router_norm;
    const Vector rows = own.kind == NormKind::kNone ? widened(step.normed.data() + token * hidden, hidden) : normed(own, states);
    check_router(level, layer, rows, step.chosen.data() + first,
                 step.weights.data() + first);
  }
}

void check_finish(const char* level, const Layer& layer, const Step& step, int64_t place,
                  const std::vector<float>& given, const std::vector<float>& outputs) {
  const int64_t hidden = layer.hidden, top_k = layer.has_router() ? layer.mixture.router.top_k : 0;
  const float* weights = step.weights.data() + step.place_of_choices(place);
  std::vector<Vector> added;
  double size = 0;  // of the largest sum of magnitudes
  for (int64_t token = 0; token < step.call.tokens; ++token) {
    const int64_t width = layer.has_router() ? layer.experts[0].hidden : hidden;
    Vector wanted(static_cast<size_t>(width));
    for (int64_t i = token * top_k; i < (token + 1) * top_k; ++i) {
      const float weight = layer.mixture.scales_input ? 1.0f : weights[i];
      const Vector result = normed(layer.mixture.result_norm, widened(outputs.data() + i * width, width));
      for (int64_t d = 0; d < width; ++d) wanted[d] += weight * result[d];
    }
    for (double& number : wanted) number *= layer.mixture.experts_scale;
    if (layer.is_projected()) wanted = product(layer.projections[1], nullptr, wanted);
    wanted = normed(layer.mixture.output_norm, wanted);
    if (layer.has_dense()) {
      const Mlp& mlp = layer.mixture.shared;
      const Vector rows = mlp.input_norm.kind == NormKind::kNone
                              ? widened(step.normed.data() + token * hidden, hidden)
                              : normed(mlp.input_norm, widened(given.data() + token * hidden, hidden));
      double own_size;
      const Vector own = normed(mlp.output_norm, layer.dense[0].run(0, rows.data(), &own_size));
      size = std::max(size, own_size);
      const bool has_gate = !layer.dense_gate.empty();
      const double by = has_gate ? 1 / (1 + std::exp(-product(layer.dense_gate[0], nullptr, rows)[0])) : 1;
      for (int64_t d = 0; d < hidden; ++d) wanted[d] += by * mlp.scale * own[d];
    }
    added.push_back(normed(layer.spec.output_norm, wanted));
  }
  for (const StepSequence& sequence : step.sequences) {
    const auto first = added.begin() + sequence.first_row;
    const std::vector<Vector> inputs(first, first + sequence.num_tokens);
    for (size_t i = 0; i < inputs.size(); ++i) {
      const int64_t row = sequence.first_row + static_cast<int64_t>(i);
      Vector wanted = layer.spec.inner_convolution ? convolved(layer.inner_results, sequence, inputs, i) : inputs[i];
      add_to(layer, layer.spec.inner_residual_gate, given.data() + row * hidden, wanted);
      for (double& number : wanted) number *= layer.spec.output_scale;
      check_vector("a layer", level, Format::kFloat32, step.hidden.data() + row * hidden, wanted,
                   kNear * (largest(wanted) + 1) + kExact * size);
    }
    if (layer.spec.inner_convolution) check_states(level, layer.inner_results, sequence, inputs);
  }
}

std::vector<float> rows_of_experts(const Layer& layer, const Step& step) {
  if (!layer.is_projected()) return step.normed;
  std::vector<float> rows;
  for (int64_t token = 0; token < step.call.tokens; ++token) {
    const Vector given = widened(step.normed.data() + token * layer.hidden, layer.hidden);
    const Vector row = normed(layer.mixture.projected_norm, product(layer.projections[0], nullptr, given));
    rows.insert(rows.end(), row.begin(), row.end());
  }
  return rows;
}

}  // namespace driver
