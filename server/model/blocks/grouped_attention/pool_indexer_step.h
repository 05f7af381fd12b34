// What an indexer of pools does in a step.
#pragma once

#include "layers/best_scores.h"
#include "layers/key_choice.h"
#include "layers/score_passes.h"
#include "model/blocks/grouped_attention/grouped_attention.h"

namespace greenroom {

// Writes the index keys of a step's tokens and the means of pools that they complete to the cache, scores the pools that a
// token sees, and chooses some. The keys and values of these are gathered where attention needs them, part by part. Where a
// token sees no more pools than are chosen, nothing is scored.
class PoolIndexerStep final : public KeyChoice {
 public:
  // `attention` has such an indexer. `panel` is the attention's.
  PoolIndexerStep(Context& context, const GroupedAttention& attention, const StepCall& step, const Panel& panel);

  int num_sides() const override { return num_sides_; }
  Side side(int number, int64_t offset) const override;
  void take(int64_t row, int64_t output, const float* sums, int64_t count) const override;
  void prepare(int64_t token) override;
  void place(int64_t token) const override;
  bool has_pools() const override { return true; }
  void place_pool(int64_t token, int thread) const override;
  bool begin_pass() override { return passes_.begin(); }
  int64_t num_score_tiles() const override { return passes_.num_tiles(); }
  int64_t num_choices() const override { return passes_.rows(); }
  void score(int64_t tile, int thread) const override;
  void choose(int64_t row, int thread) const override;
  void point(Attention& attention, int64_t token, int64_t head) const override;
  void attend(const Level& level, const Attention& attention, int64_t token, int thread, int64_t part,
              const PartSums& sums) const override;

 private:
  int64_t stride() const { return spec_.dim + angles_; }  // numbers of a token in the cache
  int64_t query_size() const { return spec_.heads * spec_.dim; }
  int64_t width() const { return query_size() + spec_.dim; }
  int64_t num_chosen(int64_t position) const { return spec_.top_k * spec_.pool + (position + 1) % spec_.pool; }
  char* cached(const StepSequence& sequence, int64_t position) const;  // its row
  template <typename Number>
  void gather_means(const StepSequence& sequence, int64_t first, int64_t last, Number* to) const;
  void rotate(float* x, const float* cosines, const float* sines) const;
  template <typename Number>
  static void gather(const Attention& attention, const int32_t* positions, int64_t count, Number* keys, Number* values);

  const Level& level_;
  const GroupedAttention& attention_;
  const PoolIndexer& spec_;
  const StepCall& step_;
  const int64_t angles_;  // cosines and sines of a token
  const bool is_sparse_;
  int num_sides_ = 0;
  bool has_own_[2]{};  // query, key: the kind of rows that it takes is not the attention's
  Panel panels_[2]{};
  float* rows_ = nullptr;     // (tokens, queries and key)
  float* means_ = nullptr;    // of threads
  float* scores_ = nullptr;   // (rows of the pass, stride)
  float* weights_ = nullptr;  // (heads), ones
  float* scratch_ = nullptr;  // of threads, and means of some pools in blocks
  Scored* scored_ = nullptr;  // of threads
  int32_t* chosen_ = nullptr;
  char* gathered_ = nullptr;  // of threads: the keys of a part, and their values
  int64_t scratch_size_ = 0, means_size_ = 0, most_pools_ = 0, gathered_size_ = 0;
  ScorePasses passes_;
};

}  // namespace greenroom
