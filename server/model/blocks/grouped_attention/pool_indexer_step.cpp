#include "model/blocks/grouped_attention/pool_indexer_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "formats/checks.h"

namespace greenroom {
namespace {

struct Memory {
  Buffer panels;
  Buffer rows;    // products of a step, and means of threads
  Buffer scores;  // of a pass, and scratch memory of threads
  Buffer chosen;
  Buffer gathered;
};

constexpr int64_t kPartBlocks = kPartKeys / kCacheBlock;
constexpr int64_t kMeanBlocks = 8;  // of means that are scored together; at most as many as of a part

// Copies some neighbours in a block of keys.
template <int64_t kCount, typename Number>
void copy_columns(const Number* from, int64_t dim, Number* to) {
  for (int64_t d = 0; d < dim; ++d) std::memcpy(to + d * kCacheBlock, from + d * kCacheBlock, kCount * sizeof(Number));
}

// The blocks of gathered keys, which lie one after the other.
const int32_t* gathered_blocks() {
  static const auto table = [] {
    struct Table {
      int32_t blocks[kPartBlocks];
    } made{};
    std::iota(made.blocks, made.blocks + kPartBlocks, 0);
    return made;
  }();
  return table.blocks;
}

}  // namespace

PoolIndexerStep::PoolIndexerStep(Context& context, const GroupedAttention& attention, const StepCall& step,
                                 const Panel& panel)
    : level_(context.level),
      attention_(attention),
      spec_(*attention.pools),
      step_(step),
      angles_(spec_.rope_kind == RopeKind::kNone ? 0 : attention.rotary_dim),
      is_sparse_(most_keys(step) > first_sparse(spec_)) {
  auto& own = context.mixers.of<Memory>();
  const bool scores = is_sparse_ && !spec_.is_given;
  const Matrix* matrices[] = {&spec_.query, &spec_.key};
  const auto is_used = [&](int i) { return i == 0 ? scores || !spec_.key.outputs : spec_.key.outputs != 0; };
  Pieces pieces;
  int64_t places[2] = {};
  for (int i = 0; i < 2; ++i) {
    if (!is_used(i)) continue;
    ++num_sides_;
    panels_[i].kind = level_.panel_kind(*matrices[i], step.is_exact);
    has_own_[i] = panels_[i].kind != panel.kind;
    if (has_own_[i]) places[i] = pieces.add(panel_bytes(panels_[i].kind, step.tokens, step.hidden_size));
  }
  char* memory = own.panels.reserve(pieces.bytes);
  for (int i = 0; i < 2; ++i) {
    if (has_own_[i]) panels_[i] = place_panel(panels_[i].kind, step.tokens, step.hidden_size, memory + places[i]);
  }

  const int64_t threads = context.pool.num_threads(), numbers = round_up(step.tokens * width(), 16);
  means_size_ = 2 * round_up(stride(), 16);
  rows_ = own.rows.reserve<float>((numbers + threads * means_size_) * 4);
  means_ = rows_ + numbers;
  if (!is_sparse_) return;

  chosen_ = spec_.chosen ? spec_.chosen : own.chosen.reserve<int32_t>(step.tokens * most_chosen(spec_) * 4);
  gathered_size_ = round_up(kPartKeys * attention.cache_dim * bytes_of(attention.cache_format), 64);
  gathered_ = own.gathered.reserve(threads * 2 * gathered_size_);
  if (!scores) return;

  const int64_t keys = most_keys(step);
  passes_.plan(step.tokens, keys, 1, spec_.pool);
  most_pools_ = keys / spec_.pool;
  scratch_size_ = round_up(index_scratch(spec_.heads, spec_.dim), 16) + kMeanBlocks * kCacheBlock * spec_.dim;
  const int64_t num_scores = round_up(passes_.most_rows() * passes_.stride(), 16), heads = round_up(spec_.heads, 16);
  const int64_t floats = num_scores + heads + threads * scratch_size_;
  scores_ = own.scores.reserve<float>(floats * 4 + threads * most_pools_ * int64_t{sizeof(Scored)});
  weights_ = scores_ + num_scores;
  scratch_ = weights_ + heads;
  scored_ = reinterpret_cast<Scored*>(scores_ + floats);
  std::fill(weights_, weights_ + spec_.heads, 1.0f);
}

Side PoolIndexerStep::side(int number, int64_t offset) const {
  const bool is_key = number == 1 || (num_sides_ == 1 && spec_.key.outputs);
  const Panel* panel = has_own_[is_key] ? panels_ + is_key : nullptr;
  if (is_key) return {&spec_.key, nullptr, offset + query_size(), nullptr, panel, query_size()};
  return {&spec_.query, nullptr, offset, nullptr, panel};
}

void PoolIndexerStep::take(int64_t row, int64_t output, const float* sums, int64_t count) const {
  std::memcpy(rows_ + row * width() + output, sums, static_cast<size_t>(count) * 4);
}

void PoolIndexerStep::prepare(int64_t token) {
  for (int i = 0; i < 2; ++i) {
    if (!has_own_[i]) continue;
    level_.prepare(panels_[i], step_.normed, Format::kFloat32, step_.hidden_size, nullptr, token, token + 1);
  }
}

char* PoolIndexerStep::cached(const StepSequence& sequence, int64_t position) const {
  const int64_t block = step_.block_tables[attention_.group][sequence.first_block + position / kCacheBlock];
  const int64_t row = block * kCacheBlock + position % kCacheBlock;
  return static_cast<char*>(spec_.cache) + row * stride() * bytes_of(attention_.cache_format);
}

void PoolIndexerStep::rotate(float* x, const float* cosines, const float* sines) const {
  if (angles_) level_.rotate(x, cosines, sines, angles_, spec_.rope_kind == RopeKind::kInterleaved);
}

void PoolIndexerStep::place(int64_t token) const {
  const StepSequence& sequence = sequence_of(step_, token);
  const int64_t position = position_of(sequence, token), pairs = angles_ / 2, bytes = bytes_of(attention_.cache_format);
  float* row = rows_ + token * width();
  char* to = cached(sequence, position);
  level_.narrow(row + query_size(), attention_.cache_format, to, spec_.dim);
  const float *cosines = nullptr, *sines = nullptr;
  if (angles_) {
    const int64_t offset = (step_.has_own_angles ? token : position) * pairs;
    cosines = step_.cosines[attention_.rope] + offset;
    sines = step_.sines[attention_.rope] + offset;
    level_.narrow(cosines, attention_.cache_format, to + spec_.dim * bytes, pairs);
    level_.narrow(sines, attention_.cache_format, to + (spec_.dim + pairs) * bytes, pairs);
  }
  if (spec_.is_given || position < first_sparse(spec_)) return;
  for (int64_t head = 0; head < spec_.heads; ++head) {
    float* query = row + head * spec_.dim;
    apply_norm(level_, spec_.query_norm, query, spec_.dim, query);
    rotate(query, cosines, sines);
  }
}

void PoolIndexerStep::place_pool(int64_t token, int thread) const {
  const StepSequence& sequence = sequence_of(step_, token);
  const int64_t position = position_of(sequence, token), dim = spec_.dim, bytes = bytes_of(attention_.cache_format);
  if ((position + 1) % spec_.pool) return;
  const int64_t first = position + 1 - spec_.pool;
  float *mean = means_ + thread * means_size_, *numbers = mean + round_up(stride(), 16);
  std::memset(mean, 0, static_cast<size_t>(dim) * 4);
  for (int64_t i = first; i <= position; ++i) {
    level_.widen(cached(sequence, i), attention_.cache_format, numbers, dim);
    level_.add_scaled(mean, numbers, 1.0f, dim);
  }
  for (int64_t d = 0; d < dim; ++d) mean[d] /= static_cast<float>(spec_.pool);
  apply_norm(level_, spec_.key_norm, mean, dim, mean);
  if (angles_) {
    level_.widen(cached(sequence, first) + dim * bytes, attention_.cache_format, numbers, angles_);
    rotate(mean, numbers, numbers + angles_ / 2);
  }
  level_.narrow(mean, attention_.cache_format, cached(sequence, position), dim);
}

template <typename Number>
void PoolIndexerStep::gather_means(const StepSequence& sequence, int64_t first, int64_t last, Number* to) const {
  for (int64_t pool = first; pool < last; ++pool) {
    const Number* from = reinterpret_cast<const Number*>(cached(sequence, (pool + 1) * spec_.pool - 1));
    const int64_t place = pool - first;
    Number* target = to + place / kCacheBlock * kCacheBlock * spec_.dim + place % kCacheBlock;
    for (int64_t d = 0; d < spec_.dim; ++d) target[d * kCacheBlock] = from[d];
  }
}

void PoolIndexerStep::score(int64_t tile, int thread) const {
  const ScorePasses::Tile part = passes_.tile_of(step_, tile);
  if (part.position < first_sparse(spec_) || part.num_blocks <= 0) return;
  float* scratch = scratch_ + thread * scratch_size_;
  float* means = scratch + round_up(index_scratch(spec_.heads, spec_.dim), 16);
  IndexScores scores = passes_.scores_of(step_, part, attention_.group);
  scores.query = rows_ + part.token * width();
  scores.weights = weights_;
  scores.keys = means;
  scores.blocks = gathered_blocks();
  scores.scratch = scratch;
  scores.heads = spec_.heads;
  scores.dim = scores.stride = spec_.dim;
  scores.format = attention_.cache_format;
  const int64_t num_pools = (part.position + 1) / spec_.pool, end = part.first_block + part.num_blocks;
  for (int64_t block = part.first_block; block < end; block += kMeanBlocks) {
    const int64_t first = block * kCacheBlock, last = std::min(first + kMeanBlocks * kCacheBlock, num_pools);
    if (attention_.cache_format == Format::kFloat32) {
      gather_means(*part.sequence, first, last, means);
    } else {
      gather_means(*part.sequence, first, last, reinterpret_cast<uint16_t*>(means));
    }
    scores.scores = scores_ + part.row * passes_.stride() + first;
    scores.num_blocks = divide_up(last - first, kCacheBlock);
    level_.score_keys(scores);
  }
}

void PoolIndexerStep::choose(int64_t row, int thread) const {
  const int64_t token = passes_.token_of(row), position = position_of(sequence_of(step_, token), token);
  if (position < first_sparse(spec_)) return;
  const int64_t pool = spec_.pool, num_pools = (position + 1) / pool;
  Scored* scored = scored_ + thread * most_pools_;
  const float* scores = scores_ + row * passes_.stride();
  for (int64_t i = 0; i < num_pools; ++i) scored[i] = {scores[i], static_cast<int32_t>(i)};
  choose_best(scored, num_pools, spec_.top_k);
  const auto is_before = [](const Scored& one, const Scored& other) { return one.position < other.position; };
  std::sort(scored, scored + spec_.top_k, is_before);
  int32_t* to = chosen_ + token * most_chosen(spec_);
  for (int64_t i = 0; i < spec_.top_k; ++i) {
    const int64_t first = scored[i].position * pool;
    for (int64_t key = first; key < first + pool; ++key) *to++ = static_cast<int32_t>(key);
  }
  for (int64_t key = num_pools * pool; key <= position; ++key) *to++ = static_cast<int32_t>(key);
}

void PoolIndexerStep::point(Attention& attention, int64_t, int64_t) const {
  const int64_t position = attention.first_position;
  if (is_sparse_ && position >= first_sparse(spec_)) attention.first_position = num_chosen(position) - 1;
}

template <typename Number>
void PoolIndexerStep::gather(const Attention& attention, const int32_t* positions, int64_t count, Number* keys,
                             Number* values) {
  const int64_t dim = attention.dim;
  for (int64_t place = 0, size; place < count; place += size) {  // neighbours in a block of both
    const int64_t position = positions[place], block = attention.blocks[position / kCacheBlock], own = position % kCacheBlock;
    const int64_t most = std::min({kCacheBlock - own, kCacheBlock - place % kCacheBlock, count - place});
    for (size = 1; size < most && positions[place + size] == position + size;) ++size;
    const Number* from = static_cast<const Number*>(attention.keys) + block * kCacheBlock * dim + own;
    Number* to = keys + place / kCacheBlock * kCacheBlock * dim + place % kCacheBlock;
    switch (size) {
      case kCacheBlock: std::copy_n(from, kCacheBlock * dim, to); break;
      case 8: copy_columns<8>(from, dim, to); break;
      case 4: copy_columns<4>(from, dim, to); break;
      default:
        for (int64_t d = 0; d < dim; ++d, from += kCacheBlock, to += kCacheBlock) {
          for (int64_t i = 0; i < size; ++i) to[i] = from[i];
        }
    }
    const Number* rows = static_cast<const Number*>(attention.values) + (block * kCacheBlock + own) * dim;
    std::copy_n(rows, size * dim, values + place * dim);
  }
  // Keys behind the last get no weight; their numbers must be some.
  const int64_t end = round_up(count, kCacheBlock), last = end - kCacheBlock;
  for (int64_t d = 0; d < dim; ++d) {
    Number* row = keys + last * dim + d * kCacheBlock;
    std::fill(row + count - last, row + kCacheBlock, Number{});
  }
  std::fill(values + count * dim, values + end * dim, Number{});
}

void PoolIndexerStep::attend(const Level& level, const Attention& attention, int64_t token, int thread, int64_t part,
                             const PartSums& sums) const {
  const StepSequence& sequence = sequence_of(step_, token);
  const int64_t position = position_of(sequence, token);
  if (!is_sparse_ || position < first_sparse(spec_)) return level.attend(attention, part, sums);
  const int64_t first = part * kPartKeys, count = std::min<int64_t>(kPartKeys, num_chosen(position) - first);
  const int32_t* positions = chosen_ + token * most_chosen(spec_) + first;
  char *keys = gathered_ + thread * 2 * gathered_size_, *values = keys + gathered_size_;
  if (attention.format == Format::kFloat32) {
    gather(attention, positions, count, reinterpret_cast<float*>(keys), reinterpret_cast<float*>(values));
  } else {
    gather(attention, positions, count, reinterpret_cast<uint16_t*>(keys), reinterpret_cast<uint16_t*>(values));
  }
  Attention own = attention;
  own.keys = keys;
  own.values = values;
  own.blocks = gathered_blocks();
  own.first_position = count - 1;
  level.attend(own, 0, sums);
}

const char* check_pool_indexer(const PoolIndexer& spec, int64_t hidden_size, int64_t rotary_dim) {
  if (!is_count(spec.heads) || !is_count(spec.dim)) return "an indexer without a size";
  if (!is_count(spec.top_k) || !is_count(spec.pool)) return "an indexer that chooses no pools";
  const int64_t queries = spec.heads * spec.dim;
  const bool has_key = spec.key.outputs;
  if (!is_shaped(spec.query, has_key ? queries : queries + spec.dim, hidden_size) ||
      (has_key && !is_shaped(spec.key, spec.dim, hidden_size))) {
    return "an indexer whose projections don't fit its heads";
  }
  if (spec.rope_kind < RopeKind::kNone || spec.rope_kind > RopeKind::kInterleaved) return "an unknown kind of positions";
  if (spec.rope_kind != RopeKind::kNone && (rotary_dim <= 0 || rotary_dim > spec.dim)) {
    return "rotary positions that don't fit an index key";
  }
  if (spec.is_given && !spec.chosen) return "an indexer that chooses no pools";
  if (const char* reason = check_norm(spec.query_norm)) return reason;
  return check_norm(spec.key_norm);
}

}  // namespace greenroom
