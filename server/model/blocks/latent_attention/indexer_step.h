// What an indexer does in a step.
#pragma once

#include "layers/best_scores.h"
#include "layers/score_passes.h"
#include "layers/sides.h"
#include "model/blocks/latent_attention/latent_attention.h"

namespace greenroom {

// Writes the index keys of a step's tokens to their blocks, scores the keys that a token sees, and chooses the best. Where
// a token sees no more than the indexer chooses, it takes all of them, and nothing is scored.
class IndexerStep {
 public:
  // `latents` may have no indexer: then nothing has tiles. `panel` and `query_panel` are those of the attention.
  IndexerStep(Context& context, const LatentAttention& latents, const StepCall& step, const Panel& panel,
              const Panel& query_panel);

  // Returns true if some token attends to chosen keys.
  bool is_sparse() const { return is_sparse_; }

  // Returns the chosen keys of a token, or null if it attends to all that it sees.
  const int32_t* chosen(int64_t token) const;
  int64_t num_chosen(int64_t token) const;  // of such a token

  // The products with the normed rows, and the one with the attention's inputs of queries, whose outputs begin at `offset`.
  // The third product with the rows is that of queries, if they take these.
  int num_sides() const { return num_sides_; }
  Side side(int number, int64_t offset) const;
  // The part that such a product is of: key, weights, query, or gates of pools, which follow keys.
  int part_of(int number) const { return !spec_->pool || number == 0 ? number : number == 1 ? 3 : number - 1; }
  bool has_queries() const { return chooses_ && is_sparse_ && !spec_->takes_hidden; }
  const float* query_rows() const { return query_rows_; }  // (tokens, hidden) that queries take
  Side query_side(int64_t offset) const;
  void take(int64_t row, int64_t output, const float* sums, int64_t count) const;
  void take_query(int64_t row, int64_t output, const float* sums, int64_t count) const;

  // Prepares a token's normed row.
  void prepare(int64_t token);

  // Prepares the inputs of a token's queries, and writes its index key to the cache.
  void place(int64_t token, const float* query_inputs);

  // Writes the mean of a pool to the cache, if a token is its last. The keys of all tokens are there.
  bool has_pools() const { return chooses_ && spec_->pool; }
  void place_pool(int64_t token) const;

  // Begins the next pass; returns false if there is none.
  bool begin_pass() { return passes_.begin(); }
  int64_t pass_rows() const { return passes_.rows(); }
  int64_t num_score_tiles() const { return passes_.num_tiles(); }
  void turn(int64_t row) const;  // rotates the queries
  void score(int64_t tile, int thread) const;
  void choose(int64_t row, int thread) const;

 private:
  void rotate(float* x, int64_t token, int64_t position) const;
  void take_windows() const;

  const Level& level_;
  const LatentAttention& latents_;
  const Indexer* spec_;
  const StepCall& step_;
  const bool chooses_;
  bool is_sparse_ = false;
  int64_t most_keys_ = 0;   // that a token sees
  int num_sides_ = 0;
  bool has_own_[4]{};       // key, weights, query, gates of pools: the kind of rows that it takes is not the attention's
  Panel panels_[4]{};
  int32_t* chosen_ = nullptr;
  float *keys_ = nullptr, *weights_ = nullptr, *queries_ = nullptr;  // by token
  float* query_rows_ = nullptr;  // by token
  float* scores_ = nullptr;                                         // by row of the pass
  float* scratch_ = nullptr;                                        // of threads
  Scored* sorted_ = nullptr;
  uint64_t* marks_ = nullptr;
  int64_t scratch_size_ = 0;
  ScorePasses passes_;
};

}  // namespace greenroom
