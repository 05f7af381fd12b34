// Descriptions with counts that a hostile file may have. What the checks accept gets memory of exactly the
// bytes that its counts stand for, filled with any bits, and runs, so that the sanitizers see any access beyond it.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "hostile.h"
#include "model/blocks/latent_attention/latent_attention.h"

namespace driver {

int64_t rarity, num_accepted[6];

namespace {

constexpr int kLeastRounds = 200, kLeastShare = 50;  // of rounds, one in so many must run, or the checks refuse too much
constexpr int64_t kHostile[] = {0, -1, 1, 2, 3, 15, 63, 64, 65, 1000, INT32_MAX, INT32_MIN, int64_t{1} << 30,
                                int64_t{1} << 40, INT64_MAX, INT64_MIN};

}  // namespace

int64_t maybe(int64_t usual) {
  if (!one_in(rarity)) return usual;
  int64_t near = 0;
  if (one_in(3) && !__builtin_add_overflow(usual, between(-2, 2), &near)) return near;
  return kHostile[between(0, std::size(kHostile) - 1)];
}

char* any_bits(std::deque<std::vector<char>>& memory, int64_t bytes) {
  memory.emplace_back(static_cast<size_t>(std::max<int64_t>(bytes, 1)));
  std::vector<char>& bits = memory.back();
  const bool is_small = one_in(2);
  for (size_t first = 0; first < bits.size(); first += 4) {  // bytes from one word: most of the driver's time otherwise
    uint32_t word = static_cast<uint32_t>(random_bits());
    if (is_small) word &= (~(word >> 2) & ~(word >> 3) & 0x01010101u) * 3;  // 0 to 3 in one byte of four, else 0
    std::memcpy(&bits[first], &word, std::min<size_t>(4, bits.size() - first));
  }
  return bits.data();
}

Matrix any_matrix(int64_t outputs, int64_t inputs, bool is_trunk) {
  Matrix matrix{};
  const int64_t last = is_trunk ? 4 : one_in(4) ? kNumFormats - 1 : 10;  // few sizes suit the formats after the tenth
  matrix.format = static_cast<Format>(maybe32(between(0, last)));
  matrix.outputs = maybe(outputs);
  matrix.inputs = maybe(inputs);
  matrix.is_transposed = !is_trunk && one_in(8);
  matrix.row_block = maybe(one_in(2) ? 1 : outputs);
  matrix.column_block = maybe(one_in(2) ? 16 << between(0, 3) : inputs);
  matrix.scale_format = static_cast<Format>(maybe32(one_in(2) ? 0 : between(0, 7)));
  matrix.block = maybe32(one_in(2) ? 32 : 64);
  return matrix;
}

namespace {

// Makes some parts present that only some formats have.
void add_parts(Matrix& matrix) {
  static const char present = 0;
  for (const void** part : {&matrix.zeros, &matrix.rest, &matrix.divisor, &matrix.order}) {
    if (one_in(4)) *part = &present;
  }
}

}  // namespace

bool is_large(const Matrix& matrix) {
  const Extents extents = extents_of(matrix);
  return std::max({extents.data, extents.scales, extents.zeros, extents.rest, extents.order}) > kMostBytes;
}

void place(Matrix& matrix, std::deque<std::vector<char>>& memory) {
  const Extents extents = extents_of(matrix);
  matrix.data = any_bits(memory, extents.data);
  if (extents.scales) matrix.scales = any_bits(memory, extents.scales);
  if (matrix.zeros) matrix.zeros = any_bits(memory, extents.zeros);
  if (matrix.rest) matrix.rest = any_bits(memory, extents.rest);
  if (matrix.divisor) matrix.divisor = any_bits(memory, extents.divisor);
  if (matrix.order) matrix.order = any_bits(memory, extents.order);
}

namespace {

const void* any_offset(int64_t& end, int64_t bytes) {
  const int64_t offset = maybe(end);
  end = round_up(end + std::clamp<int64_t>(bytes, 0, kMostBytes), 64);
  return reinterpret_cast<const void*>(static_cast<intptr_t>(offset));
}

// Gives the parts of a matrix offsets in a slot that ends at `end`.
void place_in_slot(Matrix& matrix, int64_t& end) {
  add_parts(matrix);
  Extents extents{64, 64, 64, 64, 4, 64};
  if (!check_matrix(matrix)) extents = extents_of(matrix);
  matrix.data = any_offset(end, extents.data);
  matrix.scales = any_offset(end, extents.scales);
  if (matrix.zeros) matrix.zeros = any_offset(end, extents.zeros);
  if (matrix.rest) matrix.rest = any_offset(end, extents.rest);
  if (matrix.divisor) matrix.divisor = any_offset(end, extents.divisor);
  if (matrix.order) matrix.order = any_offset(end, extents.order);
}

// Experts that lie in a slot, or have memory of their own.
struct AnyExperts {
  AnyExperts(int64_t hidden, bool in_slot) : in_slot(in_slot) {
    const int64_t inner = between(1, 70);
    Gate& gate = shape.gate;
    gate = {static_cast<Activation>(maybe32(between(0, 7))), static_cast<int32_t>(between(0, 1)), 0, 1.7f, 7.0f};
    shape.num_parts = maybe32(gate.has_gate && one_in(2) ? 2 : 1);
    gate.is_interleaved = gate.has_gate && shape.num_parts == 1 && one_in(2);
    const int64_t width = inner * (gate.has_gate && shape.num_parts == 1 ? 2 : 1);
    int64_t end = 0;
    for (Matrix& part : shape.first) part = any_matrix(width, hidden, !in_slot);
    shape.second = any_matrix(hidden, inner, !in_slot);
    shape.first_bias = shape.second_bias = -1;
    shape.bias_format = static_cast<Format>(maybe32(between(0, 2)));
    if (!in_slot) return;
    for (Matrix* matrix : {&shape.first[0], &shape.first[1], &shape.second}) place_in_slot(*matrix, end);
    if (one_in(2)) {
      shape.first_bias = maybe(end);
      shape.second_bias = maybe(end + round_up(2 * width * 4, 64));
      end = shape.second_bias >= 0 && shape.second_bias < kMostBytes ? shape.second_bias + hidden * 4 : end;
    }
    slot_bytes = std::clamp<int64_t>(maybe(end), 1, kMostBytes);
  }

  // Gives experts without a slot their memory; returns false if they are too large or impossible.
  bool place_all(std::deque<std::vector<char>>& memory) {
    if (in_slot) return true;
    if (shape.num_parts < 1 || shape.num_parts > kMostParts) return false;
    for (Matrix* matrix : {&shape.first[0], &shape.first[shape.num_parts - 1], &shape.second}) {
      if (check_matrix(*matrix) || is_large(*matrix)) return false;
      place(*matrix, memory);
    }
    return true;
  }

  bool in_slot;
  ExpertShape shape{};
  int64_t slot_bytes = 0;
};

void run_any_matrix(Handle* handle) {
  Matrix matrix = any_matrix(between(1, 130), one_in(4) ? kSuperblock * between(1, 2) : between(1, 200), false);
  add_parts(matrix);
  if (greenroom_check_matrix(&matrix) || is_large(matrix)) return;
  std::deque<std::vector<char>> memory;
  place(matrix, memory);
  LinearCall call{};
  call.matrix = matrix;
  call.rows = between(1, 5);
  call.x = any_bits(memory, call.rows * matrix.inputs * 4);
  call.y = any_bits(memory, call.rows * matrix.outputs * 4);
  call.x_stride = matrix.inputs;
  call.y_stride = matrix.outputs;
  call.is_exact = static_cast<int32_t>(between(0, 1));
  ++num_accepted[0];
  if (greenroom_linear(handle, &call)) std::abort();
}

void run_any_experts(Handle* handle) {
  const int64_t hidden = between(1, 100), tokens = between(1, 5);
  const AnyExperts experts(hidden, true);
  if (greenroom_check_experts(&experts.shape, hidden, experts.slot_bytes)) return;
  std::deque<std::vector<char>> memory;
  const auto slot = reinterpret_cast<uint64_t>(any_bits(memory, experts.slot_bytes));
  std::vector<int32_t> choices;
  for (int64_t token = 0; token < tokens; ++token) choices.push_back(static_cast<int32_t>(token));
  const int32_t starts[] = {0, static_cast<int32_t>(tokens)};
  ExpertBatch batch{};
  batch.slots = &slot;
  batch.starts = starts;
  batch.choices = choices.data();
  batch.x = any_bits(memory, tokens * hidden * 4);
  batch.outputs = reinterpret_cast<float*>(any_bits(memory, tokens * hidden * 4));
  batch.num_experts = batch.top_k = 1;
  batch.x_stride = hidden;
  batch.is_exact = static_cast<int32_t>(between(0, 1));
  ++num_accepted[1];
  if (greenroom_experts(handle, &experts.shape, &batch)) std::abort();
}

// Sizes, where a hostile one may overflow.
int64_t product(int64_t one, int64_t other) {
  int64_t found;
  return __builtin_mul_overflow(one, other, &found) ? 1 : found;
}

int64_t sum(int64_t one, int64_t other) {
  int64_t found;
  return __builtin_add_overflow(one, other, &found) ? 1 : found;
}

// A decoder layer of one sequence, all of whose numbers may be hostile.
class AnyLayer {
 public:
  AnyLayer() : experts_(hidden_, true), dense_(hidden_, false) {
    attention_.heads = maybe(kv_heads_ * between(1, 3));
    attention_.kv_heads = maybe(kv_heads_);
    attention_.key_dim = maybe(between(1, 24));
    attention_.value_dim = maybe(between(1, 24));
    attention_.has_gates_in_query = one_in(3);
    if (attention_.has_gates_in_query && !one_in(4)) attention_.value_dim = attention_.key_dim;
    const int64_t queries = product(attention_.heads, attention_.key_dim);
    const int64_t keys = product(attention_.kv_heads, attention_.key_dim);
    const int64_t values = product(attention_.kv_heads, attention_.value_dim);
    attention_.has_keys_in_query = maybe32(one_in(4));
    attention_.clip = one_in(4) ? static_cast<float>(normal()) : 0.0f;
    const int64_t more = attention_.has_keys_in_query ? sum(keys, values) : 0;
    attention_.query = any_matrix(sum(attention_.has_gates_in_query ? product(queries, 2) : queries, more), hidden_, true);
    if (!more || one_in(8)) attention_.key = any_matrix(keys, hidden_, true);
    const bool has_gate = !attention_.has_gates_in_query && !more && one_in(3);
    if ((!more && !one_in(4)) || one_in(8)) attention_.value = any_matrix(product(attention_.kv_heads, attention_.value_dim), hidden_, true);
    if (has_gate) attention_.gate = any_matrix(product(attention_.heads, one_in(2) ? 1 : attention_.value_dim), hidden_, true);
    attention_.gate_kind = static_cast<GateKind>(maybe32(has_gate || attention_.has_gates_in_query ? between(1, 2) : 0));
    attention_.norms_rotated = static_cast<int32_t>(between(0, 1));
    attention_.scales_queries = static_cast<int32_t>(between(0, 1));
    attention_.output = any_matrix(hidden_, product(attention_.heads, attention_.value_dim), true);
    attention_.rope_kind = static_cast<RopeKind>(maybe32(between(0, 2)));
    attention_.rotary_dim = maybe(2 * between(0, 12));
    attention_.window = maybe(between(0, 9));
    attention_.is_chunked = static_cast<int32_t>(between(0, 1));
    attention_.cache_format = static_cast<Format>(maybe32(between(0, 2)));
    attention_.cache_dim = maybe(std::max(attention_.key_dim, attention_.value_dim));
    attention_.cache_slots = num_blocks() * kCacheBlock;
    spec_.residual_scale = spec_.output_scale = mixture_.experts_scale = mixture_.shared.scale = attention_.scaling = attention_.value_scale = 1.0f;
    spec_.is_parallel = one_in(4);
    mixture_.has_shared = one_in(2);
    const MixerKind other = one_in(2) ? MixerKind::kExternal : MixerKind::kNone;
    spec_.mixer_kind = static_cast<MixerKind>(maybe32(static_cast<int32_t>(one_in(8) ? other : MixerKind::kGroupedAttention)));
    if (spec_.mixer_kind == MixerKind::kLatentAttention) spec_.mixer_kind = MixerKind::kGroupedAttention;
    if (!has_attention()) attention_ = {};
    mixture_.scales_input = one_in(3);
    spec_.mixer = has_attention() ? &attention_ : nullptr;
    if (has_attention() && one_in(3)) {
      indexer_.heads = maybe(attention_.kv_heads);
      indexer_.dim = maybe(between(1, 20));
      indexer_.block_size = maybe(kCacheBlock * between(1, 2));
      indexer_.top_k = maybe(between(1, 3));
      indexer_.num_local = maybe(between(0, 3));
      indexer_.rope_kind = static_cast<RopeKind>(maybe32(between(0, 2)));
      indexer_.query = any_matrix(product(indexer_.heads, indexer_.dim), hidden_, true);
      indexer_.key = any_matrix(indexer_.dim, hidden_, true);
      attention_.indexer = &indexer_;
      attention_.window = one_in(8);
    }
    if (has_attention() && one_in(3)) {
      pools_.heads = maybe(between(1, 5));
      pools_.dim = maybe(between(1, 20));
      pools_.pool = maybe(between(1, 20));
      pools_.top_k = maybe(between(1, 3));
      pools_.rope_kind = static_cast<RopeKind>(maybe32(between(0, 2)));
      const bool has_key = one_in(2);
      pools_.query = any_matrix(product(has_key ? pools_.heads : sum(pools_.heads, 1), pools_.dim), hidden_, true);
      if (has_key) pools_.key = any_matrix(pools_.dim, hidden_, true);
      attention_.pools = &pools_;
      if (!one_in(8)) attention_.indexer = nullptr;
      attention_.window = one_in(8);
    }
    if (one_in(4)) attention_.sink = any_matrix(attention_.heads, hidden_, true);
    if (one_in(4)) attention_.norm_limit = static_cast<float>(normal());
    if (has_attention() && !attention_.has_keys_in_query && one_in(4)) {
      const int64_t sizes[] = {keys, values};
      for (int i = 0; i < 2; ++i) {
        Convolution& by = convolutions_[i];
        by.width = maybe(between(1, 4));
        by.dilation = maybe32(between(1, 3));
        by.channels = maybe(sizes[i]);
        taps_[i] = any_matrix(product(attention_.kv_heads, by.width), hidden_, true);
      }
      attention_.key_convolution = &convolutions_[0];
      if (!one_in(8)) attention_.value_convolution = &convolutions_[1];
      if (one_in(2)) attention_.key_taps = taps_[0];
      if (attention_.key_taps.outputs) attention_.value_taps = taps_[1];
    }
    if (has_attention() && !attention_.has_keys_in_query && !attention_.has_gates_in_query && !has_gate && one_in(4)) {
      mixing_.heads = maybe(attention_.heads);
      mixing_.kv_heads = maybe(attention_.kv_heads);
      mixing_.taps = maybe(between(1, 4));
      mixing_.channels.width = maybe(between(1, 4));
      mixing_.channels.dilation = maybe32(1);
      mixing_.channels.channels = maybe(sum(queries, keys));
      mixing_.of_heads = any_matrix(mixing_.channels.channels, product(mixing_.taps, attention_.key_dim), true);
      if (!one_in(8)) mixing_.of_heads.format = static_cast<Format>(between(0, 2));
      attention_.mixing = &mixing_;
      if (!one_in(8)) attention_.indexer = nullptr;
      if (!one_in(8)) attention_.pools = nullptr;
    }
    if (attention_.value.outputs > 1 && attention_.value_convolution && one_in(2)) {
      attention_.delayed = any_matrix(maybe(between(1, attention_.value.outputs - 1)), hidden_, true);
      attention_.value = any_matrix(attention_.value.outputs - attention_.delayed.outputs, hidden_, true);
      if (!one_in(8)) attention_.has_own_inputs = 0;
      if (one_in(2)) attention_.key_convolution = nullptr;
      if (!attention_.key_convolution) attention_.key_taps = attention_.value_taps = {};
    }
    for (NormGate& gate : gates_) {
      const int64_t rank = maybe(between(1, 20));
      gate = {any_matrix(rank, hidden_, true), any_matrix(hidden_, rank, true)};
    }
    const int64_t num_streams = one_in(10) ? maybe(between(1, 4)) : 0;
    if (num_streams && !one_in(8)) spec_.is_parallel = 0;
    for (StreamMix& mix : mixes_) {
      mix.num_streams = static_cast<int32_t>(num_streams);
      mix.iterations = maybe32(between(0, 3));
      const int64_t outputs = product(mix.num_streams, mix.iterations ? sum(2, mix.num_streams) : 2);
      mix.logits = any_matrix(outputs, product(num_streams, hidden_), true);
    }
    if (num_streams && one_in(2)) {
      for (int i = 0; i < 2; ++i) {
        const int64_t rank = maybe(between(1, 20)), size = product(num_streams, hidden_);
        stream_gates_[i] = {any_matrix(rank, size, true), any_matrix(size, rank, true)};
        mixes_[i].iterations = maybe32(0);
        mixes_[i].logits = any_matrix(num_streams, size, true);
        mixes_[i].gates = &stream_gates_[i];
      }
    }
    if (num_streams && one_in(3)) {
      for (int i = 0; i < 2; ++i) {
        BlockAttention& by = blocks_[i];
        by.num_blocks = maybe32(static_cast<int32_t>(between(0, std::clamp<int64_t>(num_streams, 1, 20) - 1)));
        by.num_queries = maybe32(one_in(3) ? 3 : 1);
        by.starts_block = !i && one_in(2);
        mixes_[i].blocks = &by;
        mixes_[i].gates = nullptr;
        mixes_[i].iterations = 0;
        mixes_[i].logits = {};
      }
      attention_.has_own_inputs = blocks_[0].num_queries == 3 && one_in(2);
    }
    if (num_streams && one_in(2)) {
      ngrams_.num_streams = maybe(num_streams);
      ngrams_.most = maybe(between(2, 4));
      ngrams_.heads = maybe(between(1, 3) * (std::clamp<int64_t>(ngrams_.most, 2, 100) - 1));
      ngrams_.table = any_matrix(between(1, 60), between(1, 12), true);
      ngrams_.table.format = Format::kFloat32;
      const int64_t inputs = product(ngrams_.heads, ngrams_.table.inputs);
      ngrams_.key = any_matrix(product(num_streams, hidden_), inputs, true);
      ngrams_.value = any_matrix(hidden_, inputs, true);
      ngrams_.convolution.width = maybe(between(1, 4));
      ngrams_.convolution.dilation = maybe32(between(1, 4));
      ngrams_.convolution.channels = maybe(product(num_streams, hidden_));
      spec_.ngrams = &ngrams_;
    }
    if (num_streams) spec_.mixer_streams = &mixes_[0];
    if (num_streams) spec_.inner_streams = &mixes_[1];
    if (one_in(num_streams ? 30 : 3)) spec_.input_gate = &gates_[0];
    if (one_in(num_streams ? 30 : 3)) spec_.inner_gate = &gates_[1];
    spec_.feed_forward_kind = static_cast<FeedForwardKind>(maybe32(one_in(4) ? 2 * between(0, 1) : 1));
    spec_.feed_forward = has_router() ? static_cast<const void*>(&mixture_) : &mixture_.shared;
    Router& router = mixture_.router;
    router.num_groups = maybe32(one_in(3) ? 1 : between(1, 90));
    const int64_t num_experts = std::clamp<int64_t>(router.num_groups, 1, 300) * between(2, 4);
    router.top_groups = maybe32(between(1, std::clamp<int64_t>(router.num_groups, 1, 300)));
    router.top_k = maybe32(between(1, 4));
    router.kind = static_cast<RouterKind>(maybe32(between(0, 5)));
    router.is_normalised = static_cast<int32_t>(between(0, 1));
    const bool has_mlp = one_in(4);
    const int64_t width = has_mlp ? maybe(between(1, 40)) : hidden_;
    router.matrix = any_matrix(num_experts, width, true);
    if (has_mlp) {
      router_mlp_.down = any_matrix(width, hidden_, true);
      router_mlp_.first = any_matrix(width, width, true);
      router_mlp_.second = any_matrix(width, width, true);
      router.mlp = &router_mlp_;
    }
    if (one_in(4)) {
      router.num_skips = maybe32(1);
      if (!one_in(8)) router.num_groups = router.top_groups = 1;
      if (!one_in(8)) router.kind = RouterKind::kSoftmaxFirst;
    }
    mixture_.num_experts = maybe32(router.matrix.outputs - router.num_skips);
    if (one_in(4)) {
      mixture_.input_projection = any_matrix(maybe(hidden_), hidden_, true);
      mixture_.output_projection = any_matrix(hidden_, mixture_.input_projection.outputs, true);
    }
    if (one_in(8)) {
      spec_.mixer_residual_gate = &residual_gates_[0];
      if (!one_in(8)) spec_.inner_residual_gate = &residual_gates_[1];
      if (!one_in(8)) spec_.is_parallel = 0;
      if (!one_in(8)) spec_.residual_scale = spec_.output_scale = 1.0f;
    }
    if (one_in(2)) mixture_.shared.weighting = any_matrix(1, hidden_, true);
    mixture_.experts = experts_.shape;
  }

  void run(Handle* handle) {
    attention_.key_cache = attention_.value_cache = indexer_.cache = pools_.cache = any_bits(memory_, 1);  // so that its sizes are checked
    if (!place_all() || greenroom_check_layer(&spec_, hidden_, experts_.slot_bytes)) return;
    const int64_t top_k = has_router() ? mixture_.router.top_k : 1;
    if (has_router() && mixture_.router.matrix.outputs * tokens_ > kMostBytes) return;
    if (attention_.cache_dim > 1000 || attention_.heads > 1000) return;
    const int64_t cache_bytes = attention_.kv_heads * attention_.cache_slots * attention_.cache_dim * bytes_of(attention_.cache_format);
    if (attention_.indexer) {
      const int64_t index_bytes = attention_.cache_slots * indexer_.dim * bytes_of(attention_.cache_format);
      indexer_.cache = any_bits(memory_, index_bytes);
    }
    if (attention_.pools) {
      const int64_t size = pools_.dim + (pools_.rope_kind == RopeKind::kNone ? 0 : attention_.rotary_dim);
      pools_.cache = any_bits(memory_, attention_.cache_slots * size * bytes_of(attention_.cache_format));
    }
    attention_.key_cache = any_bits(memory_, cache_bytes);
    attention_.value_cache = any_bits(memory_, cache_bytes);
    const bool has_rope = attention_.rope_kind != RopeKind::kNone;
    AnyStep any(memory_, hidden_, tokens_, first_position_, has_rope ? attention_.rotary_dim : 0);
    StepCall& step = any.call;
    step.chosen = reinterpret_cast<int32_t*>(any_bits(memory_, tokens_ * top_k * 4));
    step.weights = floats(tokens_ * top_k);
    step.most_top_k = top_k;
    if (spec_.mixer_streams) step.streams = floats(tokens_ * mixes_[0].num_streams * hidden_);
    if (has_router() && mixture_.router.mlp) step.router_rows = floats(tokens_ * router_mlp_.down.outputs);
    if (attention_.mixing) mixing_.channels.states = floats(2 * kept_inputs(mixing_) * mixing_.channels.channels);
    if (spec_.ngrams) {
      step.token_ids = reinterpret_cast<int32_t*>(any_bits(memory_, tokens_ * 4));
      ngrams_.states = reinterpret_cast<int32_t*>(any_bits(memory_, 2 * (ngrams_.most - 1) * 4));
      ngrams_.convolution.states = floats(2 * kept_inputs(ngrams_.convolution) * ngrams_.convolution.channels);
    }
    for (Convolution& by : convolutions_) {
      if (attention_.key_convolution || attention_.value_convolution) by.states = floats(2 * kept_inputs(by) * by.channels);
    }
    ++num_accepted[2];
    if (greenroom_begin_layer(handle, &spec_, &step, 0)) std::abort();
    for (int64_t i = 0; has_router() && i < tokens_ * top_k; ++i) {
      if (step.chosen[i] < 0 || step.chosen[i] >= mixture_.num_experts + mixture_.router.num_skips) std::abort();
    }
    if (greenroom_finish_layer(handle, &spec_, &step, 0, floats(tokens_ * top_k * hidden_))) std::abort();
  }

 private:
  bool has_attention() const {
    return spec_.mixer_kind != MixerKind::kExternal && spec_.mixer_kind != MixerKind::kNone;
  }
  bool has_router() const { return spec_.feed_forward_kind == FeedForwardKind::kExperts; }
  bool has_dense() const { return !has_router() || mixture_.has_shared; }
  int64_t num_blocks() const { return divide_up(first_position_ + tokens_, kCacheBlock); }
  float* floats(int64_t count) { return reinterpret_cast<float*>(any_bits(memory_, count * 4)); }

  bool place_all() {
    std::vector<Matrix*> matrices;
    if (has_attention()) matrices = {&attention_.query, &attention_.key, &attention_.output};
    for (Matrix* matrix : {&attention_.value, &attention_.gate}) {
      if (matrix->outputs) matrices.push_back(matrix);
    }
    if (attention_.indexer) matrices.insert(matrices.end(), {&indexer_.query, &indexer_.key});
    if (attention_.pools) matrices.push_back(&pools_.query);
    if (attention_.pools && pools_.key.outputs) matrices.push_back(&pools_.key);
    for (Matrix* matrix : {&attention_.sink, &attention_.key_taps, &attention_.value_taps, &attention_.delayed}) {
      if (has_attention() && matrix->outputs) matrices.push_back(matrix);
    }
    if (spec_.mixer_streams && !mixes_[0].blocks) matrices.insert(matrices.end(), {&mixes_[0].logits, &mixes_[1].logits});
    for (StreamGates& gates : stream_gates_) {
      if (mixes_[0].gates) matrices.insert(matrices.end(), {&gates.down, &gates.up});
    }
    if (spec_.ngrams) matrices.insert(matrices.end(), {&ngrams_.table, &ngrams_.key, &ngrams_.value});
    if (spec_.input_gate) matrices.insert(matrices.end(), {&gates_[0].down, &gates_[0].up});
    if (spec_.inner_gate) matrices.insert(matrices.end(), {&gates_[1].down, &gates_[1].up});
    if (has_router()) matrices.push_back(&mixture_.router.matrix);
    if (has_router() && mixture_.router.mlp) {
      matrices.insert(matrices.end(), {&router_mlp_.down, &router_mlp_.first, &router_mlp_.second});
    }
    if (attention_.mixing) matrices.push_back(&mixing_.of_heads);
    for (Matrix* matrix : {&mixture_.input_projection, &mixture_.output_projection}) {
      if (has_router() && matrix->outputs) matrices.push_back(matrix);
    }
    if (has_dense() && mixture_.shared.weighting.outputs) matrices.push_back(&mixture_.shared.weighting);
    for (Matrix* matrix : matrices) {
      if (check_matrix(*matrix) || is_large(*matrix)) return false;
      place(*matrix, memory_);
    }
    if (has_dense() && !dense_.place_all(memory_)) return false;
    mixture_.shared.shape = dense_.shape;
    for (Norm* norm : {&spec_.input_norm, &spec_.mixer_norm, &spec_.inner_norm, &spec_.output_norm,
                       &mixture_.router_norm, &mixture_.output_norm, &mixture_.shared.input_norm,
                       &mixture_.shared.output_norm, &mixture_.result_norm, &mixture_.projected_norm}) {
      const bool is_of_hidden = norm == &mixture_.router_norm || norm == &mixture_.shared.input_norm;
      if (one_in(2) || (norm == &spec_.mixer_norm && !has_attention())) continue;
      if (is_of_hidden && spec_.mixer_streams && !one_in(8)) continue;
      if (norm == &mixture_.projected_norm && !mixture_.input_projection.outputs && !one_in(8)) continue;
      *norm = {floats(hidden_), one_in(2) ? floats(hidden_) : nullptr, 1e-5f, static_cast<NormKind>(maybe32(between(1, 3)))};
    }
    for (ResidualGate& gate : residual_gates_) gate = {floats(hidden_), one_in(10) ? nullptr : floats(hidden_), one_in(2) ? nullptr : floats(hidden_)};
    if (one_in(2)) attention_.result_norm = floats(std::clamp<int64_t>(attention_.value_dim, 0, kMostBytes));
    for (Norm* norm : {&indexer_.query_norm, &indexer_.key_norm, &pools_.query_norm, &pools_.key_norm}) {
      const bool is_of_pools = norm == &pools_.query_norm || norm == &pools_.key_norm;
      *norm = {floats(std::clamp<int64_t>(is_of_pools ? pools_.dim : indexer_.dim, 0, kMostBytes)), nullptr, 1e-5f,
               static_cast<NormKind>(maybe32(between(0, 2)))};
    }
    for (BlockAttention& by : blocks_) {
      by.queries = one_in(3) ? nullptr : floats(3 * hidden_);
      for (Norm& norm : by.norms) norm = {floats(hidden_), nullptr, 1e-5f, static_cast<NormKind>(maybe32(between(0, 3)))};
    }
    for (Convolution& by : convolutions_) {
      by.weight = floats(std::clamp<int64_t>(by.width, 0, 100) * std::clamp<int64_t>(by.channels, 0, 1 << 19));
    }
    const int64_t channels = std::clamp<int64_t>(mixing_.channels.channels, 0, 1 << 19);
    mixing_.channels.weight = floats(std::clamp<int64_t>(mixing_.channels.width, 0, 100) * channels);
    mixing_.bias = floats(channels);
    const int64_t width = std::clamp<int64_t>(router_mlp_.down.outputs, 0, kMostBytes);
    for (const float** numbers : {&router_mlp_.down_bias, &router_mlp_.first_bias, &router_mlp_.second_bias}) *numbers = floats(width);
    if (one_in(2)) router_mlp_.carried = floats(width);
    router_mlp_.norm = {floats(width), nullptr, 1e-5f, static_cast<NormKind>(maybe32(between(1, 3)))};
    if (one_in(2)) attention_.query_scales = floats(std::clamp<int64_t>(attention_.query.outputs, 0, kMostBytes));
    if (spec_.ngrams) place_ngrams();
    for (StreamMix& mix : mixes_) {
      mix.bias = floats(std::clamp<int64_t>(mix.logits.outputs, 0, kMostBytes));
      mix.norm = floats(std::clamp<int64_t>(mix.logits.inputs, 0, kMostBytes));
    }
    if (one_in(2)) attention_.value_norm = floats(std::clamp<int64_t>(attention_.value_dim, 0, kMostBytes));
    if (one_in(2)) mixture_.router.expert_scales = floats(has_router() ? mixture_.router.matrix.outputs : 0);
    if (one_in(2)) attention_.query_bias = floats(attention_.query.outputs);
    if (one_in(2)) attention_.output_bias = floats(hidden_);
    if (one_in(2)) attention_.sinks = floats(std::clamp<int64_t>(attention_.heads, 0, kMostBytes));
    if (one_in(2)) mixture_.router.correction = floats(has_router() ? mixture_.router.matrix.outputs : 0);
    return true;
  }

  void place_ngrams() {
    const int64_t channels = std::clamp<int64_t>(ngrams_.convolution.channels, 0, 1 << 19);
    const int64_t heads = std::clamp<int64_t>(ngrams_.heads, 0, 1000), rows = ngrams_.table.outputs;
    for (const float** norm : {&ngrams_.key_norm, &ngrams_.stream_norm, &ngrams_.value_norm}) *norm = floats(16 * hidden_);
    ngrams_.convolution.weight = floats(std::clamp<int64_t>(ngrams_.convolution.width, 0, 100) * channels);
    const auto numbers = [&](int64_t count) { return reinterpret_cast<int64_t*>(any_bits(memory_, count * 8)); };
    ngrams_.multipliers = numbers(std::clamp<int64_t>(ngrams_.most, 0, 100));
    int64_t *sizes = numbers(heads), *offsets = numbers(heads);
    for (int64_t i = 0; i < heads; ++i) {
      sizes[i] = maybe(between(1, rows));
      offsets[i] = maybe(between(0, std::max<int64_t>(0, rows - std::clamp<int64_t>(sizes[i], 0, rows))));
    }
    ngrams_.sizes = sizes;
    ngrams_.offsets = offsets;
  }

  int64_t hidden_ = between(1, 70), tokens_ = between(1, 5), first_position_ = between(0, 30), kv_heads_ = between(1, 3);
  std::deque<std::vector<char>> memory_;
  AnyExperts experts_, dense_;
  GroupedAttention attention_{};
  KeyBlockIndexer indexer_{};
  PoolIndexer pools_{};
  StreamGates stream_gates_[2]{};
  NgramEmbeddings ngrams_{};
  NormGate gates_[2]{};
  StreamMix mixes_[2]{};
  HeadMixing mixing_{};
  RouterMlp router_mlp_{};
  ResidualGate residual_gates_[2]{};
  BlockAttention blocks_[2]{};
  Convolution convolutions_[2]{};
  Matrix taps_[2]{};
  Mixture mixture_{};
  LayerSpec spec_{};
};

// Latent attention of one sequence, all of whose numbers may be hostile.
class AnyLatents {
 public:
  AnyLatents() {
    const int64_t query_rank = one_in(2) ? 0 : between(1, 20), inputs = query_rank ? query_rank : hidden_;
    spec_.heads = maybe(between(1, 20));
    spec_.rank = maybe(between(1, 40));
    spec_.nope_dim = maybe(between(1, 20));
    spec_.rope_dim = maybe(between(0, 12));
    spec_.value_dim = maybe(between(1, 20));
    spec_.takes_raw = maybe32(query_rank && one_in(3));
    spec_.has_gates_in_query = maybe32(query_rank && one_in(3));
    spec_.source_dim = maybe(sum(spec_.rank, spec_.rope_dim));
    spec_.rope_kind = static_cast<RopeKind>(maybe32(between(0, 2)));
    spec_.rotary_dim = maybe(2 * between(0, 6));
    spec_.scales_queries = maybe32(between(0, 1));
    spec_.cache_format = static_cast<Format>(maybe32(between(0, 2)));
    spec_.cache_dim = maybe(sum(spec_.rank, spec_.rope_dim));
    spec_.cache_slots = num_blocks() * kCacheBlock;
    if (query_rank) spec_.query_down = any_matrix(query_rank, hidden_, true);
    const int64_t gates = spec_.has_gates_in_query ? spec_.value_dim : 0;
    spec_.query = any_matrix(product(spec_.heads, sum(sum(spec_.nope_dim, spec_.rope_dim), gates)),
                             spec_.takes_raw ? 2 * inputs : inputs, true);
    if (!one_in(4)) spec_.latent = any_matrix(sum(spec_.rank, spec_.rope_dim), hidden_, true);
    spec_.to_keys = plain_matrix(product(spec_.heads, spec_.rank), spec_.nope_dim);
    spec_.to_values = plain_matrix(product(spec_.heads, spec_.value_dim), spec_.rank);
    spec_.output = any_matrix(hidden_, product(spec_.heads, spec_.value_dim), true);
    if (one_in(2)) spec_.gate = any_matrix(product(spec_.heads, one_in(2) ? 1 : spec_.value_dim), hidden_, true);
    if (one_in(2)) {
      indexer_.takes_hidden = maybe32(!query_rank || one_in(3));
      indexer_.heads = maybe(between(1, 20));
      indexer_.dim = maybe(between(1, 20));
      indexer_.top_k = maybe(between(1, 20));
      indexer_.rope_kind = static_cast<RopeKind>(maybe32(between(0, 2)));
      indexer_.chooses = 1;
      indexer_.rotates_last = one_in(2);
      if (one_in(4)) indexer_.pool = maybe32(int64_t{1} << between(0, 4));
      if (indexer_.pool) indexer_.pool_gate = any_matrix(indexer_.dim, hidden_, true);
      indexer_.is_window = one_in(8);
      indexer_.query = any_matrix(product(indexer_.heads, indexer_.dim), indexer_.takes_hidden ? hidden_ : query_rank, true);
      indexer_.key = any_matrix(indexer_.dim, hidden_, true);
      indexer_.weights = any_matrix(indexer_.heads, hidden_, true);
      spec_.indexer = &indexer_;
      spec_.cache_dim = maybe(sum(sum(spec_.rank, spec_.rope_dim), product(indexer_.dim, indexer_.pool ? 2 : 1)));
    }
    layer_.mixer = &spec_;
    layer_.mixer_kind = MixerKind::kLatentAttention;
    layer_.feed_forward = &mlp_;
    mlp_.shape.num_parts = 1;
    mlp_.shape.first_bias = mlp_.shape.second_bias = -1;
    for (Matrix* matrix : {&mlp_.shape.first[0], &mlp_.shape.second}) {
      *matrix = {};
      matrix->outputs = matrix->inputs = hidden_;
      matrix->data = floats(hidden_ * hidden_);
    }
  }

  void run(Handle* handle) {
    spec_.cache = any_bits(memory_, 1);  // so that its sizes are checked
    if (!spec_.latent.outputs && !one_in(8)) spec_.source = spec_.cache;
    std::vector<Matrix*> matrices = {&spec_.query_down, &spec_.query,  &spec_.latent, &spec_.to_keys,
                                     &spec_.to_values,  &spec_.output, &spec_.gate};
    if (spec_.indexer) matrices.insert(matrices.end(), {&indexer_.query, &indexer_.key, &indexer_.weights});
    if (indexer_.pool) matrices.push_back(&indexer_.pool_gate);
    for (Matrix* matrix : matrices) {
      if (!matrix->outputs && (matrix == &spec_.query_down || matrix == &spec_.gate || matrix == &spec_.latent)) continue;
      if (check_matrix(*matrix) || is_large(*matrix)) return;
      place(*matrix, memory_);
    }
    if (one_in(2)) spec_.query_norm = floats(spec_.query_down.outputs);
    spec_.latent_norm = floats(std::clamp<int64_t>(spec_.rank, 0, kMostBytes));
    if (one_in(2)) spec_.rope_norm = floats(std::clamp<int64_t>(spec_.rope_dim, 0, kMostBytes));
    indexer_.key_norm = {floats(std::clamp<int64_t>(indexer_.dim, 0, kMostBytes)), nullptr, 1e-5f,
                         static_cast<NormKind>(maybe32(between(0, 2)))};
    if (indexer_.takes_hidden && one_in(2)) indexer_.query_input_norm = {floats(hidden_), nullptr, 1e-5f, NormKind::kLayer};
    const int64_t most_heads = std::clamp<int64_t>(std::max(spec_.heads, indexer_.heads), 0, kMostBytes);
    if (one_in(2)) spec_.head_scales = {floats(most_heads), floats(most_heads)};
    if (one_in(2)) indexer_.head_scales = {floats(most_heads), one_in(8) ? nullptr : floats(most_heads)};
    if (one_in(2)) spec_.latent_bias = floats(spec_.latent.outputs);
    if (one_in(2)) spec_.sinks = floats(most_heads);
    if (indexer_.pool) indexer_.pool_bias = floats(std::clamp<int64_t>(indexer_.pool, 0, 64) * std::clamp<int64_t>(indexer_.dim, 0, kMostBytes / 64));
    if (greenroom_check_layer(&layer_, hidden_, 0)) return;
    if (spec_.cache_dim > 1000 || spec_.heads > 1000) return;
    if (spec_.source_dim > 1000) return;
    spec_.cache = any_bits(memory_, spec_.cache_slots * spec_.cache_dim * bytes_of(spec_.cache_format));
    if (spec_.source) {
      spec_.source = any_bits(memory_, spec_.cache_slots * std::max<int64_t>(spec_.source_dim, 0) * bytes_of(spec_.cache_format));
    }
    const bool has_rope = spec_.rope_kind != RopeKind::kNone;
    AnyStep any(memory_, hidden_, tokens_, first_position_, has_rope ? spec_.rotary_dim : 0);
    layer_.residual_scale = layer_.output_scale = 1.0f;
    ++num_accepted[3];
    if (greenroom_begin_layer(handle, &layer_, &any.call, 0)) std::abort();
  }

 private:
  static Matrix plain_matrix(int64_t outputs, int64_t inputs) {
    Matrix matrix = any_matrix(outputs, inputs, true);
    if (!one_in(8)) matrix.format = static_cast<Format>(between(0, 2));
    return matrix;
  }
  int64_t num_blocks() const { return divide_up(first_position_ + tokens_, kCacheBlock); }
  float* floats(int64_t count) { return reinterpret_cast<float*>(any_bits(memory_, count * 4)); }

  int64_t hidden_ = between(1, 70), tokens_ = between(1, 12), first_position_ = between(0, 30);
  std::deque<std::vector<char>> memory_;
  Indexer indexer_{};
  LatentAttention spec_{};
  Mlp mlp_{};
  LayerSpec layer_{};
};

}  // namespace

void run_hostile(Handle* handle, int num_rounds) {
  std::fill(std::begin(num_accepted), std::end(num_accepted), 0);
  for (int round = 0; round < num_rounds; ++round) {
    rarity = 4 << between(0, 4);
    run_any_matrix(handle);
    run_any_experts(handle);
    AnyLayer().run(handle);
    AnyLatents().run(handle);
    run_any_recurrent(handle);
    run_any_compressed(handle);
  }
  for (const int64_t number : num_accepted) {
    if (num_rounds >= kLeastRounds && number < num_rounds / kLeastShare) {
      std::printf("only %ld of %d hostile descriptions ran\n", static_cast<long>(number), num_rounds);
      ++num_wrong;
    }
  }
}

}  // namespace driver
