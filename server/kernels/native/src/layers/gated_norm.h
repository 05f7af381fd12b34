// Norms whose results are multiplied by gates that are made from them (A.X K2).
#pragma once

#include "layers/lora_sites.h"
#include "layers/norm.h"
#include "layers/step.h"

namespace greenroom {

extern "C" {  // structures/layers.py
// The gates of a normed row `y` are sigmoid(up * silu(down * y)).
struct NormGate {
  Matrix down;  // (rank, hidden)
  Matrix up;    // (hidden, rank)
};
}  // extern "C"

// Returns null, or what is impossible: the rest of a sentence that begins with "it has".
const char* check_norm_gate(const NormGate& gate, int64_t hidden_size);

// Writes the gated norm of the hidden states to `step.normed`. `rows` are all of the step, and `place` is that of the gates.
void run_gated_norm(Context& context, const Norm& norm, const NormGate& gate, const StepCall& step,
                    const AdaptedRows& rows, LoraPlace place);

}  // namespace greenroom
