// Routing of adapters by token: at each module, factors are computed from the rows that it takes.
//
// An adapter has a vector for each module that it adds to. Its score for a row is |x . vector| (Arrow, arXiv
// 2405.11157), or x . vector. The best `top_k` adapters have the softmax of their scores as factors; of equal ones, the
// first count. A row's factors depend on this row alone, so they do not depend on what else is in the step.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "levels/level.h"

namespace greenroom {

struct LoraPart;
struct LoraParts;

extern "C" {  // structures/adapters.py
// The routing of some sequences.
struct LoraRouter {
  const uint8_t* candidates;  // (adapters): 1 if the adapter may be chosen
  int32_t top_k;
  int32_t is_signed;          // whether the score is not |x . vector|
  float temperature;          // divides scores
  int32_t unused;
};

struct LoraRouting {
  const LoraRouter* routers;
  const int32_t* router_of_token;  // (tokens); -1 if a token has fixed factors only
  float* totals;                   // (tokens, adapters): receives sums of the factors that were computed
  int32_t* counts;                 // (tokens): receives the number of modules that they were computed for
};
}  // extern "C"

// The adapters' factors for the rows of a product.
struct LoraFactors {
  const float* factors;   // (tokens, adapters); if `module_stride` is not 0, (modules, tokens, adapters)
  int64_t num_adapters;
  const int32_t* tokens;  // token of each row; null if row i is token i
  int64_t module_stride;  // numbers from one module's factors to the next one's; 0 if they are the same
};

// Factors of the rows of one matrix, or of the modules whose matrices are computed as one. First `begin`, then `score`
// for each row, then `factors`. It keeps its memory from step to step.
class LoraRoutes {
 public:
  // `x (rows, inputs)` is float32, each row `stride` after the one before, and need not have its values yet;
  // `parts_of(adapter)` returns `LoraParts`.
  template <typename PartsOf>
  void begin(const LoraRouting& routing, const LoraFactors& fixed, int64_t num_rows, const float* x, int64_t inputs,
             int64_t stride, int num_threads, PartsOf parts_of) {
    prepare(routing, fixed, num_rows, x, inputs, stride);
    for (int64_t adapter = 0; adapter < fixed.num_adapters; ++adapter) count_modules(parts_of(adapter));
    reserve(num_threads);
    for (int64_t adapter = 0; adapter < fixed.num_adapters; ++adapter) place(parts_of(adapter), adapter);
  }

  void score(const Level& level, int64_t row, int thread);

  LoraFactors factors() const;

 private:
  void prepare(const LoraRouting& routing, const LoraFactors& fixed, int64_t num_rows, const float* x, int64_t inputs,
               int64_t stride);
  void count_modules(const LoraParts& parts);
  void reserve(int num_threads);
  void place(const LoraParts& parts, int64_t adapter);
  void choose(const Level& level, const LoraRouter& router, const float* x, const float* const* vectors, float* scores,
              float* factors, int64_t token) const;

  LoraRouting routing_{};
  LoraFactors fixed_{};
  const float* x_ = nullptr;
  int64_t num_rows_ = 0;
  int64_t inputs_ = 0;
  int64_t stride_ = 0;
  int64_t num_modules_ = 0;
  const float** vectors_ = nullptr;  // (modules, adapters)
  float* factors_ = nullptr;         // (modules, rows, adapters)
  float* scores_ = nullptr;          // (threads, 3 * adapters)
  Buffer memory_;
};

}  // namespace greenroom
