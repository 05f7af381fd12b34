#include "model/blocks/latent_attention/latent_step.h"

#include <algorithm>
#include <cstring>

#include "layers/head_panels.h"
#include "layers/token_cache.h"

namespace greenroom {
namespace {

struct Memory {
  Buffer heads;  // projections of a step
  Buffer work;   // results of attention, a pass, and scratch memory of threads
  Buffer parts;  // sums of parts of the keys
};

constexpr int64_t kTokenTile = 8;     // tokens of one sequence per tile of attention
constexpr int64_t kHeadTile = 16;     // heads of such a tile, at most
constexpr int64_t kLeastHeads = 8;    // and at least, if there are as many
constexpr int64_t kPassNumbers = 4 << 20;  // of absorbed queries and weighted latents at a time
constexpr int64_t kMostPassRows = kIsTight ? kTokenTile : 256;
static_assert(kTokenTile * kHeadTile <= kMostLatentRows);

}  // namespace

void write_latent(const Level& level, const LatentAttention& spec, const StepCall& step, int64_t token, int64_t first,
                  const float* numbers, int64_t count) {
  write_token(level, {spec.cache, spec.cache_dim, spec.cache_format, spec.group}, step, token, first, numbers, count);
}

LatentStep::LatentStep(Context& context, const LayerSpec& layer, const LatentAttention& spec, const StepCall& step,
                       const LatentExpansion& expansion)
    : expansion_(expansion),
      level_(context.level),
      layer_(layer),
      spec_(spec),
      step_(step),
      query_rank_(spec.query_down.outputs),
      downs_size_(query_rank_ * (spec.takes_raw ? 2 : 1)),
      gates_size_(spec.has_gates_in_query ? spec.heads * spec.value_dim : spec.gate.outputs),
      queries_size_(spec.heads * (spec.nope_dim + spec.rope_dim)),
      latent_size_(spec.rank + spec.rope_dim),
      attended_size_(spec.heads * spec.value_dim),
      absorbed_size_(spec.heads * latent_size_),
      weighted_size_(spec.heads * spec.rank),
      pass_rows_(std::min(step.tokens, most_rows(spec))),
      places_(latent_size_),
      parts_memory_(context.mixers.of<Memory>().parts),
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
                        panels.add(query_rank_ ? panel_bytes(query_kind, step.tokens, downs_size_) : 0),
                        panels.add(panel_bytes(output_kind, step.tokens, attended_size_)),
                        panels.add(panel_bytes(keys_kind, rows, spec.nope_dim)),
                        panels.add(panel_bytes(values_kind, rows, spec.rank))};
  char* memory = context.rows.reserve(panels.bytes);
  panel = place_panel(kind, step.tokens, step.hidden_size, memory + at[0]);
  query_panel = place_panel(query_kind, step.tokens, downs_size_, memory + at[1]);
  output_panel = place_panel(output_kind, step.tokens, attended_size_, memory + at[2]);
  keys_panel_ = place_panel(keys_kind, rows, spec.nope_dim, memory + at[3]);
  values_panel_ = place_panel(values_kind, rows, spec.rank, memory + at[4]);

  const int64_t tokens = step.tokens;
  Pieces heads;
  const int64_t parts[] = {heads.add(tokens * downs_size_ * 4), heads.add(tokens * queries_size_ * 4),
                           heads.add(tokens * latent_size_ * 4), heads.add(tokens * gates_size_ * 4)};
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

void LatentStep::norm(int64_t token) {
  const int64_t hidden_size = step_.hidden_size;
  float* normed = step_.normed + token * hidden_size;
  norm_hidden(level_, layer_.input_norm, layer_.mixer_residual, step_.hidden + token * hidden_size, hidden_size,
              normed);
  level_.prepare(panel, step_.normed, Format::kFloat32, hidden_size, nullptr, token, token + 1);
}

void LatentStep::take_first(int64_t row, int64_t output, const float* sums, int64_t count) const {
  float* to;
  if (output >= first_gate()) {
    to = gates_ + row * gates_size_ + output - first_gate();
  } else if (output >= first_latent()) {
    to = latents_ + row * latent_size_ + output - first_latent();
  } else {
    to = query_rank_ ? downs + (row + 1) * downs_size_ - query_rank_ + output : queries_ + row * queries_size_ + output;
  }
  std::memcpy(to, sums, static_cast<size_t>(count) * 4);
}

void LatentStep::take_query(int64_t row, int64_t output, const float* sums, int64_t count) const {
  if (!spec_.has_gates_in_query) {
    std::memcpy(queries_ + row * queries_size_ + output, sums, static_cast<size_t>(count) * 4);
    return;
  }
  const int64_t dim = spec_.nope_dim + spec_.rope_dim, width = dim + spec_.value_dim;
  for (int64_t i = 0, size; i < count; i += size) {
    const int64_t head = (output + i) / width, place = (output + i) % width;
    const bool is_gate = place >= dim;
    size = std::min(count - i, (is_gate ? width : dim) - place);
    float* to = is_gate ? gates_ + row * gates_size_ + head * spec_.value_dim + place - dim
                        : queries_ + row * queries_size_ + head * dim + place;
    std::memcpy(to, sums + i, static_cast<size_t>(size) * 4);
  }
}

void LatentStep::place(int64_t token) {
  if (query_rank_) {
    float* down = downs + token * downs_size_;
    if (spec_.takes_raw) std::memcpy(down, down + query_rank_, static_cast<size_t>(query_rank_) * 4);
    if (spec_.query_norm) level_.normalise(down, spec_.query_norm, spec_.query_norm_epsilon, query_rank_, down);
    level_.prepare(query_panel, downs, Format::kFloat32, downs_size_, nullptr, token, token + 1);
  }
  if (!spec_.latent.outputs) return copy_latent(token);
  float* latent = latents_ + token * latent_size_;
  level_.normalise(latent, spec_.latent_norm, spec_.latent_norm_epsilon, spec_.rank, latent);
  float* rotated = latent + spec_.rank;
  if (spec_.rope_norm) level_.normalise(rotated, spec_.rope_norm, spec_.latent_norm_epsilon, spec_.rope_dim, rotated);
  rotate(rotated, token, position_of(sequence_of(step_, token), token));
  write_latent(level_, spec_, step_, token, 0, latent, latent_size_);
}

void LatentStep::copy_latent(int64_t token) const {
  const StepSequence& sequence = sequence_of(step_, token);
  const int64_t position = position_of(sequence, token);
  const int64_t block = step_.block_tables[spec_.group][sequence.first_block + position / kCacheBlock];
  const int64_t bytes = bytes_of(spec_.cache_format), place = position % kCacheBlock;
  const char* from = static_cast<const char*>(spec_.source) + (block * spec_.source_dim * kCacheBlock + place) * bytes;
  char* to = static_cast<char*>(spec_.cache) + (block * spec_.cache_dim * kCacheBlock + place) * bytes;
  for (int64_t d = 0; d < latent_size_ * kCacheBlock; d += kCacheBlock) {
    std::memcpy(to + d * bytes, from + d * bytes, static_cast<size_t>(bytes));
  }
}

bool LatentStep::begin_pass(const IndexerStep& indexer) {
  first_ += rows_;
  rows_ = std::min(pass_rows_, step_.tokens - first_);
  token_tiles_ = 0;
  each_piece([&](const StepSequence&, int64_t, int64_t count) { token_tiles_ += divide_up(count, kTokenTile); });
  plan_parts(indexer);
  return rows_ > 0;
}

void LatentStep::turn(int64_t row) {
  const int64_t token = first_ + row, dim = spec_.nope_dim + spec_.rope_dim;
  const int64_t position = position_of(sequence_of(step_, token), token);
  float* queries = queries_ + token * queries_size_;
  const float scale = spec_.scales_queries ? step_.query_scales[position] : 1.0f;
  for (int64_t head = 0; head < spec_.heads; ++head) {
    float* query = queries + head * dim;
    rotate(query + spec_.nope_dim, token, position);
    for (int64_t d = 0; scale != 1.0f && d < dim; ++d) query[d] *= scale;
    scale_head(spec_.head_scales, head, position, query, dim);
    float* absorbed = absorbed_ + (row * spec_.heads + head) * latent_size_;
    std::memcpy(absorbed + spec_.rank, query + spec_.nope_dim, static_cast<size_t>(spec_.rope_dim) * 4);
  }
  // The panel's rows are heads of rows, `dim` apart.
  Panel rows = rows_from(keys_panel_, row * spec_.heads);
  level_.prepare(rows, queries, Format::kFloat32, dim, nullptr, 0, spec_.heads);
}

template <typename Target>
void LatentStep::multiply_heads(const Matrix& matrix, const Panel& panel, int64_t size, int64_t tile,
                                Target target) const {
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

void LatentStep::absorb(int64_t tile) const {
  multiply_heads(spec_.to_keys, keys_panel_, spec_.rank, tile, [&](int64_t row, int64_t head, int64_t first) {
    return absorbed_ + (row * spec_.heads + head) * latent_size_ + first;
  });
}

void LatentStep::attend(const IndexerStep& indexer, int64_t tile, int thread) {
  const Tile own = tile_of(parts_.tile_of(tile));
  if (own.heads > 0) attend_tokens(indexer, own, tile, thread);
}

void LatentStep::join(const IndexerStep& indexer, int64_t tile) {
  const Tile own = tile_of(tile);
  if (own.heads <= 0) return;
  parts_.join(level_, tile, {0, num_parts(indexer, *own.sequence, own.token) - 1}, target_of(own));
  prepare_values(own);
}

void LatentStep::expand(int64_t tile) const {
  const auto target = [&](int64_t row, int64_t head, int64_t first) {
    return attended + (first_ + row) * attended_size_ + head * spec_.value_dim + first;
  };
  multiply_heads(spec_.to_values, values_panel_, spec_.value_dim, tile, target);
}

void LatentStep::finish_heads(int64_t row, int thread) const {
  float* values = attended + (first_ + row) * attended_size_;
  float* gates = gates_ + (first_ + row) * gates_size_;
  if (gates_size_) level_.sigmoid(gates, gates_size_);
  const bool is_by_head = gates_size_ == spec_.heads;
  float* scratch = scratch_ + thread * scratch_size_ + places_.size;
  for (int64_t head = 0; head < spec_.heads; ++head) {
    float* own = values + head * spec_.value_dim;
    if (!expansion_.is_empty()) {
      expansion_.add_to_values(first_ + row, head, weighted_ + (row * spec_.heads + head) * spec_.rank, own, scratch);
    }
    for (int64_t d = 0; gates_size_ && d < spec_.value_dim; ++d) {
      own[d] *= gates[is_by_head ? head : head * spec_.value_dim + d];
    }
  }
}

void LatentStep::prepare_output(int64_t token) {
  level_.prepare(output_panel, attended, Format::kFloat32, attended_size_, nullptr, token, token + 1);
}

void LatentStep::take_output(int64_t row, int64_t output, const float* sums, int64_t count) const {
  results_.take(row, output, sums, count);
}

int64_t LatentStep::most_rows(const LatentAttention& spec) {
  const int64_t numbers = spec.heads * (2 * spec.rank + spec.rope_dim);
  return std::clamp(kPassNumbers / numbers / kTokenTile * kTokenTile, kTokenTile, kMostPassRows);
}

void LatentStep::rotate(float* x, int64_t token, int64_t position) const {
  if (spec_.rope_kind == RopeKind::kNone) return;
  const int64_t offset = (step_.has_own_angles ? token : position) * (spec_.rotary_dim / 2);
  level_.rotate(x, step_.cosines[spec_.rope] + offset, step_.sines[spec_.rope] + offset, spec_.rotary_dim,
                spec_.rope_kind == RopeKind::kInterleaved);
}

LatentStep::Tile LatentStep::tile_of(int64_t tile) const {
  const int64_t group = divide_up(spec_.heads, head_tiles_), head = tile % head_tiles_ * group;
  Tile found{nullptr, 0, 0, head, std::min(group, spec_.heads - head)};
  // The last tokens attend to the most keys, so they are taken first.
  int64_t place = token_tiles_ - 1 - tile / head_tiles_;
  each_piece([&](const StepSequence& sequence, int64_t first, int64_t count) {
    const int64_t tiles = divide_up(count, kTokenTile);
    if (place >= 0 && place < tiles) {
      found.sequence = &sequence;
      found.token = first + place * kTokenTile;
      found.tokens = std::min(kTokenTile, first + count - found.token);
    }
    place -= tiles;
  });
  return found;
}

void LatentStep::plan_parts(const IndexerStep& indexer) {
  int64_t most_parts = 1;
  each_piece([&](const StepSequence& sequence, int64_t first, int64_t count) {
    most_parts = std::max(most_parts, num_parts(indexer, sequence, first + count - 1));
  });
  // Adapters add to the queries of a tile, so that one thread takes it; so it does if tokens see different keys.
  const bool is_divisible = token_tiles_ == rows_ && expansion_.is_empty();
  const int64_t divided = is_divisible ? most_parts : 1;
  int64_t tile = indexer.is_sparse() || divided > 1 ? kMostLatentRows : kHeadTile;
  while (tile > kLeastHeads && token_tiles_ * divide_up(spec_.heads, tile) * divided < 2 * num_threads_) tile /= 2;
  head_tiles_ = divide_up(spec_.heads, tile);
  const int64_t rows = std::min(divide_up(spec_.heads, head_tiles_) * std::min(rows_, kTokenTile), kMostLatentRows);
  parts_.plan(parts_memory_, static_cast<int>(num_threads_), token_tiles_ * head_tiles_, divided, rows, spec_.rank);
}

int64_t LatentStep::num_parts(const IndexerStep& indexer, const StepSequence& sequence, int64_t token) const {
  const int64_t keys = indexer.chosen(token) ? indexer.num_chosen(token) : position_of(sequence, token) + 1;
  return divide_up(keys, kPartKeys);
}

void LatentStep::attend_tokens(const IndexerStep& indexer, const Tile& tile, int64_t number, int thread) {
  const int64_t row = tile.token - first_, dim = spec_.nope_dim + spec_.rope_dim;
  float* scratch = scratch_ + thread * scratch_size_;
  for (int64_t i = 0; !expansion_.is_empty() && i < tile.tokens * tile.heads; ++i) {
    const int64_t of = i / tile.heads, each = tile.head + i % tile.heads;
    expansion_.add_to_query(tile.token + of, each, queries_ + (tile.token + of) * queries_size_ + each * dim,
                           absorbed_ + ((row + of) * spec_.heads + each) * latent_size_, scratch + places_.size);
  }
  Tile some = tile;
  for (int64_t i = 0; i < tile.tokens; i += some.tokens) {  // those that attend to all keys come first
    some.token = tile.token + i;
    const bool is_chosen = indexer.chosen(some.token);
    some.tokens = is_chosen ? 1 : std::min(tile.tokens - i, kMostLatentRows / tile.heads);
    while (!is_chosen && some.tokens > 1 && indexer.chosen(some.token + some.tokens - 1)) --some.tokens;
    LatentAttend attend = attend_of(indexer, some);
    attend.scratch = scratch;
    const int64_t last = num_parts(indexer, *tile.sequence, some.token + some.tokens - 1) - 1;
    parts_.run(level_, number, thread, {0, last}, target_of(some),
               [&](int64_t part, const PartSums& sums) { level_.attend_latents(attend, part, sums); });
  }
  if (!num_joins()) prepare_values(tile);
}

LatentAttend LatentStep::attend_of(const IndexerStep& indexer, const Tile& tile) const {
  LatentAttend attend{};
  attend.query = absorbed_ + ((tile.token - first_) * spec_.heads + tile.head) * latent_size_;
  attend.query_stride = absorbed_size_;
  attend.latents = spec_.cache;
  attend.blocks = step_.block_tables[spec_.group] + tile.sequence->first_block;
  attend.chosen = indexer.chosen(tile.token);
  attend.first_position = attend.chosen ? indexer.num_chosen(tile.token) - 1 : position_of(*tile.sequence, tile.token);
  attend.tokens = tile.tokens;
  attend.heads = tile.heads;
  attend.dim = spec_.cache_dim;
  attend.key_dim = latent_size_;
  attend.value_dim = spec_.rank;
  attend.format = spec_.cache_format;
  attend.is_exact = step_.is_exact;
  attend.scaling = spec_.scaling;
  return attend;
}

Attended LatentStep::target_of(const Tile& tile) const {
  float* output = weighted_ + ((tile.token - first_) * spec_.heads + tile.head) * spec_.rank;
  return {output, weighted_size_, tile.tokens, tile.heads, spec_.rank, spec_.sinks ? spec_.sinks + tile.head : nullptr};
}

void LatentStep::prepare_values(const Tile& tile) {
  for (int64_t i = 0; i < tile.tokens; ++i) {
    const int64_t first = (tile.token - first_ + i) * spec_.heads + tile.head;
    level_.prepare(values_panel_, weighted_, Format::kFloat32, spec_.rank, nullptr, first, first + tile.heads);
  }
}

}  // namespace greenroom
