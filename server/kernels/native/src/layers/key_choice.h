// What chooses the keys that a step's tokens attend to in grouped-query attention. The base chooses none: each token attends
// to all keys that it sees.
#pragma once

#include "layers/sides.h"
#include "levels/level.h"

namespace greenroom {

class KeyChoice {
 public:
  KeyChoice() = default;
  KeyChoice(const KeyChoice&) = delete;
  KeyChoice& operator=(const KeyChoice&) = delete;
  virtual ~KeyChoice() = default;

  // The products with the normed rows, whose outputs begin at `offset`.
  virtual int num_sides() const { return 0; }
  virtual Side side(int, int64_t) const { return {}; }
  virtual void take(int64_t, int64_t, const float*, int64_t) const {}

  // Prepares a token's normed row.
  virtual void prepare(int64_t) {}

  // Writes what the cache keeps of a token; then, with all tokens in the cache, what it keeps of several.
  virtual void place(int64_t) const {}
  virtual bool has_pools() const { return false; }
  virtual void place_pool(int64_t, int) const {}

  // Begins the next pass over some tokens; returns false if there is none.
  virtual bool begin_pass() { return false; }
  virtual int64_t num_score_tiles() const { return 0; }
  virtual int64_t num_choices() const { return 0; }
  virtual void score(int64_t, int) const {}
  virtual void choose(int64_t, int) const {}

  // Lets a token attend to its chosen keys, if it has some, as if there were no others.
  virtual void point(Attention&, int64_t, int64_t) const {}

  // Runs a part of the attention of tokens of a sequence, the first of which is `token`.
  virtual void attend(const Level& level, const Attention& attention, int64_t, int, int64_t part, const PartSums& sums) const {
    level.attend(attention, part, sums);
  }
};

}  // namespace greenroom
