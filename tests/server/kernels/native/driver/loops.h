// Decoder layers by plain loops in double precision, each stage from what the kernels gave before it.
#pragma once

#include "layer.h"

namespace driver {

using Vector = std::vector<double>;

constexpr double kNear = 1e-3;  // part of the largest number of a vector that each may be off

inline Vector widened(const float* numbers, int64_t count) { return Vector(numbers, numbers + count); }
void normalise(double* x, const float* weight, float epsilon, int64_t size);
double largest(const Vector& x);
void check_vector(const char* what, const char* level, Format format, const float* found, const Vector& wanted,
                  double most);

// Holds what attention added to the hidden states `given`, and what it wrote to a cache that was `keys` and `values`,
// against loops. Nothing else of the cache may have changed.
void check_attention(const char* level, const Layer& layer, const Step& step, const std::vector<float>& given,
                     std::vector<char> keys, std::vector<char> values);

// The same for the norm behind it, and for choices and weights of experts.
void check_norm_and_router(const char* level, const Layer& layer, const Step& step, int64_t place);

// The same for what experts, which gave `outputs`, and a dense expert added to the hidden states `given`.
void check_finish(const char* level, const Layer& layer, const Step& step, int64_t place,
                  const std::vector<float>& given, const std::vector<float>& outputs);

}  // namespace driver
