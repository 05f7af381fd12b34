// Heads with linear recurrences (recurrence.h), each with a state of its own in every sequence.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "layers/step.h"
#include "model/blocks/recurrent/projections.h"

namespace greenroom {

// The arrays of some tokens of one head that a kind of mixer fills.
struct HeadTokens {
  float* key;          // each (tokens, keys)
  float* query;
  float* decay;
  float* decayed_key;
  float* value;        // (tokens, values)
  float* beta;         // (tokens)
};

inline constexpr int64_t kHeadTokens = 16;  // tokens that a head takes at a time

inline float soft_plus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// Writes `x (size)`, divided by its length and multiplied by `scale`, to `y`.
inline void to_length(const Level& level, const float* x, float scale, int64_t size, float* y) {
  const float factor = scale / std::sqrt(level.dot(x, x, size) + 1e-6f);
  for (int64_t i = 0; i < size; ++i) y[i] = x[i] * factor;
}

// The memory of a mixer whose heads recur.
struct RecurrentScratch {
  ProjectionScratch projections;
  Buffer mixed;  // (tokens, channels): results of the convolution, if there is one
  Buffer heads;
};

// The tiles of the heads of a step: one for each head of each sequence.
class RecurrentHeads {
 public:
  // `states` are (rows, heads, keys, values padded to kStateLanes).
  RecurrentHeads(const Context& context, Buffer& memory, const StepCall& step, float* states, int64_t heads,
                 int64_t keys, int64_t values, bool has_delta_rule)
      : level_(context.level),
        step_(step),
        states_(states),
        heads_(heads),
        keys_(keys),
        values_(values),
        has_delta_rule_(has_delta_rule),
        size_(kHeadTokens * (4 * round_up(keys, 16) + round_up(values, 16) + 1)),
        memory_(memory.reserve<float>(context.pool.num_threads() * size_ * 4)) {}

  int64_t num_tiles() const { return step_.num_sequences * heads_; }

  // Runs a head's tokens: `fill(token, head, HeadTokens of this token)` before, and `finish(token, head)` after its
  // outputs are at `output + token * output_stride + head * values`.
  template <typename Fill, typename Finish>
  void run(int64_t tile, int thread, float* output, int64_t output_stride, Fill fill, Finish finish) const {
    const StepSequence& sequence = step_.sequences[tile / heads_];
    const int64_t head = tile % heads_, key_stride = round_up(keys_, 16), value_stride = round_up(values_, 16);
    float* key = memory_ + thread * size_;
    float* query = key + kHeadTokens * key_stride;
    float* decay = query + kHeadTokens * key_stride;
    float* decayed = decay + kHeadTokens * key_stride;
    float* value = decayed + kHeadTokens * key_stride;
    float* beta = value + kHeadTokens * value_stride;
    Recurrence recurrence{};
    const int64_t size = keys_ * round_up(values_, kStateLanes);
    recurrence.state = states_ + (sequence.state_to * heads_ + head) * size;
    recurrence.before = recurrence.state;
    if (sequence.state_from < 0) {
      std::memset(recurrence.state, 0, static_cast<size_t>(size) * sizeof(float));
    } else {
      recurrence.before = states_ + (sequence.state_from * heads_ + head) * size;
    }
    recurrence.key = key;
    recurrence.query = query;
    recurrence.decay = decay;
    recurrence.decayed_key = decayed;
    recurrence.value = value;
    recurrence.beta = has_delta_rule_ ? beta : nullptr;
    recurrence.keys = keys_;
    recurrence.values = values_;
    recurrence.key_stride = key_stride;
    recurrence.value_stride = value_stride;
    recurrence.output_stride = output_stride;
    for (int64_t done = 0; done < sequence.num_tokens; done += kHeadTokens) {
      const int64_t first = sequence.first_row + done;
      recurrence.tokens = std::min(kHeadTokens, sequence.num_tokens - done);
      recurrence.output = output + first * output_stride + head * values_;
      for (int64_t i = 0; i < recurrence.tokens; ++i) {
        fill(first + i, head,
             HeadTokens{key + i * key_stride, query + i * key_stride, decay + i * key_stride, decayed + i * key_stride,
                        value + i * value_stride, beta + i});
      }
      level_.recur(recurrence);
      recurrence.before = recurrence.state;
      for (int64_t i = 0; i < recurrence.tokens; ++i) finish(first + i, head);
    }
  }

 private:
  const Level& level_;
  const StepCall& step_;
  float* const states_;
  const int64_t heads_, keys_, values_;
  const bool has_delta_rule_;
  const int64_t size_;  // numbers of a thread's memory
  float* const memory_;
};

}  // namespace greenroom
