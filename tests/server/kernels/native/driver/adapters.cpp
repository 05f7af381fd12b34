#include "adapters.h"

#include <cmath>

namespace driver {

LoraParts PartMemory::parts(int64_t outputs, int64_t inputs) {
  if (one_in(3)) return {};
  std::vector<LoraPart>& table = tables.emplace_back();
  for (int64_t count = between(1, 2); count > 0; --count) {
    LoraPart part{};
    part.rank = between(1, 36);
    part.inputs = inputs;
    part.first_output = between(0, outputs - 1);
    part.outputs = between(1, outputs - part.first_output);
    part.format = plain_format();
    part.is_transposed = static_cast<int32_t>(between(0, 1));
    part.scale = 0.5f;
    part.module = static_cast<int32_t>(between(0, 1));
    if (!one_in(4)) part.vector = vectors.emplace_back(normals(inputs)).data();
    const auto inverse = [](int64_t size) { return 1 / std::sqrt(static_cast<float>(size)); };
    part.down = numbers.emplace_back(part.format, part.rank * inputs, inverse(inputs)).bytes.get();
    part.up = numbers.emplace_back(part.format, part.rank * part.outputs, inverse(part.rank)).bytes.get();
    table.push_back(part);
  }
  table.shrink_to_fit();
  return {table.data(), static_cast<int64_t>(table.size())};
}

double PartMemory::sum(const double* x, int64_t output, double* magnitude) const {
  double total = 0;
  size_t place = 0;  // of a part's numbers
  for (const std::vector<LoraPart>& table : tables) {
    for (const LoraPart& part : table) {
      const Numbers &down = numbers[place], &up = numbers[place + 1];
      place += 2;
      const int64_t own = output - part.first_output;
      if (own < 0 || own >= part.outputs) continue;
      for (int64_t r = 0; r < part.rank; ++r) {
        const int64_t at = part.is_transposed ? r * part.outputs + own : own * part.rank + r;
        for (int64_t i = 0; i < part.inputs; ++i) {
          const double term = part.scale * up.values[static_cast<size_t>(at)] *
                              down.values[static_cast<size_t>(r * part.inputs + i)] * x[i];
          total += term;
          *magnitude += std::fabs(term);
        }
      }
    }
  }
  return total;
}

LoraParts* Adapters::parts_of_experts(int64_t count, int64_t outputs, int64_t inputs) {
  if (one_in(3)) return nullptr;
  std::vector<LoraParts>& found = experts_.emplace_back();
  for (int64_t expert = 0; expert < count; ++expert) found.push_back(memory_.parts(outputs, inputs));
  found.shrink_to_fit();
  return found.data();
}

Adapters::Adapters(const Plan& plan, const std::deque<Layer>& layers) {
  for (int64_t adapter = 0; adapter < count_; ++adapter) {
    std::vector<LoraLayer>& found = layers_.emplace_back();
    for (const Layer& layer : layers) {
      const int64_t hidden = layer.hidden;
      LoraLayer& of = found.emplace_back();
      of.places[0] = memory_.parts(layer.attention.query.outputs, hidden);
      if (!layer.is_joined) of.places[1] = memory_.parts(layer.kv_heads * layer.key_dim, hidden);
      if (!layer.is_joined) of.places[2] = memory_.parts(layer.kv_heads * layer.value_dim, hidden);
      of.places[3] = memory_.parts(hidden, layer.heads * layer.value_dim);
      if (layer.has_own_gate) of.places[4] = memory_.parts(layer.gate.layout.outputs, hidden);
      if (layer.attention.indexer) of.places[5] = memory_.parts(layer.kv_heads * layer.index_dim, hidden);
      if (layer.attention.indexer) of.places[6] = memory_.parts(layer.index_dim, hidden);
      for (const auto& [gate, place] : {std::pair{layer.spec.input_gate, LoraPlace::kInputGate},
                                        std::pair{layer.spec.inner_gate, LoraPlace::kInnerGate}}) {
        if (!gate) continue;
        of.places[static_cast<int>(place)] = memory_.parts(layer.gate_rank, hidden);
        of.places[static_cast<int>(place) + 1] = memory_.parts(hidden, layer.gate_rank);
      }
      if (layer.attention.key_taps.outputs) {
        of.places[8] = memory_.parts(layer.attention.key_taps.outputs, hidden);
        of.places[9] = memory_.parts(layer.attention.value_taps.outputs, hidden);
      }
      if (layer.attention.sink.outputs) of.places[10] = memory_.parts(layer.heads, hidden);
      if (layer.attention.relative) of.places[7] = memory_.parts(layer.heads * layer.num_profiles, hidden);
      if (layer.has_router()) {
        const Experts& experts = layer.experts[0];
        of.places[static_cast<int>(LoraPlace::kRouter)] = memory_.parts(layer.mixture.num_experts, hidden);
        of.first = parts_of_experts(layer.mixture.num_experts, experts.width, experts.hidden);
        of.second = parts_of_experts(layer.mixture.num_experts, experts.hidden, experts.size);
      }
      if (layer.is_projected()) {
        const int64_t width = layer.experts[0].hidden;
        of.places[static_cast<int>(LoraPlace::kExpertsInput)] = memory_.parts(width, hidden);
        of.places[static_cast<int>(LoraPlace::kExpertsOutput)] = memory_.parts(hidden, width);
      }
      if (layer.has_dense()) {
        of.places[static_cast<int>(LoraPlace::kDenseFirst)] = memory_.parts(layer.dense[0].width, hidden);
        of.places[static_cast<int>(LoraPlace::kDenseSecond)] = memory_.parts(hidden, layer.dense[0].size);
      }
      if (layer.mixture.shared.weighting.outputs) of.places[static_cast<int>(LoraPlace::kDenseGate)] = memory_.parts(1, hidden);
    }
    found.shrink_to_fit();
    addresses_.push_back(found.data());
  }
  addresses_.shrink_to_fit();
  for (size_t i = 0; i < plan.sequences.size() * static_cast<size_t>(count_); ++i) {
    factors_.push_back(one_in(3) ? 0.0f : normal());
  }
  const int64_t num_routers = between(1, 2);
  for (int64_t i = 0; i < num_routers * count_; ++i) candidates_.push_back(!one_in(4));
  candidates_.shrink_to_fit();
  for (int64_t i = 0; i < num_routers; ++i) {
    const auto top_k = static_cast<int32_t>(between(1, 4)), is_signed = static_cast<int32_t>(between(0, 1));
    routers_.push_back({candidates_.data() + i * count_, top_k, is_signed, 0.7f, 0});
  }
  routers_.shrink_to_fit();
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    router_of_sequence_.push_back(static_cast<int32_t>(between(-1, num_routers - 1)));
  }
}

void Adapters::set(OfTokens& of, const std::vector<Chunk>& chunks, const Plan& plan) const {
  for (const Chunk& chunk : chunks) {
    const int64_t sequence = chunk.sequence - plan.sequences.data();
    const float* factors = factors_.data() + sequence * count_;
    for (int64_t i = 0; i < chunk.count; ++i) {
      of.factors.insert(of.factors.end(), factors, factors + count_);
      of.routers.push_back(router_of_sequence_[static_cast<size_t>(sequence)]);
    }
  }
  of.factors.shrink_to_fit();
  of.routers.shrink_to_fit();
  of.totals.assign(of.factors.size(), 0.0f);
  of.counts.assign(of.routers.size(), 0);
  of.routing = {routers_.data(), of.routers.data(), of.totals.data(), of.counts.data()};
  of.step = {addresses_.data(), of.factors.data(), count_, static_cast<int64_t>(layers_[0].size()), &of.routing};
}

}  // namespace driver
