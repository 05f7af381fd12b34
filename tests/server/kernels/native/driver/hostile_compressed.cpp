// Attention to compressed keys of one sequence, all of whose numbers may be hostile.

#include <cstdlib>

#include "hostile.h"
#include "model/blocks/compressed_attention/compressed_attention.h"

namespace driver {
namespace {

constexpr int64_t kMostSize = 1000;  // of numbers that no memory of the description bounds

class AnyCompressed {
 public:
  AnyCompressed() {
    const int64_t heads = between(1, 20), dim = between(1, 24), groups = between(1, 3), series = between(1, 2);
    const int64_t query_rank = between(1, 20), index_heads = between(1, 9), index_dim = between(1, 20);
    spec_.heads = maybe(heads * groups);
    spec_.dim = maybe(dim);
    spec_.num_groups = maybe(groups);
    spec_.rotary_dim = maybe(2 * between(0, 6));
    spec_.rope_kind = static_cast<RopeKind>(maybe32(between(0, 2)));
    spec_.window = maybe(between(1, 20));
    spec_.cache_format = static_cast<Format>(maybe32(between(0, 2)));
    spec_.query_down = any_matrix(query_rank, hidden_, true);
    spec_.query = any_matrix(heads * groups * dim, query_rank, true);
    spec_.key = any_matrix(dim, hidden_, true);
    spec_.groups = any_matrix(groups * kBlock * between(1, 2), heads * dim, true);
    spec_.output = any_matrix(hidden_, spec_.groups.outputs, true);
    spec_.overlaps = maybe32(series - 1);
    spec_.period = maybe(between(1, 9));
    has_keys_ = !one_in(4);
    has_index_ = has_keys_ && one_in(2);
    if (has_keys_) set(spec_.keys, dim, series);
    if (has_index_) {
      set(spec_.index, index_dim, series);
      spec_.index_query = any_matrix(index_heads * index_dim, query_rank, true);
      spec_.index_weights = any_matrix(index_heads, hidden_, true);
      spec_.index_heads = maybe(index_heads);
      spec_.top_k = maybe(between(1, 9));
      spec_.chooses = maybe32(1);
    }
    spec_.cache_dim = maybe(dim + 2 * series * (has_keys_ * dim + has_index_ * index_dim));
    spec_.cache_slots = divide_up(first_position_ + tokens_, kCacheBlock) * kCacheBlock;
    spec_.scaling = 1.0f;
    layer_.mixer = &spec_;
    layer_.mixer_kind = MixerKind::kCompressedAttention;
    layer_.feed_forward_kind = FeedForwardKind::kNone;
    layer_.residual_scale = layer_.output_scale = 1.0f;
  }

  void run(Handle* handle) {
    spec_.cache = any_bits(memory_, 1);  // so that its sizes are checked
    std::vector<Matrix*> matrices = {&spec_.query_down, &spec_.query, &spec_.key, &spec_.groups, &spec_.output};
    if (has_keys_) matrices.insert(matrices.end(), {&spec_.keys.key, &spec_.keys.gate});
    if (has_index_) {
      matrices.insert(matrices.end(),
                      {&spec_.index.key, &spec_.index.gate, &spec_.index_query, &spec_.index_weights});
    }
    for (Matrix* matrix : matrices) {
      if (check_matrix(*matrix) || is_large(*matrix)) return;
      place(*matrix, memory_);
    }
    for (const int64_t count : {spec_.period, spec_.dim, spec_.cache_dim, spec_.heads, spec_.top_k}) {
      if (count > kMostSize) return;
    }
    const int64_t dim = std::max<int64_t>(spec_.dim, 0);
    spec_.query_norm = floats(spec_.query_down.outputs);
    spec_.head_norm = floats(dim);
    spec_.key_norm = floats(dim);
    if (one_in(2)) spec_.sinks = floats(std::max<int64_t>(spec_.heads, 0));
    for (Compressor* of : {&spec_.keys, &spec_.index}) {
      if (!of->key.outputs) continue;
      of->bias = floats(std::max<int64_t>(spec_.period, 0) * of->key.outputs);
      of->norm = floats(std::clamp<int64_t>(of->dim, 0, kMostBytes));
    }
    if (greenroom_check_layer(&layer_, hidden_, 0)) return;
    spec_.cache = any_bits(memory_, spec_.cache_slots * spec_.cache_dim * bytes_of(spec_.cache_format));
    AnyStep any(memory_, hidden_, tokens_, first_position_, spec_.rope_kind == RopeKind::kNone ? 0 : spec_.rotary_dim);
    ++num_accepted[5];
    if (greenroom_begin_layer(handle, &layer_, &any.call, 0)) std::abort();
  }

 private:
  void set(Compressor& of, int64_t dim, int64_t series) {
    of.dim = maybe(dim);
    of.key = any_matrix(series * dim, hidden_, true);
    of.gate = any_matrix(series * dim, hidden_, true);
  }

  float* floats(int64_t count) { return reinterpret_cast<float*>(any_bits(memory_, count * 4)); }

  int64_t hidden_ = between(1, 70), tokens_ = between(1, 12), first_position_ = between(0, 60);
  bool has_keys_ = false, has_index_ = false;
  Memory memory_;
  CompressedAttention spec_{};
  LayerSpec layer_{};
};

}  // namespace

void run_any_compressed(Handle* handle) { AnyCompressed().run(handle); }

}  // namespace driver
