#include "model/blocks/grouped_attention/grouped_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "formats/checks.h"
#include "layers/attention_parts.h"
#include "layers/layer_adapters.h"
#include "layers/sides.h"
#include "model/blocks/grouped_attention/key_block_indexer_step.h"
#include "model/blocks/grouped_attention/pool_indexer_step.h"

namespace greenroom {
namespace {

// The working memory of this kind.
struct AttentionScratch {
  Buffer heads;     // queries, keys and values of a step
  Buffer attended;  // results of attention, and its scratch memory
  Buffer parts;     // sums of parts of the keys
  Buffer convolved; // keys and values after their convolutions
  Buffer taps;      // weights of a token's convolution
  LoraSums query_lora, key_lora, value_lora, output_lora, gate_lora, relative_lora, key_taps_lora, value_taps_lora, sink_lora, delayed_lora;
  LoraSums index_lora[2];
};

constexpr int64_t kTokenTile = 16;  // tokens of one sequence per tile of attention, unless they see chosen keys

// The matrices that adapters may add to, in the order of their places.
enum Place { kQuery, kKey, kValue, kOutput, kGate, kIndexQuery, kIndexKey, kRelative, kKeyTaps, kValueTaps, kSink, kDelayed };
constexpr int kOwnSides = 9, kMostSides = kOwnSides + 2;  // products with the normed rows; and with those of an indexer
constexpr float kLeastNorm = 1e-6f;  // is added to norms that are divided by

// Applies the norms of heads and the rotary embedding to one token, and writes its keys and values to the cache.
void place_token(const Level& level, const GroupedAttention& attention, const StepCall& step, const StepSequence& sequence,
                 int64_t token, float* query, float* key, float* value, float* profile_weights) {
  const int64_t position = sequence.first_position + token - sequence.first_row;
  const auto norm_heads = [&](float* x, const float* weight, int64_t heads) {
    if (!weight) return;
    if (attention.norms_together) {
      level.normalise(x, weight, attention.head_norm_epsilon, heads * attention.key_dim, x);
      return;
    }
    for (int64_t head = 0; head < heads; ++head) {
      level.normalise(x + head * attention.key_dim, weight, attention.head_norm_epsilon, attention.key_dim, x + head * attention.key_dim);
    }
  };
  const auto norm_both = [&] {
    norm_heads(query, attention.query_norm, attention.heads);
    norm_heads(key, attention.key_norm, attention.kv_heads);
  };
  if (!attention.value.outputs && !attention.has_keys_in_query) {
    std::memcpy(value, key, static_cast<size_t>(attention.kv_heads * attention.key_dim) * sizeof(float));
  }
  for (int64_t head = 0; attention.value_norm && head < attention.kv_heads; ++head) {
    float* x = value + head * attention.value_dim;
    level.normalise(x, attention.value_norm, attention.head_norm_epsilon, attention.value_dim, x);
  }
  if (attention.value_scale != 1.0f) {
    for (int64_t i = 0; i < attention.kv_heads * attention.value_dim; ++i) value[i] *= attention.value_scale;
  }
  if (!attention.norms_rotated) norm_both();
  const auto limit_heads = [&](float* x, const float* scales, int64_t heads, int64_t dim, float limit) {
    for (int64_t i = 0; scales && i < heads * dim; ++i) x[i] *= scales[i];
    for (int64_t head = 0; limit != 0.0f && head < heads; ++head) {
      float* own = x + head * dim;
      const float factor = limit / (std::sqrt(level.dot(own, own, dim)) + kLeastNorm);
      for (int64_t i = 0; factor < 1.0f && i < dim; ++i) own[i] *= factor;
    }
  };
  limit_heads(query, attention.query_scales, attention.heads, attention.key_dim, attention.norm_limit);
  limit_heads(key, attention.key_scales, attention.kv_heads, attention.key_dim, attention.norm_limit);
  if (attention.relative) {
    const RelativeBiases& by = *attention.relative;
    limit_heads(profile_weights, by.scales, attention.heads, by.num_profiles, by.limit);
  }
  if (attention.clip != 0.0f) {
    const auto clip = [&](float* x, int64_t count) {
      for (int64_t i = 0; i < count; ++i) x[i] = std::clamp(x[i], -attention.clip, attention.clip);
    };
    clip(query, attention.heads * attention.key_dim);
    clip(key, attention.kv_heads * attention.key_dim);
    clip(value, attention.kv_heads * attention.value_dim);
  }
  if (attention.rope_kind != RopeKind::kNone) {
    const int64_t angles = (step.has_own_angles ? token : position) * (attention.rotary_dim / 2);
    const float* cosines = step.cosines[attention.rope] + angles;
    const float* sines = step.sines[attention.rope] + angles;
    const bool is_interleaved = attention.rope_kind == RopeKind::kInterleaved;
    for (int64_t head = 0; head < attention.heads; ++head) {
      level.rotate(query + head * attention.key_dim, cosines, sines, attention.rotary_dim, is_interleaved);
    }
    for (int64_t head = 0; head < attention.kv_heads; ++head) {
      level.rotate(key + head * attention.key_dim, cosines, sines, attention.rotary_dim, is_interleaved);
    }
  }
  if (attention.norms_rotated) norm_both();
  if (attention.scales_queries) {
    const float factor = step.query_scales[position];
    for (int64_t i = 0; i < attention.heads * attention.key_dim; ++i) query[i] *= factor;
    const int64_t weights = attention.relative ? attention.heads * attention.relative->num_profiles : 0;
    for (int64_t i = 0; i < weights; ++i) profile_weights[i] *= factor;
  }
  const int32_t* blocks = step.block_tables[attention.group] + sequence.first_block;
  const int64_t block = blocks[position / kCacheBlock], place = position % kCacheBlock;
  const int64_t bytes = bytes_of(attention.cache_format), head_numbers = attention.cache_slots * attention.cache_dim;
  for (int64_t head = 0; head < attention.kv_heads; ++head) {
    char* keys = static_cast<char*>(attention.key_cache) + (head * head_numbers + block * kCacheBlock * attention.cache_dim) * bytes;
    char* values = static_cast<char*>(attention.value_cache) +
                   (head * head_numbers + (block * kCacheBlock + place) * attention.cache_dim) * bytes;
    level.narrow(value + head * attention.value_dim, attention.cache_format, values, attention.value_dim);
    constexpr int64_t kPiece = 64;
    alignas(64) char numbers[kPiece * 4];
    for (int64_t d = 0; d < attention.key_dim; d += kPiece) {
      const int64_t count = std::min(kPiece, attention.key_dim - d);
      level.narrow(key + head * attention.key_dim + d, attention.cache_format, numbers, count);
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(keys + ((d + i) * kCacheBlock + place) * bytes, numbers + i * bytes, static_cast<size_t>(bytes));
      }
    }
  }
}

// The attention of a layer: functions of the tiles of its phases, and their memory.
class LayerAttention {
 public:
  LayerAttention(Context& context, const LayerSpec& layer, const GroupedAttention& spec, const StepCall& step)
      : level_(context.level),
        layer_(layer),
        spec_(spec),
        step_(step),
        queries_(spec.heads * spec.key_dim),
        gates_(spec.has_gates_in_query ? queries_ : spec.gate.outputs),
        keys_(spec.kv_heads * spec.key_dim),
        values_(spec.kv_heads * spec.value_dim),
        profiles_(spec.relative ? spec.heads * spec.relative->num_profiles : 0),
        width_(queries_ + gates_ + keys_ + values_ + profiles_ + spec.key_taps.outputs + spec.value_taps.outputs + spec.sink.outputs),
        attended_size_(spec.heads * spec.value_dim),
        token_tile_(is_sparse(spec, step) ? 1 : kTokenTile),
        scratch_size_(attention_scratch(spec.key_dim)),
        results_(context, layer, step) {
    PanelKind kind = level_.panel_kind(spec.query, step.is_exact);
    const Matrix* const weights = spec.relative ? &spec.relative->weights : nullptr;
    for (const Matrix* matrix : {&spec.key, &spec.value, &spec.gate, weights, &spec.key_taps, &spec.value_taps, &spec.sink, &spec.delayed}) {  // they share the panel: all take float32 rows
      if (matrix && matrix->outputs && level_.panel_kind(*matrix, step.is_exact) != kind) kind = PanelKind::kFloat32;
    }
    const PanelKind output_kind = level_.panel_kind(spec.output, step.is_exact);
    const int64_t size = round_up(panel_bytes(kind, step.tokens, step.hidden_size), 64);
    const int64_t output_size = panel_bytes(output_kind, step.tokens, attended_size_);
    const int64_t num_panels = spec.has_own_inputs ? kMostQueries : 1;
    char* panels = context.rows.reserve(num_panels * size + output_size);
    panel = place_panel(kind, step.tokens, step.hidden_size, panels);
    key_panel = spec.has_own_inputs ? place_panel(kind, step.tokens, step.hidden_size, panels + size) : panel;
    value_panel = spec.has_own_inputs ? place_panel(kind, step.tokens, step.hidden_size, panels + 2 * size) : panel;
    key_rows = value_rows = step.normed;
    if (spec.has_own_inputs) {
      key_rows = more_rows_of(context, step, kMostQueries);
      value_rows = key_rows + step.tokens * step.hidden_size;
    }
    output_panel = place_panel(output_kind, step.tokens, attended_size_, panels + num_panels * size);
    auto& own = context.mixers.of<AttentionScratch>();
    heads_ = own.heads.reserve<float>(step.tokens * width_ * 4);
    if (spec.key_convolution || spec.value_convolution) convolved_ = own.convolved.reserve<float>(step.tokens * (keys_ + values_) * 4);
    if (spec.key_taps.outputs) {
      tap_numbers_ = std::max(spec.key_convolution->width * keys_, spec.value_convolution->width * values_);
      taps_ = own.taps.reserve<float>(context.pool.num_threads() * tap_numbers_ * 4);
    }
    attended = own.attended.reserve<float>(
        (round_up(step.tokens * attended_size_, 16) + context.pool.num_threads() * scratch_size_) * 4);
    scratch_ = attended + round_up(step.tokens * attended_size_, 16);
    int64_t most_parts = 1, most_tokens = 1;
    for (const StepSequence* sequence = step.sequences; sequence < step.sequences + step.num_sequences; ++sequence) {
      const int64_t tiles = divide_up(sequence->num_tokens, token_tile_);
      token_tiles_ += tiles;
      most_tokens = std::max(most_tokens, std::min<int64_t>(sequence->num_tokens, token_tile_));
      for (int64_t place = 0; place < tiles; ++place) {
        const PartRange range = parts_of(attention_of(tile_of(*sequence, place, 0)));
        most_parts = std::max(most_parts, range.last - range.first + 1);
      }
    }
    if (token_tile_ == 1) most_parts = std::min(most_parts, divide_up(most_sparse(spec), kPartKeys));
    parts_.plan(own.parts, context.pool.num_threads(), token_tiles_ * spec.kv_heads, most_parts,
                most_tokens * spec.heads / spec.kv_heads, spec.value_dim);
  }

  int64_t num_tiles() const { return parts_.num_tiles(); }
  int64_t num_joins() const { return parts_.num_joins(); }
  int64_t first_gate() const { return queries_; }
  int64_t first_key() const { return queries_ + gates_; }
  int64_t first_value() const { return first_key() + keys_; }
  int64_t first_profile_weight() const { return first_value() + values_; }
  int64_t first_key_taps() const { return first_profile_weight() + profiles_; }
  int64_t first_value_taps() const { return first_key_taps() + spec_.key_taps.outputs; }
  int64_t first_sink() const { return first_value_taps() + spec_.value_taps.outputs; }
  int64_t width() const { return width_; }
  int64_t attended_size() const { return attended_size_; }

  void norm(int64_t token) {
    const int64_t hidden_size = step_.hidden_size;
    float* normed = step_.normed + token * hidden_size;
    norm_hidden(level_, layer_.input_norm, layer_.mixer_residual, step_.hidden + token * hidden_size, hidden_size, normed);
    level_.prepare(panel, step_.normed, Format::kFloat32, hidden_size, nullptr, token, token + 1);
    if (!spec_.has_own_inputs) return;
    level_.prepare(key_panel, key_rows, Format::kFloat32, hidden_size, nullptr, token, token + 1);
    level_.prepare(value_panel, value_rows, Format::kFloat32, hidden_size, nullptr, token, token + 1);
  }

  void take_heads(int64_t row, int64_t output, const float* sums, int64_t count) const {
    float* heads = heads_ + row * width_;
    if (!spec_.has_gates_in_query || output >= first_key()) {
      std::memcpy(heads + output, sums, static_cast<size_t>(count) * 4);
      return;
    }
    // The queries and the gates of each head alternate; gates are kept after all queries.
    const int64_t key_dim = spec_.key_dim;
    for (int64_t i = 0, size; i < count; i += size) {
      const int64_t run = (output + i) / key_dim, place = (output + i) % key_dim;
      size = std::min(count - i, key_dim - place);
      float* to = heads + (run % 2) * queries_ + run / 2 * key_dim + place;
      std::memcpy(to, sums + i, static_cast<size_t>(size) * 4);
    }
  }

  // The convolutions of keys and of values, if there are such.
  ConvolutionStep convolution_of_keys() const {
    return convolution(*spec_.key_convolution, first_key(), 0, spec_.key_taps.outputs ? first_key_taps() : 0);
  }
  ConvolutionStep convolution_of_values() const {
    return convolution(*spec_.value_convolution, first_value(), keys_, spec_.value_taps.outputs ? first_value_taps() : 0);
  }

  // The mixing of heads; their queries and keys end with the last keys.
  HeadMixingStep mixing(Context& context) const {
    float* rows = heads_ + first_value() - spec_.mixing->channels.channels;
    return {context, *spec_.mixing, step_, rows, width_};
  }

  void place(int64_t token) const {
    const StepSequence* sequence = step_.sequences;
    while (token >= sequence->first_row + sequence->num_tokens) ++sequence;
    float* row = heads_ + token * width_;
    float *key = row + first_key(), *value = row + first_value();
    const float* convolved = convolved_ + token * (keys_ + values_);
    if (spec_.key_convolution) std::copy_n(convolved, keys_, key);
    if (spec_.value_convolution) std::copy_n(convolved + keys_, values_, value);
    place_token(level_, spec_, step_, *sequence, token, row, key, value, row + first_profile_weight());
  }

  void attend(const KeyChoice& choice, int64_t number, int thread) const {
    const Tile tile = tile_of(parts_.tile_of(number));
    Attention attention = attention_of(choice, tile);
    attention.scratch = scratch_ + thread * scratch_size_;
    parts_.run(level_, number, thread, parts_of(attention), target_of(tile),
               [&](int64_t part, const PartSums& sums) {
                 choice.attend(level_, attention, tile.row, thread, part, sums);
               });
    if (!num_joins()) finish(tile);
  }

  void join(const KeyChoice& choice, int64_t number) const {
    const Tile tile = tile_of(number);
    parts_.join(level_, number, parts_of(attention_of(choice, tile)), target_of(tile));
    finish(tile);
  }

  void prepare_output(int64_t token) {
    level_.prepare(output_panel, attended, Format::kFloat32, attended_size_, nullptr, token, token + 1);
  }

  void take_output(int64_t row, int64_t output, const float* sums, int64_t count) const {
    results_.take(row, output, sums, count);
  }

  Panel panel{};         // (tokens, hidden)
  Panel key_panel{}, value_panel{};  // the same of other rows, if keys and values take such
  float *key_rows, *value_rows;      // (tokens, hidden)
  Panel output_panel{};  // (tokens, heads * value_dim)
  float* attended;       // the same rows in float32

 private:
  // Some tokens of a sequence, and the heads that share a head of keys.
  struct Tile {
    const StepSequence* sequence;
    int64_t row;     // of the first token in the step
    int64_t tokens;
    int64_t kv_head;
  };

  // Returns true if some token of a step attends to chosen keys.
  static bool is_sparse(const GroupedAttention& spec, const StepCall& step) {
    if (spec.pools) return most_keys(step) > first_sparse(*spec.pools);
    return spec.indexer && !spec.indexer->chosen && most_keys(step) > first_sparse(*spec.indexer);
  }

  // Keys that a token of a sparse step attends to, at most.
  static int64_t most_sparse(const GroupedAttention& spec) {
    return spec.pools ? most_chosen(*spec.pools) : first_sparse(*spec.indexer);
  }

  static PartRange parts_of(const Attention& a) { return {oldest_seen(a, 0) / kPartKeys, last_seen(a) / kPartKeys}; }

  // Args: the offset in `heads_` of what it convolves, that of the results in `convolved_`, and that of what tokens add to
  // taps, or 0.
  ConvolutionStep convolution(const Convolution& spec, int64_t first, int64_t target, int64_t first_tap) const {
    TokenTaps taps{};
    if (first_tap) taps = {heads_ + first_tap, width_, spec_.kv_heads, spec_.taps_scale, taps_, tap_numbers_};
    return {level_, spec, step_, heads_ + first, width_, convolved_ + target, keys_ + values_, taps};
  }

  // The tiles of all sequences. The last tokens of a sequence attend to the most keys, so they are taken first.
  Tile tile_of(int64_t number) const {
    int64_t place = token_tiles_ - 1 - number / spec_.kv_heads;
    const StepSequence* sequence = step_.sequences;
    for (int64_t count; place >= (count = divide_up(sequence->num_tokens, token_tile_)); ++sequence) place -= count;
    return tile_of(*sequence, place, number % spec_.kv_heads);
  }

  Tile tile_of(const StepSequence& sequence, int64_t place, int64_t kv_head) const {
    const int64_t first = place * token_tile_;
    return {&sequence, sequence.first_row + first, std::min<int64_t>(token_tile_, sequence.num_tokens - first), kv_head};
  }

  // The attention of a tile to all keys that its tokens see, or of one token to chosen ones.
  Attention attention_of(const KeyChoice& choice, const Tile& tile) const {
    Attention attention = attention_of(tile);
    choice.point(attention, tile.row, tile.kv_head);
    return attention;
  }

  Attention attention_of(const Tile& tile) const {
    const int64_t group = spec_.heads / spec_.kv_heads;
    const int64_t begin = tile.kv_head * spec_.cache_slots * spec_.cache_dim * bytes_of(spec_.cache_format);
    Attention attention{};
    attention.query = heads_ + tile.row * width_ + tile.kv_head * group * spec_.key_dim;
    attention.query_stride = width_;
    attention.keys = static_cast<const char*>(spec_.key_cache) + begin;
    attention.values = static_cast<const char*>(spec_.value_cache) + begin;
    attention.blocks = step_.block_tables[spec_.group] + tile.sequence->first_block;
    attention.newest = spec_.looks_ahead && step_.newest ? step_.newest + tile.row : nullptr;
    attention.first_position = tile.sequence->first_position + tile.row - tile.sequence->first_row;
    attention.tokens = tile.tokens;
    attention.heads = group;
    attention.dim = spec_.cache_dim;
    attention.key_dim = spec_.key_dim;
    attention.value_dim = spec_.value_dim;
    attention.window = spec_.window;
    attention.is_chunked = spec_.is_chunked;
    attention.format = spec_.cache_format;
    attention.is_exact = step_.is_exact;
    attention.scaling = spec_.scaling;
    attention.softcap = spec_.softcap;
    if (spec_.relative) {
      const int64_t num_profiles = spec_.relative->num_profiles;
      attention.profile_weights =
          heads_ + tile.row * width_ + first_profile_weight() + tile.kv_head * group * num_profiles;
      attention.profiles = spec_.relative->profiles;
      attention.num_profiles = num_profiles;
      attention.extent = spec_.relative->extent;
    }
    return attention;
  }

  Attended target_of(const Tile& tile) const {
    const int64_t group = spec_.heads / spec_.kv_heads, head = tile.kv_head * group;
    Attended target{attended + tile.row * attended_size_ + head * spec_.value_dim, attended_size_, tile.tokens, group,
                    spec_.value_dim, spec_.sinks ? spec_.sinks + head : nullptr};
    if (spec_.sink.outputs) {
      target.sinks = heads_ + tile.row * width_ + first_sink() + head;
      target.sinks_stride = width_;
    }
    return target;
  }

  void finish(const Tile& tile) const {
    if (spec_.result_norm) norm_results(tile);
    if (gates_) apply_gates(tile);
  }

  void norm_results(const Tile& tile) const {
    const Attended target = target_of(tile);
    for (int64_t token = 0; token < target.tokens; ++token) {
      for (int64_t head = 0; head < target.heads; ++head) {
        float* x = target.output + token * target.stride + head * spec_.value_dim;
        level_.normalise(x, spec_.result_norm, spec_.head_norm_epsilon, spec_.value_dim, x);
      }
    }
  }

  // Multiplies results by gates, whose tokens are `width_` apart.
  void apply_gates(const Tile& tile) const {
    const Attended target = target_of(tile);
    const int64_t count = gates_ / spec_.kv_heads, size = target.heads * target.value_dim / count;
    float* gates = heads_ + tile.row * width_ + queries_ + tile.kv_head * count;
    for (int64_t token = 0; token < target.tokens; ++token, gates += width_) {
      if (spec_.gate_kind == GateKind::kSigmoid) {
        level_.sigmoid(gates, count);
      } else {
        for (int64_t i = 0; i < count; ++i) gates[i] = gates[i] > 20.0f ? gates[i] : std::log1p(std::exp(gates[i]));
      }
      float* output = target.output + token * target.stride;
      for (int64_t i = 0; i < count * size; ++i) output[i] *= gates[i / size];
    }
  }

  const Level& level_;
  const LayerSpec& layer_;
  const GroupedAttention& spec_;
  const StepCall& step_;
  const int64_t queries_, gates_, keys_, values_;  // numbers of a token's queries, gates, keys and values
  const int64_t profiles_;                // weights of profiles
  const int64_t width_;                   // of all of these, of taps and of sinks
  const int64_t attended_size_;
  const int64_t token_tile_;              // tokens of one sequence per tile
  const int64_t scratch_size_;            // floats of a thread
  const MixerResults results_;
  int64_t token_tiles_ = 0;
  float* heads_;    // (tokens, width)
  float* convolved_ = nullptr;  // (tokens, keys + values), if there are convolutions
  float* taps_ = nullptr;       // (threads, tap_numbers_), if tokens add to taps
  int64_t tap_numbers_ = 0;
  float* scratch_;  // (threads, scratch_size_)
  AttentionParts parts_;
};

void run(Context& context, const LayerSpec& layer, const StepCall& step) {
  const auto& spec = *static_cast<const GroupedAttention*>(layer.mixer);
  const Level& level = context.level;
  LayerAttention attention(context, layer, spec, step);
  KeyChoice all;
  std::optional<KeyBlockIndexerStep> blocks;
  std::optional<PoolIndexerStep> pools;
  KeyChoice& choice = spec.pools     ? pools.emplace(context, spec, step, attention.panel)
                      : spec.indexer ? blocks.emplace(context, spec, step, attention.panel)
                                     : all;
  auto& own = context.mixers.of<AttentionScratch>();
  LoraSums* const lora[kMostSides] = {&own.query_lora,    &own.key_lora,        &own.value_lora,
                                      &own.gate_lora,     &own.relative_lora,   &own.key_taps_lora,
                                      &own.value_taps_lora, &own.sink_lora,     &own.delayed_lora,
                                      &own.index_lora[0],   &own.index_lora[1]};
  LoraSums& output_lora = own.output_lora;
  for (LoraSums* sums : lora) sums->clear();
  output_lora.clear();
  constexpr Matrix kNoMatrix{};
  // Adapters know one matrix of queries and keys of an indexer of pools.
  const int num_sides = kOwnSides + choice.num_sides(), num_sites = spec.pools ? kOwnSides + 1 : num_sides;
  const Place places[kMostSides] = {kQuery, kKey, kValue, kGate, kRelative, kKeyTaps, kValueTaps, kSink, kDelayed,
                                    spec.pools ? kIndexQuery : kIndexKey, kIndexQuery};
  const auto site = [&](int i) {
    const bool is_of_keys = places[i] == kKey || places[i] == kKeyTaps;
    const bool is_of_values = places[i] == kValue || places[i] == kValueTaps;
    const float* x = is_of_keys ? attention.key_rows : is_of_values ? attention.value_rows : step.normed;
    return LoraSite{*lora[i], mixer_place(places[i]), x, step.hidden_size};
  };
  const LoraSite sites[kMostSides] = {site(0), site(1), site(2), site(3), site(4),
                                      site(5), site(6), site(7), site(8), site(9), site(10)};
  const LoraSite output_site{output_lora, mixer_place(kOutput), attention.attended, attention.attended_size()};
  std::optional<HeadExpertsStep> experts;
  if (spec.experts) experts.emplace(context, *spec.experts, step, spec.key_dim, spec.value_dim);
  Side sides[kMostSides] = {{&spec.query, spec.query_bias, experts ? attention.first_key() : 0, lora[0]},
                            {&spec.key, spec.key_bias, attention.first_key(), lora[1]},
                            {&spec.value, spec.value_bias, attention.first_value(), lora[2]},
                            {&spec.gate, spec.gate_bias, attention.first_gate(), lora[3]},
                            {spec.relative ? &spec.relative->weights : &kNoMatrix, nullptr,
                             attention.first_profile_weight(), lora[4]},
                            {&spec.key_taps, nullptr, attention.first_key_taps(), lora[5]},
                            {&spec.value_taps, nullptr, attention.first_value_taps(), lora[6]},
                            {&spec.sink, nullptr, attention.first_sink(), lora[7]},
                            {&spec.delayed, nullptr, attention.first_value() + spec.value.outputs, lora[8]}};
  if (experts) sides[3] = experts->router(attention.width(), lora[3]);  // in the place of gates
  for (int i = 0; spec.has_own_inputs && i < kOwnSides; ++i) {
    if (places[i] == kKey || places[i] == kKeyTaps) sides[i].panel = &attention.key_panel;
    if (places[i] == kValue || places[i] == kValueTaps) sides[i].panel = &attention.value_panel;
  }
  for (int i = kOwnSides; i < num_sides; ++i) {
    sides[i] = choice.side(i - kOwnSides, attention.width());
    sides[i].lora = lora[spec.pools ? kOwnSides : i];
  }
  const Side output_side{&spec.output, spec.output_bias, 0, &output_lora};

  auto norm = [&](int64_t token, int) {
    attention.norm(token);
    choice.prepare(token);
    if (experts) experts->prepare(token);
  };
  auto multiply_down = [&](int64_t tile, int thread) {
    multiply_sites_down(level, sites, num_sites, tile, thread);
  };
  const auto take_heads = [&](int64_t row, int64_t output, const float* sums, int64_t count) {
    if (experts && output >= attention.width()) return experts->take_logits(row, output - attention.width(), sums, count);
    if (output >= attention.width()) return choice.take(row, output - attention.width(), sums, count);
    attention.take_heads(row, output, sums, count);
  };
  auto project = multiply_sides(context, attention.panel, sides, num_sides, kOutputTile, take_heads);
  auto choose_experts = [&](int64_t token, int) { experts->choose(token); };
  auto prepare_query = [&](int64_t row, int) { experts->prepare_query(row); };
  auto project_queries = [&](int64_t tile, int) { experts->project(tile, take_heads); };
  std::optional<ConvolutionStep> of_keys, of_values;
  if (spec.key_convolution) of_keys.emplace(attention.convolution_of_keys());
  if (spec.value_convolution) of_values.emplace(attention.convolution_of_values());
  auto convolve = [&](int64_t tile, int thread) {
    const int64_t tiles = of_keys ? of_keys->num_tiles() : 0;
    tile < tiles ? (*of_keys)(tile, thread) : (*of_values)(tile - tiles, thread);
  };
  std::optional<HeadMixingStep> mixing;
  if (spec.mixing) mixing.emplace(attention.mixing(context));
  auto convolve_channels = [&](int64_t tile, int thread) { mixing->convolve(tile, thread); };
  auto convolve_heads = [&](int64_t tile, int) { mixing->multiply(tile); };
  auto place = [&](int64_t token, int) {
    if (mixing) mixing->add(token);
    attention.place(token);
    choice.place(token);
  };
  auto place_pool = [&](int64_t token, int thread) { choice.place_pool(token, thread); };
  auto score = [&](int64_t tile, int thread) { choice.score(tile, thread); };
  auto choose = [&](int64_t number, int thread) { choice.choose(number, thread); };
  auto attend = [&](int64_t tile, int thread) { attention.attend(choice, tile, thread); };
  auto join = [&](int64_t tile, int) { attention.join(choice, tile); };
  auto prepare_output = [&](int64_t token, int thread) {
    if (token >= step.tokens) return output_lora.multiply_down(level, token - step.tokens, thread);
    attention.prepare_output(token);
  };
  const auto take_output = [&](auto... results) { attention.take_output(results...); };
  auto project_back = multiply_sides(context, attention.output_panel, &output_side, 1, kOutputTile, take_output);
  auto prepare_results = [&](int64_t row, int) { experts->prepare_output(row, attention.attended); };
  auto project_results = [&](int64_t tile, int) { experts->project_back(tile); };
  auto add_results = [&](int64_t token, int thread) { take_output(token, 0, experts->sum(token, thread), step.hidden_size); };

  PhaseList phases(context.pool);
  phases.add(step.tokens, norm);
  plan_sites(phases, sites, num_sites, context, layer, step);
  phases.add(num_down_tiles(sites, num_sites), multiply_down);
  phases.add(num_tiles(sides, num_sides, step.tokens, kOutputTile), project);
  if (experts) {
    phases.add(step.tokens, choose_experts);
    phases.run();
    experts->sort();
    phases.add(experts->num_rows(), prepare_query);
    phases.add(experts->num_query_tiles(), project_queries);
  }
  phases.add((of_keys ? of_keys->num_tiles() : 0) + (of_values ? of_values->num_tiles() : 0), convolve);
  phases.add(mixing ? mixing->num_convolve_tiles() : 0, convolve_channels);
  phases.add(mixing ? mixing->num_multiply_tiles() : 0, convolve_heads);
  phases.add(step.tokens, place);
  if (choice.has_pools()) phases.add(step.tokens, place_pool);
  while (choice.begin_pass()) {
    phases.add(choice.num_score_tiles(), score);
    phases.add(choice.num_choices(), choose);
    phases.run();  // since the next pass changes what these refer to
  }
  phases.add(attention.num_tiles(), attend);
  phases.add(attention.num_joins(), join);
  if (experts) {
    phases.add(experts->num_rows(), prepare_results);
    phases.add(experts->num_output_tiles(), project_results);
    phases.add(step.tokens, add_results);
    return phases.run();
  }
  plan_sites(phases, &output_site, 1, context, layer, step);
  phases.add(step.tokens + output_lora.num_tiles(), prepare_output);
  phases.add(num_tiles(&output_side, 1, step.tokens, kOutputTile), project_back);
  phases.run();
}

const char* check(const void* mixer, int64_t hidden_size) {
  const auto& spec = *static_cast<const GroupedAttention*>(mixer);
  if (!is_count(spec.heads) || !is_count(spec.kv_heads) || spec.heads % spec.kv_heads) {
    return "a number of heads that its keys and values can't be shared by";
  }
  if (!is_count(spec.key_dim) || !is_count(spec.value_dim)) return "heads without a size";
  const bool has_gates = spec.gate.outputs, has_keys = spec.has_keys_in_query;
  const bool shares_keys = !spec.value.outputs && !has_keys;
  if (spec.gate_kind < GateKind::kNone || spec.gate_kind > GateKind::kSoftplus) return "gates of no known kind";
  if ((has_gates || spec.has_gates_in_query) != (spec.gate_kind != GateKind::kNone) ||
      (has_gates && (spec.has_gates_in_query || (!is_shaped(spec.gate, spec.heads, hidden_size) &&
                                                 !is_shaped(spec.gate, spec.heads * spec.value_dim, hidden_size)))) ||
      (spec.has_gates_in_query && spec.key_dim != spec.value_dim)) {
    return "gates that don't fit its heads";
  }
  if (shares_keys && spec.key_dim != spec.value_dim) return "keys that don't fit its values";
  if (has_keys && (has_gates || spec.has_gates_in_query || spec.key.outputs || spec.value.outputs)) {
    return "keys and values in two places";
  }
  const int64_t keys = spec.kv_heads * spec.key_dim, values = spec.kv_heads * spec.value_dim;
  if (spec.experts) {
    if (!has_keys || spec.output.outputs || spec.indexer || spec.pools) return "projections beside experts that make them";
    const auto& experts = *spec.experts;
    if (const char* reason = check_head_experts(experts, spec.heads, spec.kv_heads, keys, values, hidden_size)) return reason;
  }
  const int64_t own_queries = spec.experts ? 0 : spec.heads * spec.key_dim * (spec.has_gates_in_query ? 2 : 1);
  const int64_t queries = own_queries + (has_keys ? keys + values : 0);
  if (!is_shaped(spec.query, queries, hidden_size) || (!has_keys && !is_shaped(spec.key, keys, hidden_size)) ||
      (!has_keys && !shares_keys && !is_shaped(spec.value, values - spec.delayed.outputs, hidden_size)) ||
      (!spec.experts && !is_shaped(spec.output, hidden_size, spec.heads * spec.value_dim))) {
    return "projections that don't fit its heads";
  }
  if (spec.rope_kind < RopeKind::kNone || spec.rope_kind > RopeKind::kInterleaved) return "an unknown kind of positions";
  if (spec.rope_kind != RopeKind::kNone && (spec.rotary_dim < 0 || spec.rotary_dim > spec.key_dim)) {
    return "rotary positions that are larger than a head";
  }
  if (spec.window < 0) return "a negative window";
  if (spec.clip != 0.0f && spec.norms_rotated) return "clipped heads whose norms follow their rotation";
  if (!(spec.clip >= 0.0f)) return "a negative limit of its queries, keys and values";
  if (spec.indexer) {
    if (spec.window) return "an indexer with a window";
    const int64_t rotary_dim = spec.rope_kind == RopeKind::kNone ? 0 : spec.rotary_dim;
    if (const char* reason = check_key_block_indexer(*spec.indexer, hidden_size, spec.kv_heads, rotary_dim)) return reason;
    if (spec.key_cache && !spec.indexer->cache) return "an indexer without a cache";
  }
  if (spec.pools) {
    if (spec.window || spec.indexer) return "an indexer with a window or another one";
    const int64_t rotary_dim = spec.rope_kind == RopeKind::kNone ? 0 : spec.rotary_dim;
    if (const char* reason = check_pool_indexer(*spec.pools, hidden_size, rotary_dim)) return reason;
    if (spec.key_cache && !spec.pools->cache) return "an indexer without a cache";
  }
  if (spec.relative) {
    if (const char* reason = check_relative_biases(*spec.relative, spec.heads, hidden_size)) return reason;
    if (spec.indexer || spec.pools || spec.looks_ahead) return "relative biases of other keys than those before a token";
  }
  const bool has_delay = spec.delayed.outputs && spec.value_convolution;
  if (!spec.key_convolution != !spec.value_convolution && !has_delay) return "a convolution of its keys or its values alone";
  for (const Convolution* each : {spec.key_convolution, spec.value_convolution}) {
    if (!each) continue;
    if (const char* reason = check_convolution(*each)) return reason;
    const bool has_size = each->channels == (each == spec.key_convolution ? keys : values);
    if (!has_size || shares_keys || has_keys) return "convolutions that don't fit its keys and values";
  }
  if (spec.delayed.outputs) {
    if (!has_delay || !is_shaped(spec.delayed, spec.delayed.outputs, hidden_size)) return "values of the token before without a convolution that takes them";
  }
  if (spec.mixing) {
    if (has_gates || spec.has_gates_in_query || has_keys || spec.relative || spec.indexer || spec.pools) return "mixed heads beside other parts";
    const int64_t numbers = spec.heads * spec.key_dim + keys;
    if (const char* reason = check_head_mixing(*spec.mixing, numbers, spec.key_dim)) return reason;
  }
  const auto is_of_taps = [&](const Matrix& taps, const Convolution* convolution) {
    return convolution && spec.kv_heads * convolution->width == taps.outputs && is_shaped(taps, taps.outputs, hidden_size);
  };
  if (spec.key_taps.outputs || spec.value_taps.outputs) {
    const bool fits = is_of_taps(spec.key_taps, spec.key_convolution) && is_of_taps(spec.value_taps, spec.value_convolution);
    if (!fits) return "taps that don't fit its convolutions";
  }
  if (spec.sink.outputs && (spec.sinks || !is_shaped(spec.sink, spec.heads, hidden_size))) return "sinks that don't fit its heads";
  if (spec.has_own_inputs && (shares_keys || has_keys || spec.indexer || spec.pools || spec.delayed.outputs)) return "keys and values of other rows";
  if (!(spec.norm_limit >= 0.0f)) return "a negative limit of its queries and keys";
  if (!is_plain(spec.cache_format)) return "a cache of no known format";
  if (!spec.key_cache) return nullptr;
  const bool has_room = spec.cache_dim >= spec.key_dim && spec.cache_dim >= spec.value_dim && spec.cache_slots >= 0;
  return has_room && spec.value_cache ? nullptr : "a cache that its heads don't fit";
}

}  // namespace

const MixerOperations kGroupedAttention = {check, run};

}  // namespace greenroom
