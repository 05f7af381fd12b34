#include "model/blocks/latent_attention/latent_expansion.h"

#include <algorithm>

namespace greenroom {

LatentExpansion::LatentExpansion(const Level& level, const LatentAttention& spec, const LayerSpec& layer,
                                 const StepCall& step, LoraPlace place)
    : level_(level), spec_(spec), layer_(layer), lora_(step.lora), place_(place) {
  for (int64_t adapter = 0; lora_ && adapter < lora_->num_adapters; ++adapter) {
    const LoraParts& parts = parts_of(adapter);
    for (int64_t i = 0; i < parts.count; ++i) most_rank_ = std::max(most_rank_, parts.parts[i].rank);
  }
}

template <typename Add>
void LatentExpansion::each_part(int64_t token, Add add) const {
  for (int64_t adapter = 0; adapter < lora_->num_adapters; ++adapter) {
    const float factor = lora_->factors[token * lora_->num_adapters + adapter];
    const LoraParts& parts = parts_of(adapter);
    if (factor == 0.0f) continue;
    for (int64_t i = 0; i < parts.count; ++i) add(parts.parts[i], factor * parts.parts[i].scale);
  }
}

int64_t LatentExpansion::scratch() const {
  return is_empty() ? 0 : most_rank_ + std::max({spec_.rank, spec_.nope_dim, spec_.value_dim, most_rank_});
}

void LatentExpansion::add_to_query(int64_t token, int64_t head, const float* query, float* absorbed,
                                   float* scratch) const {
  const int64_t first = head * (spec_.nope_dim + spec_.value_dim);
  each_part(token, [&](const LoraPart& part, float factor) {
    const Range of = range(part, first, spec_.nope_dim);
    float *low = scratch, *numbers = scratch + most_rank_;
    std::fill(low, low + part.rank, 0.0f);
    for (int64_t r = 0; part.is_transposed && r < part.rank; ++r) {
      read(part, part.up, r * part.outputs + of.place, numbers, of.count);
      low[r] = level_.dot(query + of.offset, numbers, of.count);
    }
    for (int64_t i = 0; !part.is_transposed && i < of.count; ++i) {
      read(part, part.up, (of.place + i) * part.rank, numbers, part.rank);
      level_.add_scaled(low, numbers, query[of.offset + i], part.rank);
    }
    for (int64_t r = 0; r < part.rank; ++r) {
      read(part, part.down, r * part.inputs, numbers, spec_.rank);
      level_.add_scaled(absorbed, numbers, factor * low[r], spec_.rank);
    }
  });
}

void LatentExpansion::add_to_values(int64_t token, int64_t head, const float* latent, float* values,
                                    float* scratch) const {
  const int64_t first = head * (spec_.nope_dim + spec_.value_dim) + spec_.nope_dim;
  each_part(token, [&](const LoraPart& part, float factor) {
    const Range of = range(part, first, spec_.value_dim);
    float *low = scratch, *numbers = scratch + most_rank_;
    for (int64_t r = 0; r < part.rank; ++r) {
      read(part, part.down, r * part.inputs, numbers, spec_.rank);
      low[r] = factor * level_.dot(latent, numbers, spec_.rank);
    }
    for (int64_t r = 0; part.is_transposed && r < part.rank; ++r) {
      read(part, part.up, r * part.outputs + of.place, numbers, of.count);
      level_.add_scaled(values + of.offset, numbers, low[r], of.count);
    }
    for (int64_t i = 0; !part.is_transposed && i < of.count; ++i) {
      read(part, part.up, (of.place + i) * part.rank, numbers, part.rank);
      values[of.offset + i] += level_.dot(low, numbers, part.rank);
    }
  });
}

LatentExpansion::Range LatentExpansion::range(const LoraPart& part, int64_t first, int64_t count) {
  const int64_t begin = std::max(first, part.first_output);
  const int64_t end = std::min(first + count, part.first_output + part.outputs);
  return {begin - first, begin - part.first_output, std::max<int64_t>(0, end - begin)};
}

void LatentExpansion::read(const LoraPart& part, const void* source, int64_t index, float* numbers,
                           int64_t count) const {
  level_.widen(static_cast<const char*>(source) + index * bytes_of(part.format), part.format, numbers, count);
}

}  // namespace greenroom
