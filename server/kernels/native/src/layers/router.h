// The router of a decoder layer.
#pragma once

#include "layers/layer.h"

namespace greenroom {

extern "C" {  // structures/layers.py
// The way to choose experts from a router's logits.
enum class RouterKind : int32_t {
  kSoftmaxFirst = 0,  // softmax over all, then top-k
  kTopFirst = 1,      // top-k, then softmax over these
  kSigmoid = 2,       // sigmoid; a correction may be added for the choice, and groups of experts may be chosen first
  kTopSigmoid = 3,    // top-k of logits, to which a correction may be added, then their sigmoid
  kSparseMixer = 4,   // the best, then the best of the others: each weight is a softmax over those that are nearly as good
  kSqrtSoftplus = 5,    // square root of log(1 + e^x); as kSigmoid otherwise
};

// Makes the rows that a router's matrix takes from the hidden states (ZAYA).
struct RouterMlp {
  Matrix down;              // (width, hidden)
  Matrix first, second;     // (width, width), of the norm of its results; a GELU follows each
  const float* down_bias;   // (width), as all others
  const float* first_bias;
  const float* second_bias;
  const float* carried;     // factors of the last layer's results of `down` with what it carries, which are added; or null
  Norm norm;
};

struct Router {
  Matrix matrix;            // (experts, hidden), or (experts, width) with an MLP
  const float* bias;        // (experts) or null
  const float* correction;  // (experts) or null; added to the scores only for the choice
  const float* expert_scales;  // (experts) or null; factors of their weights
  RouterKind kind;
  int32_t top_k;
  int32_t num_groups;       // groups of experts, of which `top_groups` are chosen; 1 means none
  int32_t top_groups;
  int32_t is_normalised;    // divide the weights by their sum
  float scale;              // factor of the weights
  float near;               // of the sparse mixer: largest relative distance to the best of those that are nearly as good
  int32_t is_by_best;       // a group is chosen by its best expert, instead of the sum of its two best
  const int32_t* table;     // (table_rows, top_k) experts of each token of the vocabulary, in place of a choice; or null
  int64_t table_rows;
  int64_t num_shared;       // rows after the experts', whose scores count in the sum that weights are divided by
  float logits_scale;       // factor of the logits
  int32_t num_skips;        // last rows that tokens choose among, which stand for no expert and have no weight
  const RouterMlp* mlp;     // or null
};
}  // extern "C"

// The rows of a router that tokens choose among.
inline int64_t num_choosable(const Router& router) { return router.matrix.outputs - router.num_shared; }

const char* check_router(const Router& router, int64_t hidden_size);

// The set of experts of a row's sequence.
int64_t set_of_row(const StepCall& step, int64_t row);

// The choices of a layer, (tokens, top_k), and their weights. `place` is the layer's index among those with a router.
inline int32_t* choices_of(const StepCall& step, int64_t place) {
  return step.chosen + place * step.tokens * step.most_top_k;
}

// The choices that are predicted of a layer.
inline int32_t* predicted_of(const StepCall& step, int64_t place) {
  return step.predictions->chosen + place * step.tokens * step.most_top_k;
}

// The weights that the latest router gave its shared rows, (tokens, num_shared).
inline float* shares_of(Context& context, const Router& router, const StepCall& step) {
  if (!router.num_shared) return nullptr;
  return step.shares ? step.shares : context.shares.reserve<float>(step.tokens * router.num_shared * 4);
}

inline float* weights_of(const StepCall& step, int64_t place) {
  return step.weights + place * step.tokens * step.most_top_k;
}

// Runs a router's MLP on rows (tokens, hidden), and carries what the next layer's takes. Returns its results (tokens, width);
// `panel` is that of the rows, then that of the results.
const float* run_router_mlp(Context& context, const RouterMlp& mlp, const LayerSpec& layer, const StepCall& step,
                            const float* rows, Panel& panel);

const char* check_router_mlp(const RouterMlp& mlp, int64_t hidden_size);

// Normalises the hidden states for the feed-forward part, and chooses experts if there is a router, which may have a norm
// of its own. A step with predictions applies the next layer's router to the same rows; `next` may be null.
void norm_and_route(Context& context, const LayerSpec& layer, const Router* router, const Norm& router_norm,
                    const StepCall& step, int64_t place, const Router* next = nullptr);

}  // namespace greenroom
