// The passes in which an index scores keys, each over some tokens of a step, so that the memory of scores does not grow with
// it.
#pragma once

#include <algorithm>

#include "buffer.h"
#include "layers/step.h"
#include "levels/index_scores.h"

namespace greenroom {

class ScorePasses {
 public:
  // A token of a pass, and some blocks of keys; none if it sees none of them.
  struct Tile {
    const StepSequence* sequence;
    int64_t row;    // in the pass
    int64_t token;  // in the step
    int64_t position;
    int64_t first_block;
    int64_t num_blocks;
  };

  // `most_keys` are those that a token sees, and `heads` those with scores of their own. `pool` tokens have a key, if there are
  // as many.
  void plan(int64_t tokens, int64_t most_keys, int64_t heads = 1, int64_t pool = 1) {
    tokens_ = tokens;
    pool_ = pool;
    stride_ = round_up(most_keys / pool, kCacheBlock);
    const int64_t least = divide_up(kLeastScored, heads), most = kIsTight ? least : std::max(least, kMostRows);
    most_rows_ = std::min(tokens, std::clamp(kPassScores / (stride_ * heads), least, most));
    spans_ = divide_up(stride_ / kCacheBlock, kSpanOfBlocks);
  }

  int64_t most_rows() const { return most_rows_; }  // of a pass
  int64_t stride() const { return stride_; }        // scores of a row, and of a head

  // Begins the next pass; returns false if there is none, or if nothing was planned.
  bool begin() {
    first_ += rows_;
    rows_ = std::min(most_rows_, tokens_ - first_);
    return rows_ > 0;
  }

  int64_t rows() const { return rows_; }
  int64_t token_of(int64_t row) const { return first_ + row; }
  int64_t num_tiles() const { return rows_ * spans_; }

  Tile tile_of(const StepCall& step, int64_t tile) const {
    const int64_t row = tile / spans_, token = token_of(row), first_block = tile % spans_ * kSpanOfBlocks;
    const StepSequence& sequence = sequence_of(step, token);
    const int64_t position = position_of(sequence, token), blocks = divide_up((position + 1) / pool_, kCacheBlock);
    return {&sequence, row, token, position, first_block, std::min(kSpanOfBlocks, blocks - first_block)};
  }

  // Returns what follows from a tile alone: its blocks.
  static IndexScores scores_of(const StepCall& step, const Tile& tile, int32_t group) {
    IndexScores scores{};
    scores.blocks = step.block_tables[group] + tile.sequence->first_block + tile.first_block;
    scores.num_blocks = tile.num_blocks;
    scores.is_exact = step.is_exact;
    return scores;
  }

 private:
  static constexpr int64_t kPassScores = 4 << 20;
  static constexpr int64_t kLeastScored = 8;    // rows and heads of a pass
  static constexpr int64_t kMostRows = 256;
  static constexpr int64_t kSpanOfBlocks = 64;  // of a tile

  int64_t tokens_ = 0, pool_ = 1, stride_ = 0, most_rows_ = 0, spans_ = 0;
  int64_t first_ = 0, rows_ = 0;  // of the pass
};

}  // namespace greenroom
