// The end of a model.
#pragma once

#include "context.h"
#include "layers/streams.h"

namespace greenroom {

extern "C" {  // structures/layers.py
// Runs the final norm and the head: computes the logits of some rows.
struct HeadCall {
  Matrix matrix;
  const float* bias;         // (vocabulary) or null
  Norm norm;
  const StreamMix* streams;  // makes one row of those of a token; or null
  const float* hidden;       // (tokens, hidden), or (tokens, streams, hidden)
  const int32_t* rows;       // the first `num_logits` also get logits
  float* normed;             // (num_rows, hidden): their states after the norm
  float* logits;             // (num_logits, vocabulary)
  int64_t num_rows;
  int64_t num_logits;
  int64_t hidden_size;
  int64_t vocabulary;        // outputs of the matrix beyond are padding
  float scale;               // factor of the logits
  float softcap;             // of the scaled logits, or 0
  int32_t is_exact;
  const LoraStep* lora;      // null for a step without adapters
};
}  // extern "C"

void run_head(Context& context, const HeadCall& call);

}  // namespace greenroom
