// Runs the experts of a layer, each on its rows.
#pragma once

#include "context.h"

namespace greenroom {

extern "C" {  // structures/experts.py
// The experts of a layer. Addresses in its matrices are offsets in a slot.
struct ExpertShape {
  Matrix first[kMostParts];  // gate and up, or up; in parts if the checkpoint stores them separately
  Matrix second;
  int64_t first_bias;        // offsets in a slot, or -1
  int64_t second_bias;
  Gate gate;
  int32_t num_parts;
  Format bias_format;
};
}  // extern "C"

// Returns null, or what is impossible. Offsets must lie in a slot of `slot_bytes`; 0 means that they are addresses.
const char* check_experts(const ExpertShape& shape, int64_t hidden_size, int64_t slot_bytes);

extern "C" {  // structures/experts.py
// Some experts of a layer, and their rows.
struct ExpertBatch {
  const uint64_t* slots;     // addresses (experts)
  const int32_t* starts;     // (experts + 1) start of each expert's choices in `choices`
  const int32_t* choices;    // indices of choices: token * top_k + place
  const void* x;             // (tokens, inputs), plain
  float* outputs;            // (tokens * top_k, hidden), by choice
  int64_t num_experts;
  int64_t top_k;
  int64_t x_stride;
  Format x_format;
  int32_t is_exact;
  const LoraExperts* lora;   // null without adapters
};
}  // extern "C"

void run_experts(Context& context, const ExpertShape& shape, const ExpertBatch& batch);

extern "C" {  // structures/experts.py
// Weights the outputs of each token's choices and adds them in the order of the choices.
struct Combination {
  const float* outputs;      // (tokens * top_k, hidden)
  const void* weights;       // (tokens, top_k), plain
  const int32_t* absent;     // choices without an expert, which add nothing
  void* y;                   // (tokens, hidden), plain
  int64_t tokens;
  int64_t top_k;
  int64_t hidden;
  int64_t y_stride;
  int64_t num_absent;
  Format weights_format;
  Format y_format;
};
}  // extern "C"

void combine(Context& context, const Combination& call);

}  // namespace greenroom
