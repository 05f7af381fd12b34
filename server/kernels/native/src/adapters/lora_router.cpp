#include "adapters/lora_router.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "adapters/lora.h"

namespace greenroom {

void LoraRoutes::prepare(const LoraRouting& routing, const LoraFactors& fixed, int64_t num_rows, const float* x,
                         int64_t inputs, int64_t stride) {
  routing_ = routing;
  fixed_ = fixed;
  num_rows_ = num_rows;
  x_ = x;
  inputs_ = inputs;
  stride_ = stride;
  num_modules_ = 1;
}

void LoraRoutes::count_modules(const LoraParts& parts) {
  for (const LoraPart* part = parts.parts; part < parts.parts + parts.count; ++part) {
    num_modules_ = std::max<int64_t>(num_modules_, part->module + 1);
  }
}

void LoraRoutes::reserve(int num_threads) {
  const int64_t num_vectors = num_modules_ * fixed_.num_adapters;
  const int64_t num_factors = num_vectors * num_rows_, num_scores = 3 * fixed_.num_adapters * num_threads;
  vectors_ = memory_.reserve<const float*>(num_vectors * 8 + (num_factors + num_scores) * 4);
  factors_ = reinterpret_cast<float*>(vectors_ + num_vectors);
  scores_ = factors_ + num_factors;
  std::fill(vectors_, vectors_ + num_vectors, nullptr);
}

void LoraRoutes::place(const LoraParts& parts, int64_t adapter) {
  for (const LoraPart* part = parts.parts; part < parts.parts + parts.count; ++part) {
    vectors_[part->module * fixed_.num_adapters + adapter] = part->vector;
  }
}

void LoraRoutes::score(const Level& level, int64_t row, int thread) {
  const int64_t num_adapters = fixed_.num_adapters, token = fixed_.tokens ? fixed_.tokens[row] : row;
  const int32_t router = routing_.router_of_token[token];
  for (int64_t module = 0; module < num_modules_; ++module) {
    float* factors = factors_ + (module * num_rows_ + row) * num_adapters;
    std::memcpy(factors, fixed_.factors + token * num_adapters, static_cast<size_t>(num_adapters) * 4);
    if (router < 0) continue;
    choose(level, routing_.routers[router], x_ + row * stride_, vectors_ + module * num_adapters,
           scores_ + thread * 3 * num_adapters, factors, token);
  }
}

void LoraRoutes::choose(const Level& level, const LoraRouter& router, const float* x, const float* const* vectors,
                        float* scores, float* factors, int64_t token) const {
  float* best = scores + fixed_.num_adapters;
  int64_t count = 0;
  for (int64_t adapter = 0; adapter < fixed_.num_adapters; ++adapter) {
    const bool takes_part = vectors[adapter] && router.candidates[adapter];
    count += takes_part;
    scores[adapter] = takes_part ? level.dot(x, vectors[adapter], inputs_) : -INFINITY;
    if (takes_part && !router.is_signed) scores[adapter] = std::fabs(scores[adapter]);
  }
  count = std::min<int64_t>(count, router.top_k);
  if (!count) return;
  int32_t* chosen = reinterpret_cast<int32_t*>(best + count);
  for (int64_t i = 0; i < count; ++i) {
    chosen[i] = static_cast<int32_t>(std::max_element(scores, scores + fixed_.num_adapters) - scores);
    best[i] = scores[chosen[i]] / router.temperature;
    scores[chosen[i]] = -INFINITY;
  }
  level.soft_max(best, count);
  float* totals = routing_.totals + token * fixed_.num_adapters;
  for (int64_t i = 0; i < count; ++i) {
    factors[chosen[i]] += best[i];
    totals[chosen[i]] += best[i];
  }
  ++routing_.counts[token];
}

LoraFactors LoraRoutes::factors() const {
  return {factors_, fixed_.num_adapters, nullptr, num_rows_ * fixed_.num_adapters};
}

}  // namespace greenroom
