// A decoder layer: a mixer of tokens, a feed-forward part or both, with norms before and after each, whose results are added
// to the hidden states. Kinds of both are rows of tables: a new kind is a file with its spec and its operations, an enumerator
// and a row in layer.cpp.
#pragma once

#include "layers/convolution.h"
#include "layers/gated_norm.h"
#include "layers/ngram_embeddings.h"
#include "layers/norm.h"
#include "layers/step.h"
#include "layers/streams.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
enum class MixerKind : int32_t {
  kExternal = 0,          // the caller has added the mixer's results to the hidden states; no spec
  kGroupedAttention = 1,  // grouped_attention.h
  kLatentAttention = 2,   // latent_attention.h
  kGatedDeltaNet = 3,     // gated_delta_net.h
  kShortConvolution = 4,  // short_convolution.h
  kMamba2 = 5,            // mamba2.h
  kNone = 6,              // the layer is a feed-forward part alone; no spec
  kKimiDeltaAttention = 7,  // kimi_delta_attention.h
  kLightningAttention = 8,  // lightning_attention.h
  kMamba1 = 9,              // mamba1.h
  kCompressedAttention = 10,  // compressed_attention.h
};
}  // extern "C"

extern "C" {  // structures/layers.py
// The factors of a sum of the hidden states and the results of a part, each by channel, and what is added to it.
struct ResidualGate {
  const float* kept;   // (hidden), of the hidden states
  const float* added;  // (hidden), of the results
  const float* bias;   // (hidden) or null
};

enum class FeedForwardKind : int32_t {
  kMlp = 0,      // mixture.h
  kExperts = 1,  // mixture.h
  kNone = 2,     // the layer is a mixer alone; no spec
};

struct LayerSpec {
  Norm input_norm;          // before the mixer
  Norm mixer_norm;          // of its results
  Norm inner_norm;          // before the feed-forward part
  Norm output_norm;         // of its results
  const NormGate* input_gate;  // of the two norms before the mixer and the feed-forward part; or null
  const NormGate* inner_gate;
  const StreamMix* mixer_streams;  // how the mixer and the feed-forward part take the rows of a token; or null
  const StreamMix* inner_streams;
  const NgramEmbeddings* ngrams;  // added to the rows of a token before the mixer; or null
  const Convolution* mixer_convolution;  // of the mixer's results, whose own are added instead of them; or null
  const Convolution* inner_convolution;  // the same of the feed-forward part
  const ResidualGate* mixer_residual_gate;  // of the sum with the mixer's results; or null
  const ResidualGate* inner_residual_gate;  // the same of the feed-forward part
  const void* mixer;        // the spec of its kind
  const void* feed_forward;
  const void* next_mixture;  // of the next layer with experts, which are predicted; or null
  MixerKind mixer_kind;
  FeedForwardKind feed_forward_kind;
  int32_t index;            // of this layer in an adapter's layers
  int32_t is_parallel;      // the feed-forward part takes what the mixer takes, and has no norm before it
  float residual_scale;     // factor of what both add to the hidden states
  float output_scale;       // factor of the hidden states after the layer
  float mixer_residual;     // if not 0, the mixer's rows times this take the place of the hidden states
  float inner_residual;     // the same of the feed-forward part's rows
  int32_t adds_deferred;    // adds the sum of experts that an earlier layer deferred
};
}  // extern "C"

// Writes the norm of hidden states to `normed`. If `residual` is not 0, the hidden states become these rows times it.
inline void norm_hidden(const Level& level, const Norm& norm, float residual, float* hidden, int64_t size, float* normed) {
  apply_norm(level, norm, hidden, size, normed);
  for (int64_t i = 0; residual != 0.0f && i < size; ++i) hidden[i] = normed[i] * residual;
}

// Adds the results of a part to the hidden states of a token.
inline void add_to_hidden(const Level& level, const LayerSpec& layer, const ResidualGate* gate, const float* results,
                                int64_t size, float* hidden) {
  if (!gate) return level.add_scaled(hidden, results, layer.residual_scale, size);
  for (int64_t i = 0; i < size; ++i) hidden[i] = hidden[i] * gate->kept[i] + results[i] * gate->added[i];
  if (gate->bias) level.add_scaled(hidden, gate->bias, 1.0f, size);
}

// A check returns null, or what is impossible: the rest of a sentence that begins with "it has".
struct MixerOperations {
  // Memory that is bound later, such as a cache, is checked once it is there.
  const char* (*check)(const void* spec, int64_t hidden_size);

  // Normalises the hidden states into `step.normed`, runs the mixer and gives its results to `MixerResults`.
  void (*run)(Context& context, const LayerSpec& layer, const StepCall& step);
};

// Some experts of a layer and their slots.
struct GivenExperts {
  const int32_t* experts;  // (count): their indices in a row of `StepCall::slots`
  const uint64_t* slots;   // (count) addresses
  int64_t count;
};

struct FeedForwardOperations {
  bool is_routed;  // has a row of choices, slots and counts in a step; `place` is its index among those

  const char* (*check)(const void* spec, int64_t hidden_size, int64_t slot_bytes);

  // Normalises the hidden states, and chooses experts if it is routed.
  void (*begin)(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place);

  // Counts the rows of each chosen expert, and runs them; returns their results (tokens * top_k, hidden), or null if it is
  // not routed, or one of them or of those predicted for the next layer has no slot.
  const float* (*run_experts)(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place);

  // Runs those of the chosen experts that are given, and keeps their results.
  void (*run_given)(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place,
                    const GivenExperts& given);

  // Adds these weighted results, by default those that were kept, and those of what every token runs through.
  void (*finish)(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place, const float* outputs);
};

// Takes the results of a mixer, each number once: adds them to the hidden states, or keeps them for the norm, the
// convolution or the gate after it.
class MixerResults {
 public:
  MixerResults(Context& context, const LayerSpec& layer, const StepCall& step);

  void take(int64_t row, int64_t first, const float* numbers, int64_t count) const;

 private:
  const Level& level_;
  const LayerSpec& layer_;
  const StepCall& step_;
  float* kept_;  // (tokens, hidden) or null
};

// Null if there is no such kind.
const MixerOperations* operations_of(MixerKind kind);
const FeedForwardOperations* operations_of(FeedForwardKind kind);

const char* check_layer(const LayerSpec& layer, int64_t hidden_size, int64_t slot_bytes);

// Normalises the hidden states for a mixer of the external kind, into `step.normed`.
void norm_input(Context& context, const LayerSpec& layer, const StepCall& step);

// Runs a layer up to the choice of its experts.
void begin_layer(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place);

// Runs some of the experts that a layer has chosen, which has begun; finishes the layer after the last ones.
void run_chosen_experts(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place,
                        const GivenExperts& given, bool are_last);

// Adds the results of its experts, and what else the layer adds.
void finish_layer(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place, const float* outputs);

// Runs layers up to the first one that chooses an expert without a slot, or for whose successor one is predicted that is to
// be in memory and is not; that one has begun. Returns how many were finished. `place` is the index of the first among those
// that are routed.
int64_t run_layers(Context& context, const LayerSpec* layers, int64_t num_layers, const StepCall& step, int64_t place);

}  // namespace greenroom
