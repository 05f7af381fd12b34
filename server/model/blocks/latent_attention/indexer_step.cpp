#include "model/blocks/latent_attention/indexer_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "formats/checks.h"

namespace greenroom {
namespace {

struct Memory {
  Buffer panels;
  Buffer rows;     // products of a step
  Buffer scores;   // of a pass, and scratch memory of threads
  Buffer chosen;   // kept for the layers behind
  Buffer windows;
};

}  // namespace

IndexerStep::IndexerStep(Context& context, const LatentAttention& latents, const StepCall& step, const Panel& panel,
                         const Panel& query_panel)
    : level_(context.level), latents_(latents), spec_(latents.indexer), step_(step),
      chooses_(spec_ && spec_->chooses) {
  if (!spec_) return;
  most_keys_ = most_keys(step);
  is_sparse_ = !sees_all(*spec_, most_keys_ - 1);
  auto& own = context.mixers.of<Memory>();
  if (is_sparse_) {
    const int64_t bytes = step.tokens * most_chosen(*spec_) * 4;
    Buffer& memory = spec_->is_window ? own.windows : own.chosen;
    int32_t* given = spec_->chosen || spec_->is_window ? spec_->chosen : step.chosen_keys;
    chosen_ = given ? given : memory.reserve<int32_t>(bytes);
  }
  if (spec_->is_window && is_sparse_) take_windows();
  if (!chooses_) return;

  const Matrix* matrices[] = {&spec_->key, &spec_->weights, &spec_->query, &spec_->pool_gate};
  num_sides_ = (is_sparse_ ? 2 + (spec_->takes_hidden != 0) : 1) + (spec_->pool != 0);
  const bool has_query_rows = spec_->takes_hidden && spec_->query_input_norm.kind != NormKind::kNone;
  const auto is_used = [&](int i) { return i == 0 || (i == 3 ? spec_->pool != 0 : is_sparse_); };
  int64_t places[4] = {}, bytes = 0;
  for (int i = 0; i < 4; ++i) {
    if (!is_used(i)) continue;
    panels_[i].kind = level_.panel_kind(*matrices[i], step.is_exact);
    const bool takes_queries = i == 2 && !spec_->takes_hidden;
    has_own_[i] = panels_[i].kind != (takes_queries ? query_panel : panel).kind || (i == 2 && has_query_rows) ||
                  (takes_queries && latents.takes_raw);
    places[i] = bytes;
    if (has_own_[i]) bytes += round_up(panel_bytes(panels_[i].kind, step.tokens, matrices[i]->inputs), 64);
  }
  char* memory = own.panels.reserve(bytes);
  for (int i = 0; i < 4; ++i) {
    if (has_own_[i]) panels_[i] = place_panel(panels_[i].kind, step.tokens, matrices[i]->inputs, memory + places[i]);
  }

  const int64_t keys = round_up(step.tokens * index_key_size(spec_), 16);
  const int64_t weights = is_sparse_ ? round_up(step.tokens * spec_->heads, 16) : 0;
  const int64_t queries = is_sparse_ ? round_up(step.tokens * spec_->heads * spec_->dim, 16) : 0;
  const int64_t rows = is_sparse_ && has_query_rows ? step.tokens * step.hidden_size : 0;
  keys_ = own.rows.reserve<float>((keys + weights + queries + rows) * 4);
  weights_ = keys_ + keys;
  queries_ = weights_ + weights;
  query_rows_ = has_query_rows ? queries_ + queries : step.normed;
  if (!is_sparse_) return;

  passes_.plan(step.tokens, most_keys_);
  const int64_t threads = context.pool.num_threads(), stride = passes_.stride(), num_scores = passes_.most_rows() * stride;
  scratch_size_ = round_up(index_scratch(spec_->heads, spec_->dim), 16);
  const int64_t marks = divide_up(most_keys_, 64);
  const int64_t numbers = num_scores + threads * scratch_size_;
  memory = own.scores.reserve(round_up(numbers * 4, 64) + threads * (stride * int64_t{sizeof(Scored)} + marks * 8));
  scores_ = reinterpret_cast<float*>(memory);
  scratch_ = scores_ + num_scores;
  sorted_ = reinterpret_cast<Scored*>(memory + round_up(numbers * 4, 64));
  marks_ = reinterpret_cast<uint64_t*>(sorted_ + threads * stride);
}

void IndexerStep::take_windows() const {
  for (int64_t token = 0; token < step_.tokens; ++token) {
    const int64_t oldest = position_of(sequence_of(step_, token), token) - spec_->top_k + 1;
    int32_t* chosen = chosen_ + token * spec_->top_k;
    for (int64_t i = 0; oldest > 0 && i < spec_->top_k; ++i) chosen[i] = static_cast<int32_t>(oldest + i);
  }
}

const int32_t* IndexerStep::chosen(int64_t token) const {
  if (!is_sparse_ || sees_all(*spec_, position_of(sequence_of(step_, token), token))) return nullptr;
  return chosen_ + token * most_chosen(*spec_);
}

int64_t IndexerStep::num_chosen(int64_t token) const {
  return spec_->top_k + (spec_->pool ? (position_of(sequence_of(step_, token), token) + 1) % spec_->pool : 0);
}

void IndexerStep::take(int64_t row, int64_t output, const float* sums, int64_t count) const {
  const int64_t size = index_key_size(spec_), weight = output - size, query = weight - spec_->heads;
  if (query >= 0) return take_query(row, query, sums, count);
  float* to = weight < 0 ? keys_ + row * size + output : weights_ + row * spec_->heads + weight;
  std::memcpy(to, sums, static_cast<size_t>(count) * 4);
}

void IndexerStep::take_query(int64_t row, int64_t output, const float* sums, int64_t count) const {
  std::memcpy(queries_ + row * spec_->heads * spec_->dim + output, sums, static_cast<size_t>(count) * 4);
}

Side IndexerStep::side(int number, int64_t offset) const {
  const int part = part_of(number);
  const Panel* panel = has_own_[part] ? panels_ + part : nullptr;
  const int64_t weights = offset + index_key_size(spec_);
  if (part == 0) return {&spec_->key, nullptr, offset, nullptr, panel};
  if (part == 3) return {&spec_->pool_gate, nullptr, offset + spec_->dim, nullptr, panel};
  if (part == 1) return {&spec_->weights, nullptr, weights, nullptr, panel};
  return {&spec_->query, nullptr, weights + spec_->heads, nullptr, panel};
}

Side IndexerStep::query_side(int64_t offset) const {
  return {&spec_->query, nullptr, offset, nullptr, has_own_[2] ? panels_ + 2 : nullptr};
}

void IndexerStep::prepare(int64_t token) {
  const int64_t size = step_.hidden_size;
  if (chooses_ && is_sparse_ && spec_->takes_hidden && query_rows_ != step_.normed) {
    apply_norm(level_, spec_->query_input_norm, step_.normed + token * size, size, query_rows_ + token * size);
  }
  for (int i = 0; i < num_sides_; ++i) {
    const int part = part_of(i);
    if (!has_own_[part]) continue;
    level_.prepare(panels_[part], part == 2 ? query_rows_ : step_.normed, Format::kFloat32, size, nullptr, token, token + 1);
  }
}

void IndexerStep::rotate(float* x, int64_t token, int64_t position) const {
  if (spec_->rope_kind == RopeKind::kNone) return;
  const int64_t offset = (step_.has_own_angles ? token : position) * (latents_.rotary_dim / 2);
  if (spec_->rotates_last) x += spec_->dim - latents_.rotary_dim;
  level_.rotate(x, step_.cosines[latents_.rope] + offset, step_.sines[latents_.rope] + offset, latents_.rotary_dim,
                spec_->rope_kind == RopeKind::kInterleaved);
}

void IndexerStep::place(int64_t token, const float* query_inputs) {
  if (!chooses_) return;
  if (has_own_[2] && !spec_->takes_hidden) {
    const int64_t stride = spec_->query.inputs * (latents_.takes_raw ? 2 : 1);
    level_.prepare(panels_[2], query_inputs, Format::kFloat32, stride, nullptr, token, token + 1);
  }
  const int64_t position = position_of(sequence_of(step_, token), token);
  const int64_t size = index_key_size(spec_);
  float* key = keys_ + token * size;
  apply_norm(level_, spec_->key_norm, key, spec_->dim, key);
  rotate(key, token, position);
  write_latent(level_, latents_, step_, token, latents_.rank + latents_.rope_dim, key, size);
}

void IndexerStep::place_pool(int64_t token) const {
  const StepSequence& sequence = sequence_of(step_, token);
  const int64_t position = position_of(sequence, token), pool = spec_->pool, dim = spec_->dim;
  if ((position + 1) % pool) return;
  // A pool lies within a block.
  const int64_t block = step_.block_tables[latents_.group][sequence.first_block + position / kCacheBlock];
  const int64_t bytes = bytes_of(latents_.cache_format), first = position % kCacheBlock - pool + 1;
  const char* cache = static_cast<const char*>(latents_.cache) +
                      ((block * latents_.cache_dim + latents_.rank + latents_.rope_dim) * kCacheBlock + first) * bytes;
  float* mean = keys_ + token * index_key_size(spec_);
  float keys[kCacheBlock], gates[kCacheBlock];
  for (int64_t d = 0; d < dim; ++d) {
    level_.widen(cache + d * kCacheBlock * bytes, latents_.cache_format, keys, pool);
    level_.widen(cache + (dim + d) * kCacheBlock * bytes, latents_.cache_format, gates, pool);
    float most = -INFINITY, total = 0.0f, sum = 0.0f;
    for (int64_t i = 0; i < pool; ++i) most = std::max(most, gates[i] += spec_->pool_bias[i * dim + d]);
    for (int64_t i = 0; i < pool; ++i) {
      const float weight = std::exp(gates[i] - most);
      total += weight;
      sum += weight * keys[i];
    }
    mean[d] = sum / total;
  }
  write_latent(level_, latents_, step_, token, latents_.rank + latents_.rope_dim, mean, dim);
}

void IndexerStep::turn(int64_t row) const {
  const int64_t token = passes_.token_of(row), position = position_of(sequence_of(step_, token), token);
  if (sees_all(*spec_, position)) return;
  float* queries = queries_ + token * spec_->heads * spec_->dim;
  for (int64_t head = 0; head < spec_->heads; ++head) {
    rotate(queries + head * spec_->dim, token, position);
    scale_head(spec_->head_scales, head, position, queries + head * spec_->dim, spec_->dim);
  }
}

void IndexerStep::score(int64_t tile, int thread) const {
  const ScorePasses::Tile part = passes_.tile_of(step_, tile);
  if (sees_all(*spec_, part.position) || part.num_blocks <= 0) return;
  IndexScores scores = passes_.scores_of(step_, part, latents_.group);
  scores.query = queries_ + part.token * spec_->heads * spec_->dim;
  scores.weights = weights_ + part.token * spec_->heads;
  scores.scores = scores_ + part.row * passes_.stride() + part.first_block * kCacheBlock;
  scores.keys = static_cast<const char*>(latents_.cache) +
                (latents_.rank + latents_.rope_dim) * kCacheBlock * bytes_of(latents_.cache_format);
  scores.scratch = scratch_ + thread * scratch_size_;
  scores.heads = spec_->heads;
  scores.dim = spec_->dim;
  scores.stride = latents_.cache_dim;
  scores.format = latents_.cache_format;
  level_.score_keys(scores);
}

void IndexerStep::choose(int64_t row, int thread) const {
  const int64_t token = passes_.token_of(row), stride = passes_.stride(), top_k = spec_->top_k;
  const int64_t position = position_of(sequence_of(step_, token), token), keys = position + 1;
  if (sees_all(*spec_, position)) return;
  const int64_t pool = std::max<int64_t>(spec_->pool, 1), num_pools = keys / pool;
  Scored* sorted = sorted_ + thread * stride;
  const float* scores = scores_ + row * stride;
  for (int64_t i = 0; i < num_pools; ++i) {  // the last token of a pool has its score
    const int64_t last = (i + 1) * pool - 1;
    sorted[i] = {scores[last], static_cast<int32_t>(last)};
  }
  choose_best(sorted, num_pools, top_k / pool);
  uint64_t* marks = marks_ + thread * divide_up(most_keys_, 64);
  std::fill(marks, marks + divide_up(keys, 64), uint64_t{0});
  const auto mark = [&](int64_t key) { marks[key / 64] |= uint64_t{1} << key % 64; };
  for (int64_t i = 0; i < top_k; ++i) mark(sorted[i / pool].position - i % pool);
  for (int64_t key = num_pools * pool; key < keys; ++key) mark(key);
  int32_t* chosen = chosen_ + token * most_chosen(*spec_);
  for (int64_t word = 0; word < divide_up(keys, 64); ++word) {
    for (uint64_t rest = marks[word]; rest; rest &= rest - 1) {
      *chosen++ = static_cast<int32_t>(word * 64 + __builtin_ctzll(rest));
    }
  }
}

const char* check_indexer(const Indexer& spec, int64_t hidden_size, int64_t query_inputs, int64_t rotary_dim) {
  if (!is_count(spec.top_k)) return "an indexer that chooses no keys";
  if (spec.chooses && spec.is_window) return "an indexer with a window";
  if (spec.pool && (spec.pool < 0 || kCacheBlock % spec.pool || spec.top_k % spec.pool || spec.is_window)) {
    return "an indexer with impossible pools";
  }
  if (!spec.chooses) return nullptr;
  if (!is_count(spec.heads) || !is_count(spec.dim)) return "an indexer without a size";
  if (!query_inputs && !spec.takes_hidden) return "an indexer without its inputs";
  const int64_t inputs = spec.takes_hidden ? hidden_size : query_inputs;
  if (!is_shaped(spec.query, spec.heads * spec.dim, inputs) || !is_shaped(spec.key, spec.dim, hidden_size) ||
      !is_shaped(spec.weights, spec.heads, hidden_size)) {
    return "an indexer whose projections don't fit its heads";
  }
  if (spec.pool && (!spec.pool_bias || !is_shaped(spec.pool_gate, spec.dim, hidden_size))) {
    return "an indexer whose pools have no gates that fit its keys";
  }
  if (spec.rope_kind < RopeKind::kNone || spec.rope_kind > RopeKind::kInterleaved) return "an unknown kind of positions";
  if (spec.rope_kind != RopeKind::kNone && (rotary_dim <= 0 || rotary_dim > spec.dim)) {
    return "rotary positions that don't fit an index key";
  }
  if (spec.head_scales.scales && !spec.head_scales.offsets) return "queries that are scaled without offsets";
  if (const char* reason = check_norm(spec.query_input_norm)) return reason;
  return check_norm(spec.key_norm);
}

}  // namespace greenroom
