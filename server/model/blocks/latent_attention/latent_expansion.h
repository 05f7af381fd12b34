// What adapters add to the expansion of latents into keys and values.
#pragma once

#include "model/blocks/latent_attention/latent_attention.h"

namespace greenroom {

// A token that asks expands all keys by its own factors.
class LatentExpansion {
 public:
  // `place` is that of the matrix of the expansion.
  LatentExpansion(const Level& level, const LatentAttention& spec, const LayerSpec& layer, const StepCall& step,
                  LoraPlace place);

  bool is_empty() const { return most_rank_ == 0; }

  // Floats for one thread.
  int64_t scratch() const;

  // Adds to the absorbed query of a token's head.
  void add_to_query(int64_t token, int64_t head, const float* query, float* absorbed, float* scratch) const;

  // Adds to the values of a token's head.
  void add_to_values(int64_t token, int64_t head, const float* latent, float* values, float* scratch) const;

 private:
  // Some of a head's outputs that a part adds to.
  struct Range {
    int64_t offset;  // of the first among the head's
    int64_t place;   // of the first among the part's
    int64_t count;
  };

  static Range range(const LoraPart& part, int64_t first, int64_t count);

  const LoraParts& parts_of(int64_t adapter) const { return parts_at(lora_->layers[adapter][layer_.index], place_); }

  template <typename Add>
  void each_part(int64_t token, Add add) const;

  void read(const LoraPart& part, const void* source, int64_t index, float* numbers, int64_t count) const;

  const Level& level_;
  const LatentAttention& spec_;
  const LayerSpec& layer_;
  const LoraStep* lora_;
  const LoraPlace place_;
  int64_t most_rank_ = 0;
};

}  // namespace greenroom
