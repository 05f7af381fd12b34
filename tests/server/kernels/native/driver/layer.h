// Random decoder layers, and the arrays of a step with them.
#pragma once

#include <algorithm>
#include <deque>

#include "slots.h"

namespace driver {

constexpr float kEpsilon = 1e-6f, kHeadEpsilon = 1e-5f;  // epsilons of norms

Weights trunk_weights(int64_t outputs, int64_t inputs);

struct Sequence {
  int64_t first_position, num_tokens, first_row;
  int64_t end() const { return first_position + num_tokens; }
};

// The sizes that all layers of a step share.
struct Plan {
  Plan();

  std::vector<Sequence> sequences;
  int64_t tokens = 0, positions = 0;
  int64_t hidden = one_in(2) ? between(1, 80) : 32 * between(1, 3);
};

// Some tokens of a sequence, computed in one call.
struct Chunk {
  const Sequence* sequence;
  int64_t first, count;
  int64_t number = 0;  // chunks of the sequence before it
};

// The rows of states of a sequence: the given one, which no call writes, and two that chunks write by turns.
constexpr int64_t kStateRows = 3;

// A convolution, and the states of all sequences.
struct Convolved {
  Convolution spec{};
  std::vector<float> states;  // (sequences * kStateRows, kept, channels); NaN where nothing was written
};

// A layer, and the memory that its spec points to.
struct Layer {
  Layer(const Plan& plan, int32_t number);

  // Moves the states that a sequence's last chunk wrote to the row that its first one writes.
  void settle(int64_t sequence, int64_t num_chunks);

  bool has_router() const { return !router.empty(); }
  bool has_dense() const { return !dense.empty(); }
  bool is_projected() const { return !projections.empty(); }
  int64_t oldest_seen(int64_t position) const;

  // Offsets in a cache, in bytes.
  int64_t key_place(const int32_t* table, int64_t head, int64_t position, int64_t d) const {
    const int64_t first = table[position / kCacheBlock] * kCacheBlock;
    const int64_t place = (head * attention.cache_slots + first) * attention.cache_dim + d * kCacheBlock + position % kCacheBlock;
    return place * bytes_of(attention.cache_format);
  }
  int64_t value_place(const int32_t* table, int64_t head, int64_t position, int64_t d) const {
    const int64_t slot = table[position / kCacheBlock] * kCacheBlock + position % kCacheBlock;
    return ((head * attention.cache_slots + slot) * attention.cache_dim + d) * bytes_of(attention.cache_format);
  }

  int64_t index_place(const int32_t* table, int64_t position, int64_t d) const {
    const int64_t first = table[position / kCacheBlock] * kCacheBlock * index_dim + position % kCacheBlock;
    return (first + d * kCacheBlock) * bytes_of(attention.cache_format);
  }

  const Plan& plan;
  int64_t hidden = plan.hidden, kv_heads = between(1, 3), heads = kv_heads * between(1, 6);
  int64_t key_dim = head_size(), value_dim = one_in(2) ? key_dim : head_size();
  bool has_gate = key_dim == value_dim && one_in(2), is_joined = !has_gate && one_in(3);
  int64_t joined = is_joined ? kv_heads * (key_dim + value_dim) : 0;  // outputs of `query` that are keys and values
  Weights query = trunk_weights(heads * key_dim * (has_gate ? 2 : 1) + joined, hidden);
  Weights key = trunk_weights(kv_heads * key_dim, hidden);
  bool shares_keys = key_dim == value_dim && !is_joined && one_in(3), has_own_gate = !has_gate && !is_joined && one_in(2);
  Weights value = trunk_weights(shares_keys ? 1 : kv_heads * value_dim, hidden), output = trunk_weights(hidden, heads * value_dim);
  bool convolves_keys = !is_joined && !shares_keys && one_in(2);
  int64_t num_profiles = between(1, 5);
  Weights profile_weights = trunk_weights(heads * num_profiles, hidden);
  Weights gate = trunk_weights(one_in(2) ? heads : heads * value_dim, hidden);
  Weights sink = trunk_weights(heads, hidden);
  std::deque<Weights> key_taps, value_taps;  // what tokens add to taps; one, or none
  int64_t gate_rank = between(1, 40), index_dim = between(1, 40);
  std::deque<Weights> gate_down, gate_up;        // of the norms before the mixer and the feed-forward part
  std::deque<Weights> index_query, index_key;    // one, or none
  std::deque<std::vector<float>> numbers;
  std::vector<float> cosines, sines, query_scales;
  std::deque<Weights> router, dense_gate;  // one, or none
  std::deque<Weights> projections;         // of the rows of experts, and of their sum; or none
  ResidualGate residual_gates[2]{};
  std::deque<Experts> experts, dense;
  std::vector<int32_t> blocks;  // the block tables of all sequences
  std::vector<char> keys, values, index_keys;
  NormGate gates[2]{};
  KeyBlockIndexer indexer{};
  RelativeBiases relative{};
  Convolved key_inputs, value_inputs, mixer_results, inner_results;
  std::vector<Convolved*> convolutions = {&key_inputs, &value_inputs, &mixer_results, &inner_results};
  GroupedAttention attention{};
  Mixture mixture{};  // of a layer without experts, only the shared part
  LayerSpec spec{};

 private:
  Norm any_norm() { return any_norm(hidden); }
  Norm any_norm(int64_t size);
  const float* keep(int64_t count, float scale, float mean);
  const float* maybe(int64_t count);  // some numbers, or null
  static int64_t head_size();
  void set_attention(int32_t number);
  void set_gates();
  void set_indexer();
  void set_relative();
  void set_convolution(Convolved& of, int64_t channels);
  void set_taps();
  void set_limits();
  void set_experts();
  void set_residual_gates();
  void set_cache();
};

// The arrays of a call for some tokens.
struct Step {
  Step(const Plan& plan, const std::deque<Layer>& layers, const std::vector<Chunk>& chunks,
       const std::vector<float>& given, bool is_exact);
  Step(const Step&) = delete;

  int64_t place_of_choices(int64_t place) const { return place * call.tokens * call.most_top_k; }

  StepCall call{};
  int64_t num_routed = 0;
  std::vector<StepSequence> sequences;
  std::vector<const int32_t*> tables;
  std::vector<const float*> cosines, sines;
  std::vector<float> hidden, normed, weights;
  std::vector<int32_t> chosen;
  std::vector<uint64_t> slots;
  std::vector<int64_t> counts;
};

}  // namespace driver
