// Decoder layers by plain loops in double precision; each part starts from the kernels' results of the part before.
#pragma once

#include "layer.h"

namespace driver {

using Vector = std::vector<double>;

constexpr double kNear = 1e-3;  // tolerance, as a part of the largest number of a vector

inline Vector widened(const float* numbers, int64_t count) { return Vector(numbers, numbers + count); }
Vector normed(const Norm& norm, Vector x);
void normalise(double* x, const float* weight, float epsilon, int64_t size);
double largest(const Vector& x);
void check_vector(const char* what, const char* level, Format format, const float* found, const Vector& wanted,
                  double most);

// Checks the results that attention added to the hidden states `given`, and wrote to a cache that was `keys` and
// `values`, against loops. The rest of the cache must not change.
void check_attention(const char* level, const Layer& layer, const Step& step, const std::vector<float>& given,
                     std::vector<char> keys, std::vector<char> values);

// Checks the rows that an external mixer gets against loops.
void check_input_norm(const char* level, const Layer& layer, const Step& step);

// The same for the norm after it, and for choices and weights of experts.
void check_norm_and_router(const char* level, const Layer& layer, const Step& step, const std::vector<float>& given,
                           int64_t place);

// The rows that the experts of a layer take, (tokens, width), by loops if they are projections.
std::vector<float> rows_of_experts(const Layer& layer, const Step& step);

// The same for the results that experts, with `outputs`, and a dense expert added to the hidden states `given`.
void check_finish(const char* level, const Layer& layer, const Step& step, int64_t place,
                  const std::vector<float>& given, const std::vector<float>& outputs);

}  // namespace driver
