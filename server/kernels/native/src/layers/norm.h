// Norms, and other functions of single rows, of a step.
#pragma once

#include <cstdint>

#include "levels/level.h"

namespace greenroom {

extern "C" {  // structures/layers.py
enum class NormKind : int32_t {
  kNone = 0,   // leaves rows as they are
  kRms = 1,    // x * weight / sqrt(mean(x * x) + epsilon)
  kLayer = 2,  // the same of x - mean(x), plus a bias if there is one
  kInput = 3,  // kRms without a weight of x * weight
  kAffine = 4,  // x * weight, plus a bias if there is one
  kReady = 5,  // its results are there; within the kernels alone
};

struct Norm {
  const float* weight;  // (size)
  const float* bias;    // (size) or null
  float epsilon;
  NormKind kind;
};
}  // extern "C"

// Computes `y (size)` from `x (size)`, which may be the same.
inline void apply_norm(const Level& level, const Norm& norm, const float* x, int64_t size, float* y) {
  if (norm.kind == NormKind::kReady) return;
  if (norm.kind == NormKind::kNone) {
    if (x != y) level.widen(x, Format::kFloat32, y, size);
    return;
  }
  if (norm.kind == NormKind::kAffine) {
    for (int64_t i = 0; i < size; ++i) y[i] = x[i] * norm.weight[i] + (norm.bias ? norm.bias[i] : 0.0f);
    return;
  }
  if (norm.kind == NormKind::kLayer) {
    level.centre(x, size, y);
    x = y;
  }
  if (norm.kind == NormKind::kInput) {
    for (int64_t i = 0; i < size; ++i) y[i] = x[i] * norm.weight[i];
    return level.normalise(y, nullptr, norm.epsilon, size, y);
  }
  level.normalise(x, norm.weight, norm.epsilon, size, y);
  if (norm.bias) level.add_scaled(y, norm.bias, 1.0f, size);
}

// Returns null, or what is impossible: the rest of a sentence that begins with "it has".
inline const char* check_norm(const Norm& norm) {
  if (norm.kind < NormKind::kNone || norm.kind > NormKind::kAffine) return "a norm of no known kind";
  if (norm.kind == NormKind::kInput && norm.bias) return "a norm of weighted rows with a bias";
  return norm.kind == NormKind::kNone || norm.weight ? nullptr : "a norm without weights";
}

}  // namespace greenroom
