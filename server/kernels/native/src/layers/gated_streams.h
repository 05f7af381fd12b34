// Sums of the rows of a residual stream whose weights are gates, number by number (Qwen4).
#pragma once

#include "layers/lora_sites.h"
#include "layers/step.h"

namespace greenroom {

struct StreamMix;

extern "C" {  // structures/layers.py
// The gates of the rows `y` of a token, each normed by itself, are sigmoid(up * silu(down * y / rows)).
struct StreamGates {
  Matrix down;  // (rank, num_streams * hidden)
  Matrix up;    // (num_streams * hidden, rank)
};
}  // extern "C"

// Returns null, or what is impossible: the rest of a sentence that begins with "it has". `size` is that of a token's rows
// together.
const char* check_stream_gates(const StreamGates& gates, int64_t size);

// Writes the means of the gated rows of tokens, `sums (rows, hidden)`, and the mix's logits of the normed rows. `place` is that
// of the gates.
void sum_gated_rows(Context& context, const StreamMix& mix, const float* streams, const AdaptedRows& rows, LoraPlace place,
                    int64_t hidden_size, bool is_exact, float* sums, float* logits);

}  // namespace greenroom
