#include "model/blocks/compressed_attention/compressed_step.h"

#include <algorithm>
#include <cstring>

#include "layers/head_panels.h"
#include "model/blocks/grouped_attention/key_block_indexer.h"

namespace greenroom {
namespace {

struct Memory {
  Buffer rows;    // products of a step
  Buffer work;    // scratch memory of threads
  Buffer scores;  // of a pass, and memory of threads
  Buffer chosen;
  Buffer blocks;
  Buffer parts;  // sums of parts of the keys
};

constexpr int64_t kLeastHeads = 8;  // of a tile of attention, if there are as many
constexpr int64_t kPartBlocks = kPartKeys / kCacheBlock;

// Tokens that a compressed key is made of.
int64_t most_tokens(const CompressedAttention& spec) { return spec.period * num_series(spec); }

// Floats for the gates and keys of these, and the result.
int64_t compressing(const CompressedAttention& spec) {
  const int64_t dim = std::max(spec.keys.dim, spec.index.key.outputs ? spec.index.dim : 0);
  return spec.keys.key.outputs ? dim * (2 * most_tokens(spec) + 1) : 0;
}

// Writes keys into a block of the cache's layout.
template <typename Number>
void transpose(const Number* const* keys, int64_t count, int64_t dim, Number* to) {
  int64_t first = 0;
  if constexpr (sizeof(Number) == 2) {  // four numbers of four keys are transposed in registers
    constexpr uint64_t kEven = 0x0000FFFF0000FFFF, kLow = 0x00000000FFFFFFFF;
    for (; first + 4 <= count; first += 4) {
      for (int64_t d = 0; d + 4 <= dim; d += 4) {
        uint64_t own[4], even[2], odd[2];
        for (int64_t i = 0; i < 4; ++i) std::memcpy(own + i, keys[first + i] + d, 8);
        for (int64_t i = 0; i < 2; ++i) {
          const uint64_t one = own[2 * i], other = own[2 * i + 1];
          even[i] = (one & kEven) | (other & kEven) << 16;
          odd[i] = (one >> 16 & kEven) | (other & ~kEven);
        }
        const uint64_t rows[] = {(even[0] & kLow) | even[1] << 32, (odd[0] & kLow) | odd[1] << 32,
                                 even[0] >> 32 | (even[1] & ~kLow), odd[0] >> 32 | (odd[1] & ~kLow)};
        for (int64_t i = 0; i < 4; ++i) std::memcpy(to + (d + i) * kCacheBlock + first, rows + i, 8);
      }
      for (int64_t d = dim / 4 * 4; d < dim; ++d) {
        for (int64_t i = first; i < first + 4; ++i) to[d * kCacheBlock + i] = keys[i][d];
      }
    }
  }
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t i = first; i < count; ++i) to[d * kCacheBlock + i] = keys[i][d];
  }
}

}  // namespace

CompressedStep::CompressedStep(Context& context, const LayerSpec& layer, const CompressedAttention& spec,
                               const StepCall& step)
    : level_(context.level),
      layer_(layer),
      spec_(spec),
      step_(step),
      width_(spec.query_down.outputs + cached_size(spec) + spec.index_weights.outputs),
      series_(num_series(spec)),
      places_(spec.dim),
      parts_memory_(context.mixers.of<Memory>().parts),
      results_(context, layer, step),
      most_keys_(most_keys(step)),
      num_threads_(context.pool.num_threads()) {
  is_sparse_ = has_index() && !sees_all(most_keys_ - 1);
  const int64_t tokens = step.tokens, group_inputs = spec.groups.inputs;
  PanelKind kind = level_.panel_kind(spec.query_down, step.is_exact);
  for (const Matrix* matrix : {&spec.key, &spec.keys.key, &spec.keys.gate, &spec.index.key, &spec.index.gate,
                               &spec.index_weights}) {  // they share the panel
    if (matrix->outputs && level_.panel_kind(*matrix, step.is_exact) != kind) kind = PanelKind::kFloat32;
  }
  PanelKind query_kind = level_.panel_kind(spec.query, step.is_exact);
  if (chooses() && level_.panel_kind(spec.index_query, step.is_exact) != query_kind) query_kind = PanelKind::kFloat32;
  const PanelKind group_kind = level_.panel_kind(spec.groups, step.is_exact);
  const PanelKind output_kind = level_.panel_kind(spec.output, step.is_exact);
  Pieces panels;
  const int64_t at[] = {panels.add(panel_bytes(kind, tokens, step.hidden_size)),
                        panels.add(panel_bytes(query_kind, tokens, spec.query.inputs)),
                        panels.add(panel_bytes(group_kind, tokens * spec.num_groups, group_inputs)),
                        panels.add(panel_bytes(output_kind, tokens, spec.output.inputs))};
  char* memory = context.rows.reserve(panels.bytes);
  panel = place_panel(kind, tokens, step.hidden_size, memory + at[0]);
  query_panel = place_panel(query_kind, tokens, spec.query.inputs, memory + at[1]);
  groups_panel_ = place_panel(group_kind, tokens * spec.num_groups, group_inputs, memory + at[2]);
  output_panel = place_panel(output_kind, tokens, spec.output.inputs, memory + at[3]);

  auto& own = context.mixers.of<Memory>();
  Pieces products;
  const int64_t parts[] = {products.add(tokens * width_ * 4), products.add(tokens * query_size() * 4),
                           products.add(chooses() ? tokens * spec.index_query.outputs * 4 : 0),
                           products.add(tokens * spec.groups.outputs * 4)};
  memory = own.rows.reserve(products.bytes);
  const auto floats = [&](int64_t offset) { return reinterpret_cast<float*>(memory + offset); };
  rows = floats(parts[0]);
  queries_ = floats(parts[1]);
  index_queries_ = floats(parts[2]);
  grouped = floats(parts[3]);
  const int64_t scoring = chooses() ? index_scratch(spec.index_heads, spec.index.dim) : 0;
  scratch_size_ = round_up(std::max({places_.size, compressing(spec), scoring, spec.rotary_dim}), 16);
  scratch_ = own.work.reserve<float>(num_threads_ * scratch_size_ * 4);

  const int64_t num_blocks = divide_up(most_keys_ + std::min(most_keys_, spec.window), kCacheBlock) + 1;
  auto* blocks = own.blocks.reserve<int32_t>(num_blocks * 4);
  for (int64_t i = 0; i < num_blocks; ++i) blocks[i] = static_cast<int32_t>(i % kPartBlocks);
  blocks_ = blocks;
  if (!is_sparse_) return;
  chosen_ = spec.chosen ? spec.chosen : own.chosen.reserve<int32_t>(tokens * spec.top_k * 4);
  if (!chooses()) return;
  passes_.plan(tokens, most_keys_);
  const int64_t stride = passes_.stride(), marks = divide_up(most_keys_, 64);
  const int64_t bytes = round_up(passes_.most_rows() * stride * 4, 64);
  memory = own.scores.reserve(bytes + num_threads_ * (stride * int64_t{sizeof(Scored)} + marks * 8));
  scores_ = floats(0);
  sorted_ = reinterpret_cast<Scored*>(memory + bytes);
  marks_ = reinterpret_cast<uint64_t*>(sorted_ + num_threads_ * stride);
}

void CompressedStep::norm(int64_t token) {
  const int64_t size = step_.hidden_size;
  norm_hidden(level_, layer_.input_norm, layer_.mixer_residual, step_.hidden + token * size, size,
              step_.normed + token * size);
  level_.prepare(panel, step_.normed, Format::kFloat32, size, nullptr, token, token + 1);
}

void CompressedStep::take_first(int64_t row, int64_t output, const float* sums, int64_t count) const {
  std::memcpy(rows + row * width_ + output, sums, static_cast<size_t>(count) * 4);
}

void CompressedStep::take_query(int64_t row, int64_t output, const float* sums, int64_t count) const {
  const int64_t index = output - query_size();
  float* to = index < 0 ? queries_ + row * query_size() + output : index_queries_ + row * spec_.index_query.outputs + index;
  std::memcpy(to, sums, static_cast<size_t>(count) * 4);
}

void CompressedStep::place(int64_t token) {
  float* down = rows + token * width_;
  level_.normalise(down, spec_.query_norm, spec_.query_epsilon, first_key(), down);
  level_.prepare(query_panel, rows, Format::kFloat32, width_, nullptr, token, token + 1);
  float* key = down + first_key();
  level_.normalise(key, spec_.key_norm, spec_.key_epsilon, spec_.dim, key);
  rotate(key, spec_.dim, place_of(token), nullptr);
  write_token(level_, cache(), step_, token, 0, key, spec_.dim);
  const StepSequence& sequence = sequence_of(step_, token);
  const float* numbers = key + spec_.dim;
  level_.narrow(numbers, spec_.cache_format, compressed_in(sequence, position_of(sequence, token)), compressed_size());
  const int64_t first = spec_.dim + compressed_size();
  write_token(level_, cache(), step_, token, first, key + first, cached_size(spec_) - first);
}

void CompressedStep::compress(int64_t token, int thread) const {
  const StepSequence& sequence = sequence_of(step_, token);
  const int64_t position = position_of(sequence, token), bytes = bytes_of(spec_.cache_format);
  if ((position + 1) % spec_.period) return;
  float* scratch = own_scratch(thread);
  const auto read_keys = [&](int64_t at, int64_t first, float* numbers) {
    level_.widen(compressed_in(sequence, at) + first * bytes, spec_.cache_format, numbers, spec_.keys.dim);
  };
  const float* key = compress(spec_.keys, position, scratch, read_keys);
  level_.narrow(key, spec_.cache_format, compressed_key_in(sequence, position), spec_.dim);
  if (!has_index()) return;
  const int64_t first_column = spec_.dim + compressed_size();
  const auto read_index = [&](int64_t at, int64_t first, float* numbers) {
    const char* from = token_in(cache(), step_, sequence, at, first_column + first);
    for (int64_t d = 0; d < spec_.index.dim; ++d) {
      level_.widen(from + d * kCacheBlock * bytes, spec_.cache_format, numbers + d, 1);
    }
  };
  key = compress(spec_.index, position, scratch, read_index);
  write_token(level_, cache(), step_, token, first_column + spec_.index.key.outputs - spec_.index.dim, key, spec_.index.dim);
}

template <typename Read>
const float* CompressedStep::compress(const Compressor& of, int64_t position, float* scratch, Read read) const {
  const int64_t dim = of.dim, outputs = of.key.outputs, begin = position + 1 - spec_.period;
  const int64_t oldest = std::max<int64_t>(0, begin - (series_ - 1) * spec_.period), count = position + 1 - oldest;
  const int64_t stride = most_tokens(spec_);
  float *gates = scratch, *keys = gates + dim * stride, *mean = keys + dim * stride;
  for (int64_t place = 0; place < count; ++place) {
    const int64_t at = oldest + place, series = at < begin ? 0 : (series_ - 1) * dim;
    const float* bias = of.bias + at % spec_.period * outputs + series;
    read(at, series, mean);
    for (int64_t d = 0; d < dim; ++d) keys[d * stride + place] = mean[d];
    read(at, outputs + series, mean);
    for (int64_t d = 0; d < dim; ++d) gates[d * stride + place] = mean[d] + bias[d];
  }
  for (int64_t d = 0; d < dim; ++d) {
    level_.soft_max(gates + d * stride, count);
    mean[d] = level_.dot(gates + d * stride, keys + d * stride, count);
  }
  level_.normalise(mean, of.norm, of.epsilon, dim, mean);
  rotate(mean, dim, begin, nullptr);
  return mean;
}

char* CompressedStep::compressed_in(const StepSequence& sequence, int64_t position) const {
  const int64_t place = position % kCacheBlock;
  const char* block = token_in(cache(), step_, sequence, position - place, spec_.dim);
  return const_cast<char*>(block) + place * compressed_size() * bytes_of(spec_.cache_format);
}

char* CompressedStep::compressed_key_in(const StepSequence& sequence, int64_t last) const {
  return compressed_in(sequence, last) + (spec_.keys.key.outputs - spec_.dim) * bytes_of(spec_.cache_format);
}

void CompressedStep::turn(int64_t token) const {
  const int64_t place = place_of(token);
  for (int64_t head = 0; head < spec_.heads; ++head) {
    float* query = queries_ + token * query_size() + head * spec_.dim;
    level_.normalise(query, spec_.head_norm, spec_.head_epsilon, spec_.dim, query);
    rotate(query, spec_.dim, place, nullptr);
  }
  if (!chooses() || sees_all(position_at(token))) return;
  for (int64_t head = 0; head < spec_.index_heads; ++head) {
    rotate(index_queries_ + (token * spec_.index_heads + head) * spec_.index.dim, spec_.index.dim, place, nullptr);
  }
}

void CompressedStep::score(int64_t tile, int thread) const {
  const ScorePasses::Tile part = passes_.tile_of(step_, tile);
  if (sees_all(part.position) || part.num_blocks <= 0) return;
  const int64_t first = spec_.dim + compressed_size() + spec_.index.key.outputs - spec_.index.dim;
  IndexScores scores = passes_.scores_of(step_, part, spec_.group);
  scores.query = index_queries_ + part.token * spec_.index_heads * spec_.index.dim;
  scores.weights = rows + part.token * width_ + first_weight();
  scores.scores = scores_ + part.row * passes_.stride() + part.first_block * kCacheBlock;
  scores.keys = static_cast<const char*>(spec_.cache) + first * kCacheBlock * bytes_of(spec_.cache_format);
  scores.scratch = own_scratch(thread);
  scores.heads = spec_.index_heads;
  scores.dim = spec_.index.dim;
  scores.stride = spec_.cache_dim;
  scores.format = spec_.cache_format;
  level_.score_keys(scores);
}

void CompressedStep::choose(int64_t row, int thread) const {
  const int64_t token = passes_.token_of(row), position = position_at(token), stride = passes_.stride();
  if (sees_all(position)) return;
  const int64_t count = (position + 1) / spec_.period;
  Scored* sorted = sorted_ + thread * stride;
  const float* scores = scores_ + row * stride;
  for (int64_t i = 0; i < count; ++i) sorted[i] = {scores[(i + 1) * spec_.period - 1], static_cast<int32_t>(i)};
  choose_best(sorted, count, spec_.top_k);
  const int64_t words = divide_up(count, 64);
  uint64_t* marks = marks_ + thread * divide_up(most_keys_, 64);
  std::fill(marks, marks + words, uint64_t{0});
  for (int64_t i = 0; i < spec_.top_k; ++i) marks[sorted[i].position / 64] |= uint64_t{1} << sorted[i].position % 64;
  int32_t* chosen = chosen_ + token * spec_.top_k;
  for (int64_t word = 0; word < words; ++word) {
    for (uint64_t rest = marks[word]; rest; rest &= rest - 1) {
      *chosen++ = static_cast<int32_t>(word * 64 + __builtin_ctzll(rest));
    }
  }
}

CompressedStep::Keys CompressedStep::keys_of(int64_t token) const {
  const int64_t position = position_at(token), oldest = std::max<int64_t>(0, position + 1 - spec_.window);
  Keys keys{nullptr, has_periods() ? (position + 1) / spec_.period : 0, oldest, 0};
  if (has_periods() && !sees_all(position)) {
    keys.chosen = chosen_ + token * spec_.top_k;
    keys.compressed = spec_.top_k;
  }
  keys.total = keys.compressed + position + 1 - oldest;
  return keys;
}

template <typename Number>
void CompressedStep::gather(const StepSequence& sequence, const Keys& keys, int64_t first, Number* to) const {
  const int64_t last = std::min(first + kPartKeys, keys.total);
  const auto target_of = [&](int64_t key) {
    const int64_t place = key - first;
    return to + place / kCacheBlock * kCacheBlock * spec_.dim + place % kCacheBlock;
  };
  int64_t key = first;
  for (int64_t size; key < std::min(last, keys.compressed); key += size) {  // of one block
    size = std::min<int64_t>(kCacheBlock, std::min(last, keys.compressed) - key);
    const Number* from[kCacheBlock];
    for (int64_t i = 0; i < size; ++i) {
      const int64_t number = keys.chosen ? keys.chosen[key + i] : key + i;
      from[i] = reinterpret_cast<const Number*>(compressed_key_in(sequence, (number + 1) * spec_.period - 1));
    }
    transpose(from, size, spec_.dim, target_of(key));
  }
  for (int64_t size; key < last; key += size) {  // neighbours in a block of both
    const int64_t position = keys.oldest + key - keys.compressed, place = key - first;
    size = std::min({kCacheBlock - position % kCacheBlock, kCacheBlock - place % kCacheBlock, last - key});
    const auto* from = reinterpret_cast<const Number*>(token_in(cache(), step_, sequence, position, 0));
    Number* target = target_of(key);
    for (int64_t d = 0; d < spec_.dim; ++d, from += kCacheBlock, target += kCacheBlock) {
      for (int64_t i = 0; i < size; ++i) target[i] = from[i];
    }
  }
}

void CompressedStep::plan_attention() {
  int64_t most_parts = 1;
  for (int64_t token = 0; token < step_.tokens; ++token) {
    most_parts = std::max(most_parts, divide_up(keys_of(token).total, kPartKeys));
  }
  int64_t tile = kMostLatentRows;
  while (tile > kLeastHeads && step_.tokens * divide_up(spec_.heads, tile) * most_parts < 2 * num_threads_) tile /= 2;
  head_tiles_ = divide_up(spec_.heads, tile);
  parts_.plan(parts_memory_, static_cast<int>(num_threads_), step_.tokens * head_tiles_, most_parts,
              divide_up(spec_.heads, head_tiles_), spec_.dim);
}

CompressedStep::Tile CompressedStep::tile_of(int64_t tile) const {
  const int64_t group = divide_up(spec_.heads, head_tiles_), head = tile % head_tiles_ * group;
  // The last tokens attend to the most keys, so they are taken first.
  return {step_.tokens - 1 - tile / head_tiles_, head, std::min(group, spec_.heads - head)};
}

Attended CompressedStep::target_of(const Tile& tile) const {
  float* output = queries_ + tile.token * query_size() + tile.head * spec_.dim;
  return {output, query_size(), 1, tile.heads, spec_.dim, spec_.sinks ? spec_.sinks + tile.head : nullptr};
}

void CompressedStep::attend(int64_t number, int thread) {
  const Tile tile = tile_of(parts_.tile_of(number));
  if (tile.heads <= 0) return;
  const StepSequence& sequence = sequence_of(step_, tile.token);
  const Keys keys = keys_of(tile.token);
  float* scratch = own_scratch(thread);
  float* gathered = scratch + places_.gathered;
  LatentAttend attend{};
  attend.query = target_of(tile).output;
  attend.query_stride = query_size();
  attend.latents = gathered;
  attend.blocks = blocks_;
  attend.scratch = scratch;
  attend.first_position = keys.total - 1;
  attend.tokens = 1;
  attend.heads = tile.heads;
  attend.dim = attend.key_dim = attend.value_dim = spec_.dim;
  attend.format = spec_.cache_format;
  attend.is_exact = step_.is_exact;
  attend.scaling = spec_.scaling;
  parts_.run(level_, number, thread, {0, divide_up(keys.total, kPartKeys) - 1}, target_of(tile),
             [&](int64_t part, const PartSums& sums) {
               if (spec_.cache_format == Format::kFloat32) {
                 gather(sequence, keys, part * kPartKeys, gathered);
               } else {
                 gather(sequence, keys, part * kPartKeys, reinterpret_cast<uint16_t*>(gathered));
               }
               level_.attend_latents(attend, part, sums);
             });
}

void CompressedStep::join(int64_t number) {
  const Tile tile = tile_of(number);
  if (tile.heads <= 0) return;
  parts_.join(level_, number, {0, divide_up(keys_of(tile.token).total, kPartKeys) - 1}, target_of(tile));
}

void CompressedStep::finish_heads(int64_t token, int thread) {
  float* attended = queries_ + token * query_size();
  for (int64_t head = 0; head < spec_.heads; ++head) {
    rotate(attended + head * spec_.dim, spec_.dim, place_of(token), own_scratch(thread));
  }
  const int64_t first = token * spec_.num_groups;
  level_.prepare(groups_panel_, queries_, Format::kFloat32, spec_.groups.inputs, nullptr, first, first + spec_.num_groups);
}

int64_t CompressedStep::num_group_tiles() const {
  const int64_t size = spec_.groups.outputs / spec_.num_groups;
  return spec_.num_groups * divide_up(step_.tokens, kRowTile) * divide_up(size, kOutputTile);
}

void CompressedStep::multiply_groups(int64_t tile) const {
  const int64_t size = spec_.groups.outputs / spec_.num_groups;
  const int64_t row_tiles = divide_up(step_.tokens, kRowTile), output_tiles = divide_up(size, kOutputTile);
  const int64_t first_row = tile % row_tiles * kRowTile, last_row = std::min(first_row + kRowTile, step_.tokens);
  const int64_t place = tile / row_tiles, group = place / output_tiles, first = place % output_tiles * kOutputTile;
  const int64_t count = std::min<int64_t>(kOutputTile, size - first), output = group * size + first;
  alignas(64) float sums[kRowTile * kOutputTile];
  level_.multiply(spec_.groups, panel_of_head(groups_panel_, group, spec_.num_groups), first_row, last_row, output,
                  output + count, sums, kOutputTile);
  for (int64_t row = first_row; row < last_row; ++row) {
    std::memcpy(grouped + row * spec_.groups.outputs + output, sums + (row - first_row) * kOutputTile,
                static_cast<size_t>(count) * 4);
  }
}

void CompressedStep::prepare_output(int64_t token) {
  level_.prepare(output_panel, grouped, Format::kFloat32, spec_.output.inputs, nullptr, token, token + 1);
}

void CompressedStep::take_output(int64_t row, int64_t output, const float* sums, int64_t count) const {
  results_.take(row, output, sums, count);
}

void CompressedStep::rotate(float* x, int64_t dim, int64_t place, float* back) const {
  if (spec_.rope_kind == RopeKind::kNone) return;
  const int64_t pairs = spec_.rotary_dim / 2;
  const float *cosines = step_.cosines[spec_.rope] + place * pairs, *sines = step_.sines[spec_.rope] + place * pairs;
  for (int64_t i = 0; back && i < pairs; ++i) back[i] = -sines[i];
  level_.rotate(x + dim - spec_.rotary_dim, cosines, back ? back : sines, spec_.rotary_dim,
                spec_.rope_kind == RopeKind::kInterleaved);
}

}  // namespace greenroom
