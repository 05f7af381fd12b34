#include "layers/latent_attention.h"

#include <algorithm>
#include <cstring>

#include "formats/checks.h"
#include "layers/indexer_step.h"
#include "layers/layer_adapters.h"
#include "layers/sides.h"

namespace greenroom {
namespace {

// The working memory of this kind.
struct Memory {
  Buffer heads;  // projections of a step
  Buffer work;   // results of attention, a pass, and scratch memory of threads
  LoraSums down_lora, query_lora, latent_lora, gate_lora, output_lora, index_query_lora, index_key_lora, index_weights_lora;
};

// The matrices that adapters may add to, in the order of their places.
enum Place { kQuery, kQueryDown, kLatent, kExpansion, kOutput, kGate, kIndexQuery, kIndexKey, kIndexWeights };

constexpr int64_t kTokenTile = 8;     // tokens of one sequence per tile of attention
constexpr int64_t kHeadTile = 16;     // heads of such a tile, at most
constexpr int64_t kLeastHeads = 8;    // and at least, if there are as many
constexpr int64_t kPassNumbers = 4 << 20;  // of absorbed queries and weighted latents at a time
constexpr int64_t kMostPassRows = kIsTight ? kTokenTile : 256;
static_assert(kTokenTile * kHeadTile <= kMostLatentRows);

// Some rows of a panel that alternate with those of other heads.
Panel panel_of_head(const Panel& panel, int64_t head, int64_t heads) {
  Panel rows = panel;
  const int64_t bytes = panel.kind == PanelKind::kFloat32 ? 4 : 2;
  rows.data = static_cast<char*>(panel.data) + head * panel.stride * bytes;
  rows.stride = panel.stride * heads;
  rows.rows = panel.rows / heads;
  return rows;
}

// What adapters add to the expansion of latents. A token that asks expands all keys by its own factors.
class Expansion {
 public:
  Expansion(const Level& level, const LatentAttention& spec, const LayerSpec& layer, const StepCall& step)
      : level_(level), spec_(spec), layer_(layer), lora_(step.lora) {
    for (int64_t adapter = 0; lora_ && adapter < lora_->num_adapters; ++adapter) {
      const LoraParts& parts = parts_of(adapter);
      for (int64_t i = 0; i < parts.count; ++i) most_rank_ = std::max(most_rank_, parts.parts[i].rank);
    }
  }

  bool is_empty() const { return most_rank_ == 0; }

  // Floats for one thread.
  int64_t scratch() const {
    return is_empty() ? 0 : most_rank_ + std::max({spec_.rank, spec_.nope_dim, spec_.value_dim, most_rank_});
  }

  // Adds to the absorbed query of a token's head.
  void add_to_query(int64_t token, int64_t head, const float* query, float* absorbed, float* scratch) const {
    const int64_t first = head * (spec_.nope_dim + spec_.value_dim);
    each_part(token, [&](const LoraPart& part, float factor) {
      const Range of = range(part, first, spec_.nope_dim);
      float *low = scratch, *numbers = scratch + most_rank_;
      std::fill(low, low + part.rank, 0.0f);
      for (int64_t r = 0; part.is_transposed && r < part.rank; ++r) {
        read(part, part.up, r * part.outputs + of.place, numbers, of.count);
        low[r] = level_.dot(query + of.offset, numbers, of.count);
      }
      for (int64_t i = 0; !part.is_transposed && i < of.count; ++i) {
        read(part, part.up, (of.place + i) * part.rank, numbers, part.rank);
        level_.add_scaled(low, numbers, query[of.offset + i], part.rank);
      }
      for (int64_t r = 0; r < part.rank; ++r) {
        read(part, part.down, r * part.inputs, numbers, spec_.rank);
        level_.add_scaled(absorbed, numbers, factor * low[r], spec_.rank);
      }
    });
  }

  // Adds to the values of a token's head.
  void add_to_values(int64_t token, int64_t head, const float* latent, float* values, float* scratch) const {
    const int64_t first = head * (spec_.nope_dim + spec_.value_dim) + spec_.nope_dim;
    each_part(token, [&](const LoraPart& part, float factor) {
      const Range of = range(part, first, spec_.value_dim);
      float *low = scratch, *numbers = scratch + most_rank_;
      for (int64_t r = 0; r < part.rank; ++r) {
        read(part, part.down, r * part.inputs, numbers, spec_.rank);
        low[r] = factor * level_.dot(latent, numbers, spec_.rank);
      }
      for (int64_t r = 0; part.is_transposed && r < part.rank; ++r) {
        read(part, part.up, r * part.outputs + of.place, numbers, of.count);
        level_.add_scaled(values + of.offset, numbers, low[r], of.count);
      }
      for (int64_t i = 0; !part.is_transposed && i < of.count; ++i) {
        read(part, part.up, (of.place + i) * part.rank, numbers, part.rank);
        values[of.offset + i] += level_.dot(low, numbers, part.rank);
      }
    });
  }

 private:
  // Some of a head's outputs that a part adds to.
  struct Range {
    int64_t offset;  // of the first among the head's
    int64_t place;   // of the first among the part's
    int64_t count;
  };

  static Range range(const LoraPart& part, int64_t first, int64_t count) {
    const int64_t begin = std::max(first, part.first_output);
    const int64_t end = std::min(first + count, part.first_output + part.outputs);
    return {begin - first, begin - part.first_output, std::max<int64_t>(0, end - begin)};
  }

  const LoraParts& parts_of(int64_t adapter) const { return lora_->layers[adapter][layer_.index].at(mixer_place(kExpansion)); }

  template <typename Add>
  void each_part(int64_t token, Add add) const {
    for (int64_t adapter = 0; adapter < lora_->num_adapters; ++adapter) {
      const float factor = lora_->factors[token * lora_->num_adapters + adapter];
      const LoraParts& parts = parts_of(adapter);
      if (factor == 0.0f) continue;
      for (int64_t i = 0; i < parts.count; ++i) add(parts.parts[i], factor * parts.parts[i].scale);
    }
  }

  void read(const LoraPart& part, const void* source, int64_t index, float* numbers, int64_t count) const {
    level_.widen(static_cast<const char*>(source) + index * bytes_of(part.format), part.format, numbers, count);
  }

  const Level& level_;
  const LatentAttention& spec_;
  const LayerSpec& layer_;
  const LoraStep* lora_;
  int64_t most_rank_ = 0;
};

// The attention of a layer: functions of the tiles of its phases, and their memory. Queries are absorbed, attended and
// expanded in passes over some rows of the step, so that their memory does not grow with it.
class LayerLatents {
 public:
  LayerLatents(Context& context, const LayerSpec& layer, const LatentAttention& spec, const StepCall& step)
      : expansion(context.level, spec, layer, step),
        level_(context.level),
        layer_(layer),
        spec_(spec),
        step_(step),
        query_rank_(spec.query_down.outputs),
        queries_size_(spec.heads * (spec.nope_dim + spec.rope_dim)),
        latent_size_(spec.rank + spec.rope_dim),
        attended_size_(spec.heads * spec.value_dim),
        absorbed_size_(spec.heads * latent_size_),
        weighted_size_(spec.heads * spec.rank),
        pass_rows_(std::min(step.tokens, most_rows(spec))),
        places_(latent_size_, spec.rank),
        results_(context, layer, step) {
    const Matrix& first = query_rank_ ? spec.query_down : spec.query;
    PanelKind kind = level_.panel_kind(first, step.is_exact);
    for (const Matrix* matrix : {&spec.latent, &spec.gate}) {  // they share the panel: all take rows in float32
      if (matrix->outputs && level_.panel_kind(*matrix, step.is_exact) != kind) kind = PanelKind::kFloat32;
    }
    const PanelKind query_kind = level_.panel_kind(spec.query, step.is_exact);
    const PanelKind output_kind = level_.panel_kind(spec.output, step.is_exact);
    const PanelKind keys_kind = level_.panel_kind(spec.to_keys, step.is_exact);
    const PanelKind values_kind = level_.panel_kind(spec.to_values, step.is_exact);
    const int64_t rows = pass_rows_ * spec.heads;
    Pieces panels;
    const int64_t at[] = {panels.add(panel_bytes(kind, step.tokens, step.hidden_size)),
                          panels.add(query_rank_ ? panel_bytes(query_kind, step.tokens, query_rank_) : 0),
                          panels.add(panel_bytes(output_kind, step.tokens, attended_size_)),
                          panels.add(panel_bytes(keys_kind, rows, spec.nope_dim)),
                          panels.add(panel_bytes(values_kind, rows, spec.rank))};
    char* memory = context.rows.reserve(panels.bytes);
    panel = place_panel(kind, step.tokens, step.hidden_size, memory + at[0]);
    query_panel = place_panel(query_kind, step.tokens, query_rank_, memory + at[1]);
    output_panel = place_panel(output_kind, step.tokens, attended_size_, memory + at[2]);
    keys_panel_ = place_panel(keys_kind, rows, spec.nope_dim, memory + at[3]);
    values_panel_ = place_panel(values_kind, rows, spec.rank, memory + at[4]);

    const int64_t tokens = step.tokens;
    Pieces heads;
    const int64_t parts[] = {heads.add(tokens * query_rank_ * 4), heads.add(tokens * queries_size_ * 4),
                             heads.add(tokens * latent_size_ * 4), heads.add(tokens * spec.gate.outputs * 4)};
    auto& own = context.mixers.of<Memory>();
    memory = own.heads.reserve(heads.bytes);
    const auto floats = [&](int64_t offset) { return reinterpret_cast<float*>(memory + offset); };
    downs = floats(parts[0]);
    queries_ = floats(parts[1]);
    latents_ = floats(parts[2]);
    gates_ = floats(parts[3]);
    scratch_size_ = round_up(places_.size + expansion.scratch(), 16);
    Pieces work;
    const int64_t pieces[] = {work.add(tokens * attended_size_ * 4), work.add(pass_rows_ * absorbed_size_ * 4),
                              work.add(pass_rows_ * weighted_size_ * 4),
                              work.add(context.pool.num_threads() * scratch_size_ * 4)};
    memory = own.work.reserve(work.bytes);
    attended = floats(pieces[0]);
    absorbed_ = floats(pieces[1]);
    weighted_ = floats(pieces[2]);
    scratch_ = floats(pieces[3]);
    num_threads_ = context.pool.num_threads();
  }

  int64_t attended_size() const { return attended_size_; }
  int64_t query_rank() const { return query_rank_; }

  // Offsets of the outputs of the first matrices among those of all.
  int64_t first_latent() const { return query_rank_ ? query_rank_ : queries_size_; }
  int64_t first_gate() const { return first_latent() + latent_size_; }

  void norm(int64_t token) {
    const int64_t hidden_size = step_.hidden_size;
    float* normed = step_.normed + token * hidden_size;
    norm_hidden(level_, layer_.input_norm, layer_.mixer_residual, step_.hidden + token * hidden_size, hidden_size, normed);
    level_.prepare(panel, step_.normed, Format::kFloat32, hidden_size, nullptr, token, token + 1);
  }

  void take_first(int64_t row, int64_t output, const float* sums, int64_t count) const {
    float* to;
    if (output >= first_gate()) {
      to = gates_ + row * spec_.gate.outputs + output - first_gate();
    } else if (output >= first_latent()) {
      to = latents_ + row * latent_size_ + output - first_latent();
    } else {
      to = query_rank_ ? downs + row * query_rank_ + output : queries_ + row * queries_size_ + output;
    }
    std::memcpy(to, sums, static_cast<size_t>(count) * 4);
  }

  void take_query(int64_t row, int64_t output, const float* sums, int64_t count) const {
    std::memcpy(queries_ + row * queries_size_ + output, sums, static_cast<size_t>(count) * 4);
  }

  // Norms the parts of one token, and writes its latent to the cache.
  void place(int64_t token) {
    if (query_rank_) {
      float* down = downs + token * query_rank_;
      if (spec_.query_norm) level_.normalise(down, spec_.query_norm, spec_.query_norm_epsilon, query_rank_, down);
      level_.prepare(query_panel, downs, Format::kFloat32, query_rank_, nullptr, token, token + 1);
    }
    float* latent = latents_ + token * latent_size_;
    level_.normalise(latent, spec_.latent_norm, spec_.latent_norm_epsilon, spec_.rank, latent);
    rotate(latent + spec_.rank, token, position_of(sequence_of(step_, token), token));
    write_latent(level_, spec_, step_, token, 0, latent, latent_size_);
  }

  // Begins the next pass; returns false if there is none. Each token with chosen keys is attended on its own, so more heads
  // take turns with them.
  bool begin_pass(const IndexerStep& indexer) {
    first_ += rows_;
    rows_ = std::min(pass_rows_, step_.tokens - first_);
    token_tiles_ = 0;
    each_piece([&](const StepSequence&, int64_t, int64_t count) { token_tiles_ += divide_up(count, kTokenTile); });
    int64_t tile = indexer.is_sparse() ? kMostLatentRows : kHeadTile;
    while (tile > kLeastHeads && token_tiles_ * divide_up(spec_.heads, tile) < 2 * num_threads_) tile /= 2;
    head_tiles_ = divide_up(spec_.heads, tile);
    return rows_ > 0;
  }
  bool is_last_pass() const { return first_ + rows_ == step_.tokens; }

  int64_t pass_rows() const { return rows_; }
  int64_t num_absorb_tiles() const { return spec_.heads * row_tiles() * divide_up(spec_.rank, kOutputTile); }
  int64_t num_attend_tiles() const { return token_tiles_ * head_tiles_; }
  int64_t num_value_tiles() const { return spec_.heads * row_tiles() * divide_up(spec_.value_dim, kOutputTile); }

  // Rotates and scales the queries of a row of the pass.
  void turn(int64_t row) {
    const int64_t token = first_ + row, dim = spec_.nope_dim + spec_.rope_dim;
    const int64_t position = position_of(sequence_of(step_, token), token);
    float* queries = queries_ + token * queries_size_;
    const float scale = spec_.scales_queries ? step_.query_scales[position] : 1.0f;
    for (int64_t head = 0; head < spec_.heads; ++head) {
      float* query = queries + head * dim;
      rotate(query + spec_.nope_dim, token, position);
      for (int64_t d = 0; scale != 1.0f && d < dim; ++d) query[d] *= scale;
      float* absorbed = absorbed_ + (row * spec_.heads + head) * latent_size_;
      std::memcpy(absorbed + spec_.rank, query + spec_.nope_dim, static_cast<size_t>(spec_.rope_dim) * 4);
    }
    // The panel's rows are heads of rows, `dim` apart.
    const int64_t first = row * spec_.heads;
    Panel rows = keys_panel_;
    rows.data = static_cast<char*>(rows.data) + first * rows.stride * (rows.kind == PanelKind::kFloat32 ? 4 : 2);
    level_.prepare(rows, queries, Format::kFloat32, dim, nullptr, 0, spec_.heads);
  }

  void absorb(int64_t tile) const {
    multiply_heads(spec_.to_keys, keys_panel_, spec_.rank, tile, [&](int64_t row, int64_t head, int64_t first) {
      return absorbed_ + (row * spec_.heads + head) * latent_size_ + first;
    });
  }

  void attend(const IndexerStep& indexer, int64_t tile, int thread) {
    const int64_t group = divide_up(spec_.heads, head_tiles_), head = tile % head_tiles_ * group;
    const int64_t heads = std::min(group, spec_.heads - head);
    if (heads <= 0) return;
    // The last tokens attend to the most keys, so they are taken first.
    int64_t place = token_tiles_ - 1 - tile / head_tiles_;
    each_piece([&](const StepSequence& sequence, int64_t first, int64_t count) {
      const int64_t tiles = divide_up(count, kTokenTile);
      if (place >= 0 && place < tiles) {
        const int64_t begin = first + place * kTokenTile;
        attend_tokens(indexer, sequence, begin, std::min(kTokenTile, first + count - begin), head, heads, thread);
      }
      place -= tiles;
    });
  }

  void expand(int64_t tile) const {
    const auto target = [&](int64_t row, int64_t head, int64_t first) {
      return attended + (first_ + row) * attended_size_ + head * spec_.value_dim + first;
    };
    multiply_heads(spec_.to_values, values_panel_, spec_.value_dim, tile, target);
  }

  // Finishes the results of heads: adds what adapters add, and multiplies them by gates.
  void finish_heads(int64_t row, int thread) const {
    float* values = attended + (first_ + row) * attended_size_;
    float* gates = gates_ + (first_ + row) * spec_.gate.outputs;
    if (spec_.gate.outputs) level_.sigmoid(gates, spec_.gate.outputs);
    float* scratch = scratch_ + thread * scratch_size_ + places_.size;
    for (int64_t head = 0; head < spec_.heads; ++head) {
      float* own = values + head * spec_.value_dim;
      if (!expansion.is_empty()) {
        expansion.add_to_values(first_ + row, head, weighted_ + (row * spec_.heads + head) * spec_.rank, own, scratch);
      }
      for (int64_t d = 0; spec_.gate.outputs && d < spec_.value_dim; ++d) own[d] *= gates[head];
    }
  }

  void prepare_output(int64_t token) {
    level_.prepare(output_panel, attended, Format::kFloat32, attended_size_, nullptr, token, token + 1);
  }

  void take_output(int64_t row, int64_t output, const float* sums, int64_t count) const {
    results_.take(row, output, sums, count);
  }

  const Expansion expansion;
  Panel panel{};         // (tokens, hidden)
  Panel query_panel{};   // (tokens, query_rank)
  Panel output_panel{};  // (tokens, heads * value_dim)
  float* downs;          // (tokens, query_rank)
  float* attended;       // (tokens, heads * value_dim)

 private:
  // Offsets of pieces of one memory, each aligned to 64 bytes.
  struct Pieces {
    int64_t add(int64_t size) {
      const int64_t offset = bytes;
      bytes += round_up(size, 64);
      return offset;
    }
    int64_t bytes = 0;
  };

  static int64_t most_rows(const LatentAttention& spec) {
    const int64_t numbers = spec.heads * (2 * spec.rank + spec.rope_dim);
    return std::clamp(kPassNumbers / numbers / kTokenTile * kTokenTile, kTokenTile, kMostPassRows);
  }

  int64_t row_tiles() const { return divide_up(rows_, kRowTile); }

  // Calls a function with each sequence that has rows in the pass, the first of them, and their number.
  template <typename Function>
  void each_piece(Function function) const {
    for (const StepSequence* sequence = step_.sequences; sequence < step_.sequences + step_.num_sequences; ++sequence) {
      const int64_t first = std::max<int64_t>(first_, sequence->first_row);
      const int64_t end = std::min<int64_t>(first_ + rows_, sequence->first_row + sequence->num_tokens);
      if (first < end) function(*sequence, first, end - first);
    }
  }

  void rotate(float* x, int64_t token, int64_t position) const {
    if (spec_.rope_kind == RopeKind::kNone) return;
    const int64_t offset = (step_.has_own_angles ? token : position) * (spec_.rotary_dim / 2);
    level_.rotate(x, step_.cosines[spec_.rope] + offset, step_.sines[spec_.rope] + offset, spec_.rotary_dim,
                  spec_.rope_kind == RopeKind::kInterleaved);
  }

  // Multiplies some rows of a panel of all heads by a tile of one head's `size` outputs.
  template <typename Target>
  void multiply_heads(const Matrix& matrix, const Panel& panel, int64_t size, int64_t tile, Target target) const {
    const int64_t rows_of = row_tiles(), output_tiles = divide_up(size, kOutputTile);
    const int64_t first_row = tile % rows_of * kRowTile, last_row = std::min(first_row + kRowTile, rows_);
    const int64_t place = tile / rows_of, head = place / output_tiles, first = place % output_tiles * kOutputTile;
    const int64_t count = std::min<int64_t>(kOutputTile, size - first), output = head * size + first;
    alignas(64) float sums[kRowTile * kOutputTile];
    level_.multiply(matrix, panel_of_head(panel, head, spec_.heads), first_row, last_row, output, output + count, sums,
                    kOutputTile);
    for (int64_t row = first_row; row < last_row; ++row) {
      std::memcpy(target(row, head, first), sums + (row - first_row) * kOutputTile, static_cast<size_t>(count) * 4);
    }
  }

  void attend_tokens(const IndexerStep& indexer, const StepSequence& sequence, int64_t token, int64_t tokens,
                     int64_t head, int64_t heads, int thread) {
    const int64_t row = token - first_, dim = spec_.nope_dim + spec_.rope_dim;
    float* scratch = scratch_ + thread * scratch_size_;
    for (int64_t i = 0; !expansion.is_empty() && i < tokens * heads; ++i) {
      const int64_t of = i / heads, each = head + i % heads;
      expansion.add_to_query(token + of, each, queries_ + (token + of) * queries_size_ + each * dim,
                             absorbed_ + ((row + of) * spec_.heads + each) * latent_size_, scratch + places_.size);
    }
    int64_t count;
    for (int64_t i = 0; i < tokens; i += count) {  // those that attend to all keys come first
      const int32_t* chosen = indexer.chosen(token + i);
      count = chosen ? 1 : std::min(tokens - i, kMostLatentRows / heads);
      while (!chosen && count > 1 && indexer.chosen(token + i + count - 1)) --count;
      attend_rows(sequence, token + i, count, head, heads, chosen, chosen ? indexer.top_k() - 1 : -1, scratch);
    }
    for (int64_t i = 0; i < tokens; ++i) {
      const int64_t first = (row + i) * spec_.heads + head;
      level_.prepare(values_panel_, weighted_, Format::kFloat32, spec_.rank, nullptr, first, first + heads);
    }
  }

  // Args: `chosen` keys of the one token, up to the `last`; or null for all keys.
  void attend_rows(const StepSequence& sequence, int64_t token, int64_t tokens, int64_t head, int64_t heads,
                   const int32_t* chosen, int64_t last, float* scratch) {
    const int64_t row = token - first_;
    LatentAttend attend{};
    attend.query = absorbed_ + (row * spec_.heads + head) * latent_size_;
    attend.output = weighted_ + (row * spec_.heads + head) * spec_.rank;
    attend.query_stride = absorbed_size_;
    attend.output_stride = weighted_size_;
    attend.latents = spec_.cache;
    attend.blocks = step_.block_tables[spec_.group] + sequence.first_block;
    attend.chosen = chosen;
    attend.scratch = scratch;
    attend.first_position = chosen ? last : position_of(sequence, token);
    attend.tokens = tokens;
    attend.heads = heads;
    attend.dim = spec_.cache_dim;
    attend.key_dim = latent_size_;
    attend.value_dim = spec_.rank;
    attend.format = spec_.cache_format;
    attend.is_exact = step_.is_exact;
    attend.scaling = spec_.scaling;
    level_.attend_latents(attend);
  }

  const Level& level_;
  const LayerSpec& layer_;
  const LatentAttention& spec_;
  const StepCall& step_;
  const int64_t query_rank_;
  const int64_t queries_size_, latent_size_, attended_size_;  // numbers of a token
  const int64_t absorbed_size_, weighted_size_;
  const int64_t pass_rows_;  // of a pass, at most
  const LatentScratch places_;
  const MixerResults results_;
  int64_t scratch_size_ = 0;
  int64_t num_threads_ = 1;
  int64_t first_ = 0, rows_ = 0;  // of the pass
  int64_t token_tiles_ = 0, head_tiles_ = 1;
  float *queries_, *latents_, *gates_;  // by token
  float *absorbed_, *weighted_;         // by row of the pass
  float* scratch_;                      // (threads, scratch_size)
  Panel keys_panel_{}, values_panel_{};  // (rows of a pass * heads, nope_dim), (.., rank)
};

void run(Context& context, const LayerSpec& layer, const StepCall& step) {
  const auto& spec = *static_cast<const LatentAttention*>(layer.mixer);
  const Level& level = context.level;
  LayerLatents latents(context, layer, spec, step);
  IndexerStep indexer(context, spec, step, latents.panel, latents.query_panel);
  const bool has_down = latents.query_rank() > 0;
  auto& own = context.mixers.of<Memory>();
  LoraSums &query_lora = own.query_lora, &output_lora = own.output_lora;
  for (LoraSums* sums : {&own.down_lora, &query_lora, &own.latent_lora, &own.gate_lora, &output_lora, &own.index_query_lora,
                         &own.index_key_lora, &own.index_weights_lora}) {
    sums->clear();
  }

  Side sides[5];
  LoraSums* lora[5];
  LoraPlace places[5];
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
  for (int i = 0; i < indexer.num_sides(); ++i) {
    add_side(indexer.side(i, first_index), i ? own.index_weights_lora : own.index_key_lora, i ? kIndexWeights : kIndexKey);
  }
  Side query_sides[2] = {{&spec.query, spec.query_bias, 0, &query_lora}};
  const int num_query_sides = 1 + indexer.has_queries();
  const int64_t first_index_query = spec.query.outputs;
  if (indexer.has_queries()) {
    query_sides[1] = indexer.query_side(first_index_query);
    query_sides[1].lora = &own.index_query_lora;
  }
  const Side output_side{&spec.output, spec.output_bias, 0, &output_lora};
  const auto site = [&](int i) { return LoraSite{*lora[i], places[i], step.normed, step.hidden_size}; };
  const LoraSite sites[] = {site(0), site(1), site(std::min(2, num_sides - 1)), site(std::min(3, num_sides - 1)),
                            site(num_sides - 1)};
  const LoraSite query_sites[] = {
      {query_lora, mixer_place(kQuery), latents.downs, latents.query_rank()},
      {own.index_query_lora, mixer_place(kIndexQuery), latents.downs, latents.query_rank()}};
  const LoraSite output_site{output_lora, mixer_place(kOutput), latents.attended, latents.attended_size()};

  auto norm = [&](int64_t token, int) {
    latents.norm(token);
    indexer.prepare(token);
  };
  auto multiply_down = [&](int64_t tile, int thread) {
    for (int i = 0; i < num_sides; ++i) {
      if (tile < lora[i]->num_tiles()) return lora[i]->multiply_down(level, tile, thread);
      tile -= lora[i]->num_tiles();
    }
  };
  const auto take_first = [&](int64_t row, int64_t output, const float* sums, int64_t count) {
    if (output >= first_index) return indexer.take(row, output - first_index, sums, count);
    latents.take_first(row, output, sums, count);
  };
  auto project = multiply_sides(context, latents.panel, sides, num_sides, kOutputTile, take_first);
  auto place = [&](int64_t token, int) {
    latents.place(token);
    indexer.place(token, latents.downs);
  };
  auto multiply_query_down = [&](int64_t tile, int thread) {
    if (tile < query_lora.num_tiles()) return query_lora.multiply_down(level, tile, thread);
    own.index_query_lora.multiply_down(level, tile - query_lora.num_tiles(), thread);
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
  int64_t lora_tiles = 0;
  for (int i = 0; i < num_sides; ++i) lora_tiles += lora[i]->num_tiles();
  phases.add(lora_tiles, multiply_down);
  phases.add(num_tiles(sides, num_sides, step.tokens, kOutputTile), project);
  phases.add(step.tokens, place);
  if (has_down) {
    plan_sites(phases, query_sites, num_query_sides, context, layer, step);
    phases.add(query_lora.num_tiles() + own.index_query_lora.num_tiles(), multiply_query_down);
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
    phases.add(latents.num_value_tiles(), expand);
    if (spec.gate.outputs || !latents.expansion.is_empty()) phases.add(latents.pass_rows(), finish_heads);
    if (latents.is_last_pass()) break;
    phases.run();  // since the next pass changes what these refer to
  }
  plan_sites(phases, &output_site, 1, context, layer, step);
  phases.add(step.tokens + output_lora.num_tiles(), prepare_output);
  phases.add(num_tiles(&output_side, 1, step.tokens, kOutputTile), project_back);
  phases.run();
}

bool is_plain_shaped(const Matrix& matrix, int64_t outputs, int64_t inputs) {
  return is_plain(matrix.format) && !matrix.is_transposed && is_shaped(matrix, outputs, inputs);
}

const char* check(const void* mixer, int64_t hidden_size) {
  const auto& spec = *static_cast<const LatentAttention*>(mixer);
  for (const int64_t count : {spec.heads, spec.rank, spec.nope_dim, spec.rope_dim, spec.value_dim}) {
    if (!is_count(count)) return "heads or latents without a size";
  }
  const int64_t query_rank = spec.query_down.outputs;
  if (query_rank && !is_shaped(spec.query_down, query_rank, hidden_size)) return "queries of an impossible rank";
  if (!is_shaped(spec.query, spec.heads * (spec.nope_dim + spec.rope_dim), query_rank ? query_rank : hidden_size) ||
      !is_shaped(spec.latent, spec.rank + spec.rope_dim, hidden_size) ||
      !is_shaped(spec.output, hidden_size, spec.heads * spec.value_dim)) {
    return "projections that don't fit its heads";
  }
  if (!is_plain_shaped(spec.to_keys, spec.heads * spec.rank, spec.nope_dim) ||
      !is_plain_shaped(spec.to_values, spec.heads * spec.value_dim, spec.rank)) {
    return "an expansion that doesn't fit its heads";
  }
  if (spec.gate.outputs && !is_shaped(spec.gate, spec.heads, hidden_size)) return "gates that don't fit its heads";
  if (!spec.latent_norm) return "latents without a norm";
  if (spec.rope_kind < RopeKind::kNone || spec.rope_kind > RopeKind::kInterleaved) return "an unknown kind of positions";
  if (spec.rope_kind != RopeKind::kNone && (spec.rotary_dim < 0 || spec.rotary_dim > spec.rope_dim)) {
    return "rotary positions that are larger than their part of a head";
  }
  if (spec.indexer) {
    if (!query_rank) return "an indexer without its inputs";
    const int64_t rotary_dim = spec.rope_kind == RopeKind::kNone ? 0 : spec.rotary_dim;
    if (const char* reason = check_indexer(*spec.indexer, hidden_size, query_rank, rotary_dim)) return reason;
  }
  if (!is_plain(spec.cache_format)) return "a cache of no known format";
  if (!spec.cache) return nullptr;
  const bool fits = spec.cache_dim >= spec.rank + spec.rope_dim + index_key_size(spec.indexer) && spec.cache_slots >= 0;
  return fits ? nullptr : "a cache that its latents don't fit";
}

}  // namespace

void write_latent(const Level& level, const LatentAttention& spec, const StepCall& step, int64_t token, int64_t first,
                  const float* numbers, int64_t count) {
  const StepSequence& sequence = sequence_of(step, token);
  const int64_t position = position_of(sequence, token);
  const int64_t block = step.block_tables[spec.group][sequence.first_block + position / kCacheBlock];
  const int64_t bytes = bytes_of(spec.cache_format);
  const int64_t place = (block * spec.cache_dim + first) * kCacheBlock + position % kCacheBlock;
  char* target = static_cast<char*>(spec.cache) + place * bytes;
  constexpr int64_t kPiece = 64;
  alignas(64) char narrowed[kPiece * 4];
  for (int64_t d = 0; d < count; d += kPiece) {
    const int64_t size = std::min(kPiece, count - d);
    level.narrow(numbers + d, spec.cache_format, narrowed, size);
    for (int64_t i = 0; i < size; ++i) {
      std::memcpy(target + (d + i) * kCacheBlock * bytes, narrowed + i * bytes, static_cast<size_t>(bytes));
    }
  }
}

const MixerOperations kLatentAttention = {check, run};

}  // namespace greenroom
