// Random adapters of decoder layers and of a head.
#pragma once

#include <deque>

#include "layer.h"

namespace driver {

// Memory of parts, which tables of adapters point to.
struct PartMemory {
  // Some additions to a matrix, perhaps none.
  LoraParts parts(int64_t outputs, int64_t inputs);

  // The sum of all additions to an output for some numbers; sets `magnitude` to the sum of magnitudes.
  double sum(const double* x, int64_t output, double* magnitude) const;

  std::deque<Numbers> numbers;
  std::deque<std::vector<LoraPart>> tables;
  std::deque<std::vector<float>> vectors;  // by which routers score parts
};

// The adapters of all tokens of a plan: for each sequence a factor of each adapter, and perhaps a router of adapters.
struct Adapters {
  Adapters(const Plan& plan, const std::deque<Layer>& layers);

  // The adapters of some tokens. They refer to this object and to the result.
  struct OfTokens {
    std::vector<float> factors, totals;
    std::vector<int32_t> routers, counts;
    LoraRouting routing{};
    LoraStep step{};
  };
  void set(OfTokens& of, const std::vector<Chunk>& chunks, const Plan& plan) const;

 private:
  LoraParts* parts_of_experts(int64_t count, int64_t outputs, int64_t inputs);

  int64_t count_ = between(1, 3);
  PartMemory memory_;
  std::deque<std::vector<LoraParts>> experts_;
  std::deque<std::vector<LoraLayer>> layers_;  // by adapter
  std::vector<const LoraLayer*> addresses_;
  std::vector<float> factors_;  // (sequences, adapters)
  std::vector<uint8_t> candidates_;
  std::vector<LoraRouter> routers_;
  std::vector<int32_t> router_of_sequence_;
};

}  // namespace driver
