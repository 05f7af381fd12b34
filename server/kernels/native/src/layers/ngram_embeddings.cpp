#include "layers/ngram_embeddings.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "formats/checks.h"
#include "layers/sides.h"

namespace greenroom {
namespace {

struct Memory {
  Buffer panel;
  Buffer embedded;  // (tokens, numbers of all heads)
  Buffer values;    // (tokens, hidden)
  Buffer keys;      // (tokens, streams * hidden), and then normed values
  Buffer mixed;     // (tokens, streams * hidden): results of the convolution
  LoraSums key_lora, value_lora;
};

constexpr int64_t kMostTokens = 16;   // of an n-gram
constexpr float kLeastGate = 1e-6f;   // magnitude of a gate whose root is taken

// The tokens of a sequence by their place among this step's, negative before.
struct Tokens {
  const NgramEmbeddings& spec;
  const StepCall& step;
  const StepSequence& sequence;

  int32_t operator[](int64_t place) const {
    if (place >= 0) return step.token_ids[sequence.first_row + place];
    const int64_t kept = spec.most - 1;
    return sequence.state_from < 0 ? spec.end : spec.states[sequence.state_from * kept + kept + place];
  }
};

// Finds the rows of the table for one token, `(heads)`.
template <typename Take>
void hash(const NgramEmbeddings& spec, const Tokens& tokens, int64_t place, Take take) {
  const int64_t heads = spec.heads / (spec.most - 1);
  bool has_ended = false;
  uint64_t mixed = 0;
  for (int64_t i = 0; i < spec.most; ++i) {
    const int32_t token = has_ended ? spec.end : tokens[place - i];
    has_ended = has_ended || (i && token == spec.end);
    mixed ^= static_cast<uint64_t>(token) * static_cast<uint64_t>(spec.multipliers[i]);
    for (int64_t head = (i - 1) * heads; i && head < i * heads; ++head) {
      const int64_t rest = static_cast<int64_t>(mixed) % spec.sizes[head];
      take(head, spec.offsets[head] + (rest < 0 ? rest + spec.sizes[head] : rest));
    }
  }
}

void keep_tokens(const NgramEmbeddings& spec, const StepCall& step, const StepSequence& sequence) {
  const int64_t kept = spec.most - 1;
  const Tokens tokens{spec, step, sequence};
  int32_t* to = spec.states + sequence.state_to * kept;
  for (int64_t i = 0; i < kept; ++i) to[i] = tokens[sequence.num_tokens - kept + i];
}

}  // namespace

const char* check_ngram_embeddings(const NgramEmbeddings& spec, int64_t hidden_size) {
  if (!is_count(spec.num_streams) || spec.most < 2 || spec.most > kMostTokens) return "impossible n-grams";
  if (!is_count(spec.heads) || spec.heads % (spec.most - 1)) return "n-grams whose orders have other numbers of heads";
  const int64_t size = spec.num_streams * hidden_size, inputs = spec.heads * spec.table.inputs;
  if (!is_shaped(spec.table, spec.table.outputs, spec.table.inputs) || !is_shaped(spec.key, size, inputs) ||
      !is_shaped(spec.value, hidden_size, inputs)) {
    return "embeddings of n-grams that don't fit its residual streams";
  }
  if (!spec.key_norm || !spec.stream_norm || !spec.value_norm) return "embeddings of n-grams without norms";
  if (!spec.multipliers || !spec.sizes || !spec.offsets) return "n-grams without hashes";
  for (int64_t head = 0; head < spec.heads; ++head) {
    const int64_t first = spec.offsets[head], count = spec.sizes[head], rows = spec.table.outputs;
    if (count < 1 || first < 0 || count > rows || first > rows - count) return "n-grams outside of their table";
  }
  if (const char* reason = check_convolution(spec.convolution)) return reason;
  return spec.convolution.channels == size ? nullptr : "a convolution that doesn't fit its residual streams";
}

void add_ngram_embeddings(Context& context, const NgramEmbeddings& spec, const StepCall& step, const AdaptedRows& rows) {
  const Level& level = context.level;
  auto& own = context.mixers.of<Memory>();
  const int64_t hidden = step.hidden_size, size = spec.num_streams * hidden, tokens = step.tokens;
  const int64_t dim = spec.table.inputs, inputs = spec.heads * dim;
  const Side sides[] = {{&spec.key, nullptr, 0, &own.key_lora}, {&spec.value, nullptr, size, &own.value_lora}};
  PanelKind kind = level.panel_kind(spec.key, step.is_exact);
  // Both share the panel: all matrices take float32 rows.
  if (level.panel_kind(spec.value, step.is_exact) != kind) kind = PanelKind::kFloat32;
  Panel panel = place_panel(kind, tokens, inputs, own.panel.reserve(panel_bytes(kind, tokens, inputs)));
  float* embedded = own.embedded.reserve<float>(tokens * inputs * 4);
  float* values = own.values.reserve<float>(tokens * hidden * 4);
  float* keys = own.keys.reserve<float>(tokens * size * 4);
  float* mixed = own.mixed.reserve<float>(tokens * size * 4);
  const float root = 1.0f / std::sqrt(static_cast<float>(hidden));
  const LoraSite sites[] = {{own.key_lora, LoraPlace::kNgramKey, embedded, inputs},
                            {own.value_lora, LoraPlace::kNgramValue, embedded, inputs}};
  own.key_lora.clear();
  own.value_lora.clear();

  auto embed = [&](int64_t tile, int) {
    if (tile >= tokens) return keep_tokens(spec, step, step.sequences[tile - tokens]);
    const StepSequence& sequence = sequence_of(step, tile);
    hash(spec, Tokens{spec, step, sequence}, tile - sequence.first_row, [&](int64_t head, int64_t row) {
      read_row(level, spec.table, row, embedded + tile * inputs + head * dim);
    });
    level.prepare(panel, embedded, Format::kFloat32, inputs, nullptr, tile, tile + 1);
  };
  auto multiply_down = [&](int64_t tile, int thread) { multiply_sites_down(level, sites, 2, tile, thread); };
  auto project = multiply_sides(context, panel, sides, 2, kOutputTile,
                                [&](int64_t row, int64_t output, const float* sums, int64_t count) {
                                  float* to = output < size ? keys + row * size + output
                                                            : values + row * hidden + output - size;
                                  std::memcpy(to, sums, static_cast<size_t>(count) * 4);
                                });
  auto add_values = [&](int64_t token, int) {
    const float* value = values + token * hidden;
    for (int64_t i = 0; i < size; i += hidden) {
      float *key = keys + token * size + i, *row = step.streams + token * size + i;
      float* normed = mixed + token * size + i;
      level.normalise(key, spec.key_norm + i, spec.epsilon, hidden, key);
      level.normalise(row, spec.stream_norm + i, spec.epsilon, hidden, normed);
      const float product = level.dot(key, normed, hidden) * root;
      const float magnitude = std::sqrt(std::max(std::abs(product), kLeastGate));
      const float logit = product == 0.0f ? 0.0f : std::copysign(magnitude, product);
      const float gate = 1.0f / (1.0f + std::exp(-logit));
      for (int64_t j = 0; j < hidden; ++j) key[j] = value[j] * gate;
      level.add_scaled(row, key, 1.0f, hidden);
      level.normalise(key, spec.value_norm + i, spec.epsilon, hidden, key);
    }
  };
  auto convolve = ConvolutionStep(level, spec.convolution, step, keys, size, mixed, size);
  auto add_mixed = [&](int64_t token, int) {
    level.add_scaled(step.streams + token * size, mixed + token * size, 1.0f, size);
  };
  PhaseList phases(context.pool);
  phases.add(tokens + step.num_sequences, embed);
  plan_sites(phases, sites, 2, context, rows);
  phases.add(num_down_tiles(sites, 2), multiply_down);
  phases.add(num_tiles(sides, 2, tokens, kOutputTile), project);
  phases.add(tokens, add_values);
  phases.add(convolve.num_tiles(), convolve);
  phases.add(tokens, add_mixed);
  phases.run();
}

}  // namespace greenroom
