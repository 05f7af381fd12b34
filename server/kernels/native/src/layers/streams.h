// Residual streams of several rows a token (hyper-connections, arXiv 2409.19606): a part of a layer takes a weighted sum of a
// token's rows, and its result is added to each of them with a weight of its own. The weights are made from the rows.
#pragma once

#include "layers/gated_streams.h"
#include "layers/norm.h"
#include "layers/step.h"

namespace greenroom {

extern "C" {  // structures/layers.py
// Attention of a part to earlier states of its token, instead of a weighted sum of the token's rows: the last row is the residual
// stream, and those before it are this stream as it was when each block of layers began.
struct BlockAttention {
  const float* queries;  // (num_queries, hidden), the same for all tokens; null: the part takes the residual stream alone
  Norm norms[2];         // of what the second and the third query give; the first has the norm of the part
  float norm_epsilon;    // of the RMS norm of each row before attention
  float scaling;         // of scores
  int32_t num_queries;   // 3 for a mixer that takes other rows for keys and for values
  int32_t num_blocks;    // rows that are kept so far
  int32_t starts_block;  // the residual stream is kept as a row, and begins anew with the results of the part
};

// How the rows of a token are summed for a part of a layer, and how they take its result. With `logits` of the normed rows
// of a token side by side, a row's weight in the sum is sigmoid(logit * scale + bias) + epsilon. With gates, rows are normed one
// by one, and the sum is the mean of these rows times their gates; logits are those of results alone.
struct StreamMix {
  Matrix logits;         // (outputs, num_streams * hidden): for sums, for results, and from row to row; without outputs, the
                         // sum is the mean, and there are no results
  const float* bias;     // (outputs)
  const float* norm;     // (num_streams * hidden), weights of the RMS norm of the rows of a token together, or one by one
  const StreamGates* gates;  // or null
  const BlockAttention* blocks;  // in the place of all else; or null
  float norm_epsilon;
  float epsilon;
  float result_epsilon;  // of the weights of results, which are `magnitude` times the sigmoid
  float magnitude;
  float scales[3];       // of logits: for sums, for results, and from row to row
  int32_t num_streams;
  int32_t iterations;    // of the normalisation of weights from row to row (Sinkhorn-Knopp); 0: rows stay as they are
  int32_t is_last;       // it makes one row at the end of a model, and takes no results
};
}  // extern "C"

// Returns null, or what is impossible: the rest of a sentence that begins with "it has".
const char* check_stream_mix(const StreamMix& mix, int64_t hidden_size);

// Writes the norm of each token's sum to `step.normed`, and zeros to `step.hidden`, to which a part adds its results. `rows`
// are all of the step, and `place` is that of gates.
void open_streams(Context& context, const StreamMix& mix, const Norm& norm, const StepCall& step, const AdaptedRows& rows,
                  LoraPlace place);

// Adds the results in `step.hidden` to the rows of each token, with the weights of the last `open_streams`.
void close_streams(Context& context, const StreamMix& mix, const StepCall& step);

// Writes the sums of some tokens at the end of a model, `to (rows, hidden)`.
void sum_streams(Context& context, const StreamMix& mix, const float* streams, const AdaptedRows& rows,
                 int64_t hidden_size, bool is_exact, float* to);

}  // namespace greenroom
