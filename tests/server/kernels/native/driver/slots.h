// The experts of a layer, each in its own slot, and their results by plain loops.
#pragma once

#include "matrices.h"

namespace driver {

struct Experts {
  // `format` supports `hidden` and `size` inputs.
  Experts(Format format, int64_t count, int64_t hidden, int64_t size, bool has_bias);

  // The results (hidden) of an expert for some numbers (hidden); sets `size` to the largest sum of magnitudes.
  std::vector<double> run(int64_t expert, const double* x, double* size) const;

  // The shape with addresses instead of offsets, for the only expert.
  ExpertShape placed() const;

  std::vector<uint64_t> addresses() const;

  int64_t hidden, size, width;  // width: outputs of the first matrix, all parts together
  bool has_bias;
  ExpertShape shape{};
  std::vector<std::vector<char>> slots;

 private:
  void fill_slot(int64_t expert);

  std::vector<Weights> parts_, seconds_;
  std::vector<Numbers> first_biases_, second_biases_;
};

// Choices (tokens * top_k) by expert, as the kernels take them; -1 means no expert.
struct Sorted {
  Sorted(const std::vector<int32_t>& expert_of, int64_t num_experts);

  std::vector<int32_t> starts, choices;
};

}  // namespace driver
