// What attention to compressed keys does in a step.
#pragma once

#include "layers/attention_parts.h"
#include "layers/best_scores.h"
#include "layers/score_passes.h"
#include "layers/token_cache.h"
#include "model/blocks/compressed_attention/compressed_attention.h"

namespace greenroom {

// The attention of a layer: functions of the tiles of its phases, and their memory.
class CompressedStep {
 public:
  CompressedStep(Context& context, const LayerSpec& layer, const CompressedAttention& spec, const StepCall& step);

  // Offsets of the outputs of the matrices that take the normed rows, among those of all; the rows of these.
  int64_t first_key() const { return spec_.query_down.outputs; }
  int64_t first_weight() const { return first_key() + cached_size(spec_); }
  int64_t query_size() const { return spec_.heads * spec_.dim; }
  int64_t width() const { return width_; }

  // Returns true if some token attends to chosen compressed keys, which an index has to choose.
  bool chooses() const { return is_sparse_ && spec_.chooses; }
  bool has_periods() const { return spec_.keys.key.outputs > 0; }
  bool has_index() const { return spec_.index.key.outputs > 0; }

  void norm(int64_t token);
  void take_first(int64_t row, int64_t output, const float* sums, int64_t count) const;
  void take_query(int64_t row, int64_t output, const float* sums, int64_t count) const;

  // Norms the parts of a token, and writes its key and what is compressed to the cache.
  void place(int64_t token);

  // Writes the compressed keys of a period to the cache, if a token is its last. Those of all tokens are there.
  void compress(int64_t token, int thread) const;

  // Norms and rotates the queries of a token.
  void turn(int64_t token) const;

  // Begins the next pass of scores; returns false if there is none.
  bool begin_pass() { return passes_.begin(); }
  int64_t pass_rows() const { return passes_.rows(); }
  int64_t num_score_tiles() const { return passes_.num_tiles(); }
  void score(int64_t tile, int thread) const;
  void choose(int64_t row, int thread) const;

  void plan_attention();
  int64_t num_attend_tiles() const { return parts_.num_tiles(); }
  int64_t num_joins() const { return parts_.num_joins(); }
  void attend(int64_t tile, int thread);
  void join(int64_t tile);

  // Rotates the results of a token back, and prepares them for the products of groups.
  void finish_heads(int64_t token, int thread);
  int64_t num_group_tiles() const;
  void multiply_groups(int64_t tile) const;

  void prepare_output(int64_t token);
  void take_output(int64_t row, int64_t output, const float* sums, int64_t count) const;

  Panel panel{};         // (tokens, hidden)
  Panel query_panel{};   // (tokens, query_rank)
  Panel output_panel{};  // (tokens, groups.outputs)
  float* rows;           // (tokens, width): queries before their norm, what is cached, weights of index heads
  float* grouped;        // (tokens, groups.outputs)

 private:
  // The keys of a token: compressed ones, and then those of the window.
  struct Keys {
    const int32_t* chosen;  // numbers of compressed keys; null for all
    int64_t compressed, oldest, total;
  };

  int64_t position_at(int64_t token) const { return position_of(sequence_of(step_, token), token); }
  bool sees_all(int64_t position) const { return !has_index() || (position + 1) / spec_.period <= spec_.top_k; }
  Keys keys_of(int64_t token) const;
  TokenCache cache() const { return {spec_.cache, spec_.cache_dim, spec_.cache_format, spec_.group}; }
  float* own_scratch(int thread) const { return scratch_ + thread * scratch_size_; }

  // Rotates the last numbers of x, or rotates them back with some memory.
  void rotate(float* x, int64_t dim, int64_t place, float* back) const;
  int64_t place_of(int64_t token) const { return step_.has_own_angles ? token : position_at(token); }

  // Makes the key of the period that ends at a position, of what `read(position, first, numbers)` gives of its tokens.
  template <typename Read>
  const float* compress(const Compressor& of, int64_t position, float* scratch, Read read) const;

  // What the cache has of a token for compressed keys, and the compressed key of a period by its last token.
  int64_t compressed_size() const { return 2 * spec_.keys.key.outputs; }
  char* compressed_in(const StepSequence& sequence, int64_t position) const;
  char* compressed_key_in(const StepSequence& sequence, int64_t last) const;

  // Copies a part of a token's keys into blocks of their own.
  template <typename Number>
  void gather(const StepSequence& sequence, const Keys& keys, int64_t first, Number* to) const;

  struct Tile {
    int64_t token, head, heads;
  };

  Tile tile_of(int64_t tile) const;
  Attended target_of(const Tile& tile) const;

  const Level& level_;
  const LayerSpec& layer_;
  const CompressedAttention& spec_;
  const StepCall& step_;
  const int64_t width_, series_;
  const LatentScratch places_;
  Buffer& parts_memory_;
  AttentionParts parts_;
  const MixerResults results_;
  bool is_sparse_ = false;
  int64_t most_keys_, num_threads_, scratch_size_ = 0, head_tiles_ = 1;
  ScorePasses passes_;
  Panel groups_panel_{};                                      // (tokens * num_groups, inputs of a group)
  float *queries_, *index_queries_, *scratch_;  // results of attention take the place of queries
  float* scores_ = nullptr;
  Scored* sorted_ = nullptr;
  uint64_t* marks_ = nullptr;
  int32_t* chosen_ = nullptr;
  const int32_t* blocks_;  // of gathered keys
};

}  // namespace greenroom
