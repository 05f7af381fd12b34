// The parts of the keys of a step's tiles of attention, and the memory of their sums.
#pragma once

#include <algorithm>

#include "buffer.h"
#include "levels/level.h"

namespace greenroom {

// Parts of the keys, the last one included.
struct PartRange {
  int64_t first, last;
};

// A tile is some tokens of one sequence and some heads that share keys. If there are few tiles, as when one sequence
// decodes, threads take parts of them, which are joined in a second phase; otherwise a thread takes all parts of a tile.
class AttentionParts {
 public:
  // Args: `most_parts` of a tile, and its `rows`, at most.
  void plan(Buffer& buffer, int num_threads, int64_t num_tiles, int64_t most_parts, int64_t rows, int64_t value_dim) {
    value_dim_ = value_dim;
    size_ = round_up(PartSums::size(rows, value_dim), 16);
    const int64_t bytes = num_tiles * most_parts * size_ * 4;
    is_split_ = num_threads > 1 && most_parts > 1 && num_tiles < kTilesPerThread * num_threads && bytes <= kMostBytes;
    per_tile_ = is_split_ ? most_parts : 1;
    memory_ = buffer.reserve<float>(is_split_ ? bytes : num_threads * 2 * size_ * 4);
    num_tiles_ = num_tiles;
  }

  int64_t num_tiles() const { return num_tiles_ * per_tile_; }
  int64_t num_joins() const { return is_split_ ? num_tiles_ : 0; }
  int64_t tile_of(int64_t tile) const { return tile / per_tile_; }

  // Runs what a thread takes of a tile. `attend(part, sums)` fills the sums of a part.
  template <typename Attend>
  void run(const Level& level, int64_t tile, int thread, PartRange range, const Attended& target, Attend attend) const {
    const int64_t rows = target.tokens * target.heads;
    if (is_split_) {
      const int64_t place = tile % per_tile_;
      if (range.first + place <= range.last) attend(range.first + place, sums(tile, rows));
      return;
    }
    const PartSums all = sums(2 * thread, rows), next = sums(2 * thread + 1, rows);
    attend(range.first, all);
    for (int64_t part = range.first + 1; part <= range.last; ++part) {
      attend(part, next);
      level.add_part(all, next);
    }
    level.finish_parts(target, all);
  }

  // Joins the parts of a tile.
  void join(const Level& level, int64_t tile, PartRange range, const Attended& target) const {
    const int64_t rows = target.tokens * target.heads;
    const PartSums all = sums(tile * per_tile_, rows);
    for (int64_t place = 1; place <= range.last - range.first; ++place) {
      level.add_part(all, sums(tile * per_tile_ + place, rows));
    }
    level.finish_parts(target, all);
  }

 private:
  static constexpr int64_t kTilesPerThread = 8;  // that divide the work evenly
  static constexpr int64_t kMostBytes = 16 << 20;

  PartSums sums(int64_t number, int64_t rows) const { return {memory_ + number * size_, rows, value_dim_}; }

  float* memory_ = nullptr;
  int64_t num_tiles_ = 0, per_tile_ = 1, value_dim_ = 0, size_ = 0;
  bool is_split_ = false;
};

}  // namespace greenroom
