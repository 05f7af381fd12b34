// What an indexer of blocks does in a step.
#pragma once

#include "layers/best_scores.h"
#include "layers/key_choice.h"
#include "layers/score_passes.h"
#include "model/blocks/grouped_attention/grouped_attention.h"

namespace greenroom {

// Writes the index keys of a step's tokens to their blocks, scores the keys that a token sees, and chooses the blocks that
// each head of keys attends to: as a table of its own of blocks of the cache, by which attention sees no other keys. Where
// a token sees no more blocks than are chosen, nothing is scored. Scores are computed in passes over some tokens.
class KeyBlockIndexerStep final : public KeyChoice {
 public:
  // `attention` has such an indexer. `panel` is the attention's.
  KeyBlockIndexerStep(Context& context, const GroupedAttention& attention, const StepCall& step, const Panel& panel);

  // Index keys, and queries if some are scored.
  int num_sides() const override { return num_sides_; }
  Side side(int number, int64_t offset) const override;
  void take(int64_t row, int64_t output, const float* sums, int64_t count) const override;
  void prepare(int64_t token) override;

  // Norms and rotates the index key of a token and its queries, and writes the key to the cache.
  void place(int64_t token) const override;

  bool begin_pass() override { return passes_.begin(); }
  int64_t num_score_tiles() const override { return passes_.num_tiles(); }
  int64_t num_choices() const override { return passes_.rows() * spec_.heads; }
  void score(int64_t tile, int thread) const override;
  void choose(int64_t choice, int thread) const override;
  void point(Attention& attention, int64_t token, int64_t head) const override;

 private:
  void rotate(float* x, int64_t token, int64_t position) const;
  void write_key(int64_t token, int64_t position, const float* key) const;

  const Level& level_;
  const GroupedAttention& attention_;
  const KeyBlockIndexer& spec_;
  const StepCall& step_;
  bool is_sparse_ = false, attends_ = false;
  int num_sides_ = 0;
  bool has_own_[2]{};  // key, query: the kind of rows that it takes is not the attention's
  Panel panels_[2]{};
  float *keys_ = nullptr, *queries_ = nullptr;  // by token
  float* scores_ = nullptr;                     // (rows of the pass, heads, stride)
  float* scratch_ = nullptr;                    // of threads
  Scored* scored_ = nullptr;                    // of threads
  int32_t *tables_ = nullptr, *last_places_ = nullptr;
  int64_t scratch_size_ = 0, most_blocks_ = 0, table_size_ = 0;
  ScorePasses passes_;
};

}  // namespace greenroom
