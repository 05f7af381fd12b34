#include "slots.h"

#include <cmath>

namespace driver {
namespace {

double activated(const Gate& gate, double x, double up) {
  const auto sigmoid = [](double a) { return 1 / (1 + std::exp(-a)); };
  if (gate.activation == Activation::kSoftCapped) {
    return gate.alpha * std::tanh(x / gate.alpha) * sigmoid(x) * gate.limit * std::tanh(up / gate.limit);
  }
  if (gate.has_gate && gate.limit > 0) {
    if (gate.activation != Activation::kLimitedSilu) x = std::fmin(x, gate.limit);
    up = std::fmax(std::fmin(up, gate.limit), -gate.limit);
  }
  const double by = gate.has_gate ? up : 1;
  switch (gate.activation) {
    case Activation::kGelu: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))) * by;
    case Activation::kGeluTanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) * by;
    case Activation::kRelu: return std::fmax(x, 0) * by;
    case Activation::kReluSquared: return std::fmax(x, 0) * std::fmax(x, 0) * by;
    case Activation::kQuickGelu: return x * sigmoid(1.702 * x) * by;
    case Activation::kLimitedSilu: return std::fmin(x * sigmoid(x), gate.limit) * by;
    case Activation::kClampedSwish: return x * sigmoid(gate.alpha * x) * (up + 1);
    default: return x * sigmoid(x) * by;
  }
}

Gate random_gate() {
  Gate gate{};
  gate.activation = static_cast<Activation>(between(0, 8));
  const bool is_soft = gate.activation == Activation::kSoftCapped;
  const bool is_late = gate.activation == Activation::kLimitedSilu;
  gate.has_gate = is_soft || is_late || gate.activation == Activation::kClampedSwish || between(0, 1);
  gate.is_interleaved = gate.has_gate && between(0, 1);
  gate.alpha = 1.5f;
  gate.limit = is_soft || is_late || between(0, 2) ? 2.5f : 0.0f;
  return gate;
}

}  // namespace

Experts::Experts(Format format, int64_t count, int64_t hidden, int64_t size, bool has_bias)
    : hidden(hidden), size(size), has_bias(has_bias), slots(static_cast<size_t>(count)) {
  shape.gate = random_gate();
  shape.num_parts = shape.gate.has_gate && !shape.gate.is_interleaved && between(0, 1) ? 2 : 1;
  shape.bias_format = plain_format();
  width = size * (shape.gate.has_gate ? 2 : 1);
  std::vector<Layout> layouts;
  for (int part = 0; part < shape.num_parts; ++part) layouts.emplace_back(format, width / shape.num_parts, hidden);
  layouts.emplace_back(format, hidden, size);
  for (int64_t expert = 0; expert < count; ++expert) {
    for (int part = 0; part < shape.num_parts; ++part) parts_.emplace_back(layouts[static_cast<size_t>(part)]);
    seconds_.emplace_back(layouts.back());
    first_biases_.emplace_back(shape.bias_format, width);
    second_biases_.emplace_back(shape.bias_format, hidden);
    fill_slot(expert);
  }
}

// Copies the matrices and biases of an expert to its slot, which ends right after the last one.
void Experts::fill_slot(int64_t expert) {
  std::vector<char>& slot = slots[static_cast<size_t>(expert)];
  const auto put = [&slot](const void* bytes, int64_t count) {
    const int64_t offset = round_up(static_cast<int64_t>(slot.size()), 64);
    slot.resize(static_cast<size_t>(offset));
    slot.insert(slot.end(), static_cast<const char*>(bytes), static_cast<const char*>(bytes) + count);
    return offset;
  };
  const auto put_matrix = [&put](const Weights& weights) {
    Matrix matrix = weights.matrix();
    const auto put_part = [&put](const void*& part, const std::vector<char>& bytes) {
      if (part) part = reinterpret_cast<const void*>(put(bytes.data(), static_cast<int64_t>(bytes.size())));
    };
    put_part(matrix.data, weights.codes);
    put_part(matrix.scales, weights.scales);
    put_part(matrix.zeros, weights.zeros);
    put_part(matrix.rest, weights.rest);
    put_part(matrix.divisor, weights.divisor);
    put_part(matrix.order, weights.order);
    return matrix;
  };
  const int64_t bias_bytes = bytes_of(shape.bias_format);
  for (int part = 0; part < shape.num_parts; ++part) {
    shape.first[part] = put_matrix(parts_[static_cast<size_t>(expert * shape.num_parts + part)]);
  }
  shape.first_bias = has_bias ? put(first_biases_.back().bytes.get(), width * bias_bytes) : -1;
  shape.second_bias = has_bias ? put(second_biases_.back().bytes.get(), hidden * bias_bytes) : -1;
  shape.second = put_matrix(seconds_.back());
  slot.shrink_to_fit();
}

std::vector<double> Experts::run(int64_t expert, const double* x, double* size_of_sums) const {
  std::vector<double> middle(static_cast<size_t>(width)), inner(static_cast<size_t>(size));
  std::vector<double> result(static_cast<size_t>(hidden));
  double sum_size;
  for (int64_t i = 0; i < width; ++i) {
    const Weights& part = parts_[static_cast<size_t>(expert * shape.num_parts + i * shape.num_parts / width)];
    middle[i] = part.sum(x, i % part.layout.outputs, &sum_size);
    if (has_bias) middle[i] += first_biases_[expert].values[i];
  }
  const Gate& gate = shape.gate;
  for (int64_t i = 0; i < size; ++i) {
    inner[i] = gate.is_interleaved ? activated(gate, middle[2 * i], middle[2 * i + 1])
                                   : activated(gate, middle[i], gate.has_gate ? middle[size + i] : 0);
  }
  *size_of_sums = 0;
  for (int64_t i = 0; i < hidden; ++i) {
    result[i] = seconds_[expert].sum(inner.data(), i, &sum_size) + (has_bias ? second_biases_[expert].values[i] : 0);
    *size_of_sums = std::fmax(*size_of_sums, sum_size);
  }
  return result;
}

ExpertShape Experts::placed() const {
  ExpertShape there = shape;
  const char* slot = slots[0].data();
  for (Matrix* matrix : {&there.first[0], &there.first[1], &there.second}) {
    for (const void** part :
         {&matrix->data, &matrix->scales, &matrix->zeros, &matrix->rest, &matrix->divisor, &matrix->order}) {
      if (*part || part == &matrix->data) *part = slot + reinterpret_cast<uintptr_t>(*part);
    }
  }
  return there;
}

std::vector<uint64_t> Experts::addresses() const {
  std::vector<uint64_t> found(slots.size());
  for (size_t i = 0; i < slots.size(); ++i) found[i] = reinterpret_cast<uintptr_t>(slots[i].data());
  return found;
}

Sorted::Sorted(const std::vector<int32_t>& expert_of, int64_t num_experts) : starts{0} {
  for (int32_t expert = 0; expert < num_experts; ++expert) {
    for (size_t choice = 0; choice < expert_of.size(); ++choice) {
      if (expert_of[choice] == expert) choices.push_back(static_cast<int32_t>(choice));
    }
    starts.push_back(static_cast<int32_t>(choices.size()));
  }
  starts.shrink_to_fit();
  choices.shrink_to_fit();
}

}  // namespace driver
