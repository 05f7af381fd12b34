#include "model/blocks/grouped_attention/key_block_indexer_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "formats/checks.h"

namespace greenroom {
namespace {

struct Memory {
  Buffer panels;
  Buffer rows;    // products of a step
  Buffer scores;  // of a pass, and scratch memory of threads
  Buffer tables;  // of a step
};

// The highest of some scores.
float highest(const float* scores, int64_t count) {
  constexpr int64_t kWidth = 16;
  float best[kWidth];
  std::fill(best, best + kWidth, -INFINITY);
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    for (int64_t j = 0; j < kWidth; ++j) best[j] = best[j] > scores[i + j] ? best[j] : scores[i + j];
  }
  for (; i < count; ++i) best[0] = best[0] > scores[i] ? best[0] : scores[i];
  return *std::max_element(best, best + kWidth);
}

}  // namespace

KeyBlockIndexerStep::KeyBlockIndexerStep(Context& context, const GroupedAttention& attention, const StepCall& step,
                                   const Panel& panel)
    : level_(context.level), attention_(attention), spec_(*attention.indexer), step_(step) {
  const int64_t keys = most_keys(step);
  is_sparse_ = keys > first_sparse(spec_);
  attends_ = is_sparse_ && !spec_.chosen;
  auto& own = context.mixers.of<Memory>();
  const Matrix* matrices[] = {&spec_.key, &spec_.query};
  num_sides_ = is_sparse_ ? 2 : 1;
  int64_t places[2] = {}, bytes = 0;
  for (int i = 0; i < num_sides_; ++i) {
    panels_[i].kind = level_.panel_kind(*matrices[i], step.is_exact);
    has_own_[i] = panels_[i].kind != panel.kind;
    places[i] = bytes;
    if (has_own_[i]) bytes += round_up(panel_bytes(panels_[i].kind, step.tokens, step.hidden_size), 64);
  }
  char* memory = own.panels.reserve(bytes);
  for (int i = 0; i < num_sides_; ++i) {
    if (has_own_[i]) panels_[i] = place_panel(panels_[i].kind, step.tokens, step.hidden_size, memory + places[i]);
  }

  const int64_t key_numbers = round_up(step.tokens * spec_.dim, 16);
  keys_ = own.rows.reserve<float>((key_numbers + (is_sparse_ ? step.tokens * spec_.heads * spec_.dim : 0)) * 4);
  queries_ = keys_ + key_numbers;
  if (!is_sparse_) return;

  const int64_t threads = context.pool.num_threads(), heads = spec_.heads;
  passes_.plan(step.tokens, keys, heads);
  most_blocks_ = divide_up(keys, spec_.block_size);
  scratch_size_ = round_up(index_scratch(heads, spec_.dim), 16);
  const int64_t num_scores = passes_.most_rows() * heads * passes_.stride(), numbers = num_scores + threads * scratch_size_;
  memory = own.scores.reserve(numbers * 4 + threads * most_blocks_ * int64_t{sizeof(Scored)});
  scores_ = reinterpret_cast<float*>(memory);
  scratch_ = scores_ + num_scores;
  scored_ = reinterpret_cast<Scored*>(scratch_ + threads * scratch_size_);
  if (!attends_) return;
  table_size_ = spec_.top_k * spec_.block_size / kCacheBlock;
  const int64_t choices = step.tokens * heads;
  tables_ = own.tables.reserve<int32_t>(choices * (table_size_ + 1) * 4);
  last_places_ = tables_ + choices * table_size_;
}

Side KeyBlockIndexerStep::side(int number, int64_t offset) const {
  const Panel* panel = has_own_[number] ? panels_ + number : nullptr;
  if (number == 0) return {&spec_.key, nullptr, offset, nullptr, panel};
  return {&spec_.query, nullptr, offset + spec_.dim, nullptr, panel};
}

void KeyBlockIndexerStep::take(int64_t row, int64_t output, const float* sums, int64_t count) const {
  float* to = output < spec_.dim ? keys_ + row * spec_.dim + output
                                  : queries_ + row * spec_.heads * spec_.dim + output - spec_.dim;
  std::memcpy(to, sums, static_cast<size_t>(count) * 4);
}

void KeyBlockIndexerStep::prepare(int64_t token) {
  for (int i = 0; i < num_sides_; ++i) {
    if (!has_own_[i]) continue;
    level_.prepare(panels_[i], step_.normed, Format::kFloat32, step_.hidden_size, nullptr, token, token + 1);
  }
}

void KeyBlockIndexerStep::rotate(float* x, int64_t token, int64_t position) const {
  if (spec_.rope_kind == RopeKind::kNone) return;
  const int64_t offset = (step_.has_own_angles ? token : position) * (attention_.rotary_dim / 2);
  level_.rotate(x, step_.cosines[attention_.rope] + offset, step_.sines[attention_.rope] + offset, attention_.rotary_dim,
                spec_.rope_kind == RopeKind::kInterleaved);
}

void KeyBlockIndexerStep::write_key(int64_t token, int64_t position, const float* key) const {
  const int32_t* blocks = step_.block_tables[attention_.group] + sequence_of(step_, token).first_block;
  const int64_t bytes = bytes_of(attention_.cache_format);
  const int64_t first = blocks[position / kCacheBlock] * kCacheBlock * spec_.dim + position % kCacheBlock;
  char* target = static_cast<char*>(spec_.cache) + first * bytes;
  constexpr int64_t kPiece = 64;
  alignas(64) char narrowed[kPiece * 4];
  for (int64_t d = 0; d < spec_.dim; d += kPiece) {
    const int64_t size = std::min(kPiece, spec_.dim - d);
    level_.narrow(key + d, attention_.cache_format, narrowed, size);
    for (int64_t i = 0; i < size; ++i) {
      std::memcpy(target + (d + i) * kCacheBlock * bytes, narrowed + i * bytes, static_cast<size_t>(bytes));
    }
  }
}

void KeyBlockIndexerStep::place(int64_t token) const {
  const int64_t position = position_of(sequence_of(step_, token), token);
  float* key = keys_ + token * spec_.dim;
  apply_norm(level_, spec_.key_norm, key, spec_.dim, key);
  rotate(key, token, position);
  write_key(token, position, key);
  if (position < first_sparse(spec_)) return;
  for (int64_t head = 0; head < spec_.heads; ++head) {
    float* query = queries_ + (token * spec_.heads + head) * spec_.dim;
    apply_norm(level_, spec_.query_norm, query, spec_.dim, query);
    rotate(query, token, position);
  }
}

void KeyBlockIndexerStep::score(int64_t tile, int thread) const {
  const ScorePasses::Tile part = passes_.tile_of(step_, tile);
  if (part.position < first_sparse(spec_) || part.num_blocks <= 0) return;
  IndexScores scores = passes_.scores_of(step_, part, attention_.group);
  scores.query = queries_ + part.token * spec_.heads * spec_.dim;
  scores.scores = scores_ + part.row * spec_.heads * passes_.stride() + part.first_block * kCacheBlock;
  scores.head_stride = passes_.stride();
  scores.keys = spec_.cache;
  scores.scratch = scratch_ + thread * scratch_size_;
  scores.heads = spec_.heads;
  scores.dim = scores.stride = spec_.dim;
  scores.format = attention_.cache_format;
  level_.score_keys(scores);
}

void KeyBlockIndexerStep::choose(int64_t choice, int thread) const {
  const int64_t row = choice / spec_.heads, head = choice % spec_.heads, token = passes_.token_of(row);
  const StepSequence& sequence = sequence_of(step_, token);
  const int64_t position = position_of(sequence, token), size = spec_.block_size, top_k = spec_.top_k;
  if (position < first_sparse(spec_)) return;
  Scored* scored = scored_ + thread * most_blocks_;
  const float* scores = scores_ + (row * spec_.heads + head) * passes_.stride();
  const int64_t count = position / size + 1;
  for (int64_t block = 0; block < count; ++block) {
    const int64_t begin = block * size, end = std::min(begin + size, position + 1);
    const float score = block + spec_.num_local >= count ? INFINITY : highest(scores + begin, end - begin);
    scored[block] = {score, static_cast<int32_t>(block)};
  }
  choose_best(scored, count, top_k);
  std::sort(scored, scored + top_k, [](const Scored& one, const Scored& other) { return one.position < other.position; });
  const int64_t place = token * spec_.heads + head;
  if (!attends_) {
    for (int64_t i = 0; i < top_k; ++i) spec_.chosen[place * top_k + i] = scored[i].position;
    return;
  }
  const int32_t* table = step_.block_tables[attention_.group] + sequence.first_block;
  const int64_t blocks = size / kCacheBlock, last_block = position / kCacheBlock;
  int32_t* chosen = tables_ + place * table_size_;
  for (int64_t i = 0; i < top_k; ++i) {
    for (int64_t j = 0; j < blocks; ++j) {  // the sequence may end within the last one
      *chosen++ = table[std::min(scored[i].position * blocks + j, last_block)];
    }
  }
  const bool has_own = scored[top_k - 1].position == count - 1;
  last_places_[place] = static_cast<int32_t>((top_k - 1) * size + (has_own ? position % size : size - 1));
}

void KeyBlockIndexerStep::point(Attention& attention, int64_t token, int64_t head) const {
  if (!attends_ || attention.first_position < first_sparse(spec_)) return;
  const int64_t place = token * spec_.heads + head;
  attention.blocks = tables_ + place * table_size_;
  attention.first_position = last_places_[place];  // of the token's last key among those of the chosen blocks
}

const char* check_key_block_indexer(const KeyBlockIndexer& spec, int64_t hidden_size, int64_t kv_heads, int64_t rotary_dim) {
  if (spec.heads != kv_heads || !is_count(spec.dim)) return "an indexer whose heads are not those of keys";
  if (!is_count(spec.top_k) || !is_count(spec.block_size) || spec.num_local < 0) return "an indexer that chooses no blocks";
  if (!spec.chosen && spec.block_size % kCacheBlock) return "an indexer of blocks that are no multiple of 16 keys";
  if (!is_shaped(spec.query, spec.heads * spec.dim, hidden_size) || !is_shaped(spec.key, spec.dim, hidden_size)) {
    return "an indexer whose projections don't fit its heads";
  }
  if (spec.rope_kind < RopeKind::kNone || spec.rope_kind > RopeKind::kInterleaved) return "an unknown kind of positions";
  if (spec.rope_kind != RopeKind::kNone && (rotary_dim <= 0 || rotary_dim > spec.dim)) {
    return "rotary positions that don't fit an index key";
  }
  if (const char* reason = check_norm(spec.query_norm)) return reason;
  return check_norm(spec.key_norm);
}

}  // namespace greenroom
