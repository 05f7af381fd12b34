// Mixing of queries and keys with each other and with those of the tokens before (ZAYA): a convolution of each channel, then one
// of the channels of each head. Its results are added to the means of the queries and the keys that share a head of keys.
#pragma once

#include <algorithm>
#include <cstring>

#include "formats/checks.h"
#include "layers/convolution.h"
#include "layers/sides.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
struct HeadMixing {
  Convolution channels;  // of queries, then keys; its states are (rows, inputs that both convolutions read, channels)
  Matrix of_heads;       // (channels, taps * dim), plain: the weights of each head one below the other, the oldest token first
  const float* bias;     // (channels) of the second convolution
  int64_t heads;         // of queries
  int64_t kv_heads;
  int64_t taps;          // tokens that the second convolution reads
};
}  // extern "C"

inline int64_t dim_of(const HeadMixing& spec) { return spec.channels.channels / (spec.heads + spec.kv_heads); }

// Inputs of a sequence that its next tokens read.
inline int64_t kept_inputs(const HeadMixing& spec) { return spec.channels.width - 1 + spec.taps - 1; }

// The tiles of a step: first `convolve`, then `multiply`, then `add` for each token.
class HeadMixingStep {
 public:
  // The queries and keys of a token are side by side, and `stride` numbers from those of the next one.
  HeadMixingStep(Context& context, const HeadMixing& spec, const StepCall& step, float* rows, int64_t stride)
      : level_(context.level), spec_(spec), step_(step), rows_(rows), stride_(stride), dim_(dim_of(spec)),
        num_heads_(spec.heads + spec.kv_heads), inputs_(spec.taps * dim_) {
    auto& own = context.mixers.of<Memory>();
    const int64_t tokens = step.tokens, channels = spec.channels.channels;
    const PanelKind kind = level_.panel_kind(spec.of_heads, step.is_exact);
    const int64_t size = round_up(panel_bytes(kind, tokens, inputs_), 64);
    char* panels = own.panels.reserve(num_heads_ * size);
    panels_ = own.heads.reserve<Panel>(num_heads_ * static_cast<int64_t>(sizeof(Panel)));
    for (int64_t head = 0; head < num_heads_; ++head) panels_[head] = place_panel(kind, tokens, inputs_, panels + head * size);
    gathered_ = own.numbers.reserve<float>((tokens * (num_heads_ * inputs_ + channels) + context.pool.num_threads() * channels) * 4);
    mixed_ = gathered_ + tokens * num_heads_ * inputs_;
    convolved_ = mixed_ + tokens * channels;
  }

  int64_t num_convolve_tiles() const { return step_.tokens + step_.num_sequences; }
  int64_t num_multiply_tiles() const { return num_heads_ * tiles_of_head(); }

  // Convolves the channels of all tokens that a token reads; or keeps the last inputs of a sequence.
  void convolve(int64_t tile, int thread) {
    const int64_t channels = spec_.channels.channels;
    if (tile >= step_.tokens) return keep_inputs(step_.sequences[tile - step_.tokens]);
    const StepSequence& sequence = sequence_of(step_, tile);
    float* convolved = convolved_ + thread * channels;
    float* gathered = gathered_ + tile * num_heads_ * inputs_;
    const int64_t oldest = tile - sequence.first_row - kept_inputs(spec_);
    for (int64_t tap = 0; tap < spec_.taps; ++tap) {
      const float* rows[kMostTaps];
      for (int64_t i = 0; i < spec_.channels.width; ++i) rows[i] = input(sequence, oldest + tap + i);
      level_.convolve(rows, spec_.channels.weight, spec_.channels.bias, spec_.channels.width, channels, false, convolved);
      for (int64_t head = 0; head < num_heads_; ++head) {
        std::copy_n(convolved + head * dim_, dim_, gathered + head * inputs_ + tap * dim_);
      }
    }
    for (int64_t head = 0; head < num_heads_; ++head) {
      level_.prepare(panels_[head], gathered_ + head * inputs_, Format::kFloat32, num_heads_ * inputs_, nullptr, tile, tile + 1);
    }
  }

  // Convolves the channels of a head.
  void multiply(int64_t tile) const {
    const int64_t head = tile / tiles_of_head(), row_tiles = divide_up(step_.tokens, kRowTile), place = tile % tiles_of_head();
    Matrix own = spec_.of_heads;
    own.outputs = dim_;
    own.data = static_cast<const char*>(own.data) + head * dim_ * own.inputs * bytes_of(own.format);
    const int64_t first_row = place % row_tiles * kRowTile, last_row = std::min(first_row + kRowTile, step_.tokens);
    const int64_t first = place / row_tiles * kOutputTile, last = std::min(first + kOutputTile, dim_);
    alignas(64) float sums[kRowTile * kOutputTile];
    level_.multiply(own, panels_[head], first_row, last_row, first, last, sums, kOutputTile);
    add_bias(level_, spec_.bias + head * dim_, Format::kFloat32, last_row - first_row, first, last, sums, kOutputTile);
    for (int64_t row = first_row; row < last_row; ++row) {
      std::copy_n(sums + (row - first_row) * kOutputTile, last - first, mixed_ + row * spec_.channels.channels + head * dim_ + first);
    }
  }

  // Replaces the queries and keys of a token by the mixed ones.
  void add(int64_t token) const {
    const int64_t group = spec_.heads / spec_.kv_heads, size = group * dim_;
    float *queries = rows_ + token * stride_, *keys = queries + spec_.heads * dim_;
    const float *mixed = mixed_ + token * spec_.channels.channels, *mixed_keys = mixed + spec_.heads * dim_;
    for (int64_t head = 0; head < spec_.kv_heads; ++head) {
      for (int64_t i = 0; i < dim_; ++i) {
        float* key = keys + head * dim_ + i;
        float sum = 0.0f;
        for (int64_t place = head * size + i; place < (head + 1) * size; place += dim_) {
          const float mean = (queries[place] + *key) * 0.5f;
          sum += mean;
          queries[place] = mixed[place] + mean;
        }
        *key = mixed_keys[head * dim_ + i] + sum / static_cast<float>(group);
      }
    }
  }

 private:
  struct Memory {
    Buffer panels, heads, numbers;
  };

  int64_t tiles_of_head() const { return divide_up(step_.tokens, kRowTile) * divide_up(dim_, kOutputTile); }

  // Returns the queries and keys of a sequence by their place among this step's, negative before; null for zeros.
  const float* input(const StepSequence& sequence, int64_t place) const {
    if (place >= 0) return rows_ + (sequence.first_row + place) * stride_;
    if (sequence.state_from < 0) return nullptr;
    const int64_t kept = kept_inputs(spec_);
    return spec_.channels.states + (sequence.state_from * kept + kept + place) * spec_.channels.channels;
  }

  void keep_inputs(const StepSequence& sequence) const {
    const int64_t kept = kept_inputs(spec_), channels = spec_.channels.channels;
    float* to = spec_.channels.states + sequence.state_to * kept * channels;
    for (int64_t i = 0; i < kept; ++i, to += channels) {
      const float* from = input(sequence, sequence.num_tokens - kept + i);
      from ? std::copy_n(from, channels, to) : std::fill_n(to, channels, 0.0f);
    }
  }

  const Level& level_;
  const HeadMixing& spec_;
  const StepCall& step_;
  float* const rows_;  // (tokens, stride)
  const int64_t stride_, dim_, num_heads_;
  const int64_t inputs_;  // of a head's second convolution
  Panel* panels_;     // (heads), each (tokens, inputs)
  float* gathered_;   // (tokens, heads, inputs)
  float* mixed_;      // (tokens, channels)
  float* convolved_;  // (threads, channels)
};

// Returns null, or what is impossible in queries and keys of so many numbers in all, of which keys have `dim` a head.
inline const char* check_head_mixing(const HeadMixing& spec, int64_t numbers, int64_t dim) {
  if (const char* reason = check_convolution(spec.channels)) return reason;
  const bool has_heads = is_count(spec.heads) && is_count(spec.kv_heads) && spec.heads % spec.kv_heads == 0;
  const int64_t channels = spec.channels.channels;
  if (!has_heads || channels != (spec.heads + spec.kv_heads) * dim || channels > numbers) return "mixed heads that are not its own";
  const bool fits = spec.taps >= 1 && spec.taps <= kMostTaps && spec.channels.dilation == 1 && !spec.channels.has_silu &&
                    is_shaped(spec.of_heads, channels, spec.taps * dim) && spec.bias;
  if (!fits) return "convolutions of heads that don't fit these";
  const bool is_read = is_plain(spec.of_heads.format) && !spec.of_heads.is_transposed;
  return is_read ? nullptr : "convolutions of heads in a format whose parts can't be read";
}

}  // namespace greenroom
