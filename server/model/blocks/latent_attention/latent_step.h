// What latent attention does in a step.
#pragma once

#include "layers/attention_parts.h"
#include "model/blocks/latent_attention/indexer_step.h"
#include "model/blocks/latent_attention/latent_attention.h"
#include "model/blocks/latent_attention/latent_expansion.h"

namespace greenroom {

// The attention of a layer: functions of the tiles of its phases, and their memory. Queries are absorbed, attended and
// expanded in passes over some rows of the step, so that their memory does not grow with it.
class LatentStep {
 public:
  LatentStep(Context& context, const LayerSpec& layer, const LatentAttention& spec, const StepCall& step,
             const LatentExpansion& expansion);

  int64_t attended_size() const { return attended_size_; }
  int64_t query_rank() const { return query_rank_; }
  int64_t downs_size() const { return downs_size_; }  // numbers of a token that queries take

  // Offsets of the outputs of the first matrices among those of all.
  int64_t first_latent() const { return query_rank_ ? query_rank_ : queries_size_; }
  int64_t first_gate() const { return first_latent() + latent_size_; }
  bool has_gates() const { return gates_size_ > 0; }

  void norm(int64_t token);
  void take_first(int64_t row, int64_t output, const float* sums, int64_t count) const;
  void take_query(int64_t row, int64_t output, const float* sums, int64_t count) const;

  // Norms the parts of one token, and writes its latent to the cache.
  void place(int64_t token);

  // Begins the next pass; returns false if there is none. Each token with chosen keys is attended on its own, so more heads
  // take turns with them. So do those of a token whose keys are divided among threads.
  bool begin_pass(const IndexerStep& indexer);
  bool is_last_pass() const { return first_ + rows_ == step_.tokens; }

  int64_t pass_rows() const { return rows_; }
  int64_t num_absorb_tiles() const { return spec_.heads * row_tiles() * divide_up(spec_.rank, kOutputTile); }
  int64_t num_attend_tiles() const { return parts_.num_tiles(); }
  int64_t num_joins() const { return parts_.num_joins(); }
  int64_t num_value_tiles() const { return spec_.heads * row_tiles() * divide_up(spec_.value_dim, kOutputTile); }

  // Rotates and scales the queries of a row of the pass.
  void turn(int64_t row);

  void absorb(int64_t tile) const;
  void attend(const IndexerStep& indexer, int64_t tile, int thread);
  void join(const IndexerStep& indexer, int64_t tile);
  void expand(int64_t tile) const;

  // Finishes the results of heads: adds what adapters add, and multiplies them by gates.
  void finish_heads(int64_t row, int thread) const;

  void prepare_output(int64_t token);
  void take_output(int64_t row, int64_t output, const float* sums, int64_t count) const;

  Panel panel{};         // (tokens, hidden)
  Panel query_panel{};   // (tokens, downs_size)
  Panel output_panel{};  // (tokens, heads * value_dim)
  float* downs;          // (tokens, downs_size)
  float* attended;       // (tokens, heads * value_dim)

 private:
  static int64_t most_rows(const LatentAttention& spec);

  int64_t row_tiles() const { return divide_up(rows_, kRowTile); }

  // Calls a function with each sequence that has rows in the pass, the first of them, and their number.
  template <typename Function>
  void each_piece(Function function) const {
    for (const StepSequence* sequence = step_.sequences; sequence < step_.sequences + step_.num_sequences; ++sequence) {
      const int64_t first = std::max<int64_t>(first_, sequence->first_row);
      const int64_t end = std::min<int64_t>(first_ + rows_, sequence->first_row + sequence->num_tokens);
      if (first < end) function(*sequence, first, end - first);
    }
  }

  void rotate(float* x, int64_t token, int64_t position) const;
  void copy_latent(int64_t token) const;  // from the layer that has it

  // Multiplies some rows of a panel of all heads by a tile of one head's `size` outputs.
  template <typename Target>
  void multiply_heads(const Matrix& matrix, const Panel& panel, int64_t size, int64_t tile, Target target) const;

  // Some tokens of a sequence, and some heads.
  struct Tile {
    const StepSequence* sequence;
    int64_t token, tokens, head, heads;
  };

  Tile tile_of(int64_t tile) const;
  void plan_parts(const IndexerStep& indexer);
  int64_t num_parts(const IndexerStep& indexer, const StepSequence& sequence, int64_t token) const;
  void attend_tokens(const IndexerStep& indexer, const Tile& tile, int64_t number, int thread);

  // The attention of some tokens that see all keys, or of one that sees chosen ones.
  LatentAttend attend_of(const IndexerStep& indexer, const Tile& tile) const;
  Attended target_of(const Tile& tile) const;
  void prepare_values(const Tile& tile);

  const LatentExpansion& expansion_;
  const Level& level_;
  const LayerSpec& layer_;
  const LatentAttention& spec_;
  const StepCall& step_;
  const int64_t query_rank_, downs_size_, gates_size_;
  const int64_t queries_size_, latent_size_, attended_size_;  // numbers of a token
  const int64_t absorbed_size_, weighted_size_;
  const int64_t pass_rows_;  // of a pass, at most
  const LatentScratch places_;
  Buffer& parts_memory_;
  AttentionParts parts_;
  const MixerResults results_;
  int64_t scratch_size_ = 0;
  int64_t num_threads_ = 1;
  int64_t first_ = 0, rows_ = 0;  // of the pass
  int64_t token_tiles_ = 0, head_tiles_ = 1;
  float *queries_, *latents_, *gates_;  // by token
  float *absorbed_, *weighted_;         // by row of the pass
  float* scratch_;                      // (threads, scratch_size)
  Panel keys_panel_{}, values_panel_{};  // (rows of a pass * heads, nope_dim), (.., rank)
};

}  // namespace greenroom
