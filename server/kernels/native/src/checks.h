// Checks of counts and offsets that come from files, made once where a description is built. Kernels do not check them
// again, so whatever passes here must stay inside the memory that its counts stand for.
#pragma once

#include "layers/step.h"

namespace greenroom {

// The bytes of each part of a matrix; 0 for what it lacks.
struct Extents {
  int64_t data, scales, zeros, rest, divisor, order;
};

// Returns the extents of a matrix that `check_matrix` accepts.
Extents extents_of(const Matrix& matrix);

// The following return null, or what is impossible: the rest of a sentence that begins with "it has".

const char* check_matrix(const Matrix& matrix);

const char* check_router(const Router& router, int64_t hidden_size);

// Offsets must lie in a slot of `slot_bytes`; 0 means that they are addresses.
const char* check_experts(const ExpertShape& shape, int64_t hidden_size, int64_t slot_bytes);

// The cache is checked once it is bound.
const char* check_layer(const LayerSpec& layer, int64_t hidden_size, int64_t slot_bytes);

}  // namespace greenroom
