// Embeddings of the last tokens together (n-grams), which some layers add to all rows of the residual stream (Qwen4).
#pragma once

#include "layers/convolution.h"
#include "layers/lora_sites.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
// Tokens are hashed: with t the token and those before it, the hash of n of them is t[0] * multipliers[0] ^ t[1] *
// multipliers[1] ^ ... of the last n; a head's row of the table is that modulo its size, behind the rows of the heads before
// it. Each order from 2 to `most` has as many heads. Where a text has ended among the tokens between, `end` takes a token's
// place, as before the beginning. The rows of all heads side by side give a value, and a key of each row of the stream; the
// value is added to a row times a gate, which is made from the product of key and row, and so is a convolution of these
// values, normed, over tokens.
struct NgramEmbeddings {
  Matrix table;                // (rows, numbers of a head)
  Matrix key;                  // (num_streams * hidden, heads * numbers of a head)
  Matrix value;                // (hidden, heads * numbers of a head)
  Convolution convolution;     // of num_streams * hidden channels
  const float* key_norm;       // (num_streams * hidden), weights of RMS norms of rows one by one
  const float* stream_norm;    // the same, of rows of the stream
  const float* value_norm;     // the same, of gated values before the convolution
  const int64_t* multipliers;  // (most)
  const int64_t* sizes;        // (heads)
  const int64_t* offsets;      // (heads): first row of each head
  int32_t* states;             // (rows of states, most - 1): the last tokens of a sequence, the oldest first
  int64_t num_streams;
  int64_t most;                // tokens of the longest n-gram
  int64_t heads;               // of all orders, those of the shortest first
  int32_t end;
  float epsilon;
};
}  // extern "C"

// Returns null, or what is impossible: the rest of a sentence that begins with "it has".
const char* check_ngram_embeddings(const NgramEmbeddings& spec, int64_t hidden_size);

// Adds to the rows of each token in `step.streams`. `rows` are all of the step.
void add_ngram_embeddings(Context& context, const NgramEmbeddings& spec, const StepCall& step, const AdaptedRows& rows);

}  // namespace greenroom
