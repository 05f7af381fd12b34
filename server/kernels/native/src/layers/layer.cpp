#include "layers/layer.h"

#include <cstring>
#include <iterator>

#include "formats/checks.h"
#include "layers/layer_adapters.h"
#include "layers/mixture.h"
#include "layers/result_convolution.h"
#include "model/blocks/compressed_attention/compressed_attention.h"
#include "model/blocks/gated_delta_net/gated_delta_net.h"
#include "model/blocks/grouped_attention/grouped_attention.h"
#include "model/blocks/kimi_delta_attention/kimi_delta_attention.h"
#include "model/blocks/latent_attention/latent_attention.h"
#include "model/blocks/lightning_attention/lightning_attention.h"
#include "model/blocks/mamba1/mamba1.h"
#include "model/blocks/mamba2/mamba2.h"
#include "model/blocks/short_convolution/short_convolution.h"

namespace greenroom {
namespace {

constexpr MixerOperations kExternal = {
    [](const void*, int64_t) -> const char* { return nullptr; },
    [](Context&, const LayerSpec&, const StepCall&) {},
};

constexpr MixerOperations kNoMixer = kExternal;

constexpr FeedForwardOperations kNoFeedForward = {
    false,
    [](const void*, int64_t, int64_t) -> const char* { return nullptr; },
    [](Context&, const LayerSpec&, const StepCall&, int64_t) {},
    [](Context&, const LayerSpec&, const StepCall&, int64_t) -> const float* { return nullptr; },
    [](Context&, const LayerSpec&, const StepCall&, int64_t, const GivenExperts&) {},
    [](Context&, const LayerSpec& layer, const StepCall& step, int64_t, const float*) {
      if (layer.output_scale == 1.0f) return;
      for (int64_t i = 0; i < step.tokens * step.hidden_size; ++i) step.hidden[i] *= layer.output_scale;
    },
};

// By kind.
const MixerOperations* const kMixers[] = {&kExternal, &kGroupedAttention, &kLatentAttention, &kGatedDeltaNet,
                                          &kShortConvolution, &kMamba2, &kNoMixer, &kKimiDeltaAttention,
                                          &kLightningAttention, &kMamba1, &kCompressedAttention};
const FeedForwardOperations* const kFeedForwards[] = {&kMlp, &kExperts, &kNoFeedForward};

template <typename Operations, size_t N, typename Kind>
const Operations* at(const Operations* const (&table)[N], Kind kind) {
  const auto number = static_cast<int64_t>(kind);
  return number >= 0 && number < static_cast<int64_t>(N) ? table[number] : nullptr;
}

float* kept_results(Context& context, const LayerSpec& layer, const StepCall& step) {
  const bool is_changed = layer.mixer_norm.kind != NormKind::kNone || layer.mixer_convolution || layer.mixer_residual_gate;
  if (!is_changed) return nullptr;
  return context.mixed.reserve<float>(step.tokens * step.hidden_size * 4);
}

// Adds a mixer's results to the hidden states after the norm or the convolution, if there is one.
void add_kept_results(Context& context, const LayerSpec& layer, const StepCall& step) {
  const int64_t size = step.hidden_size;
  float* kept = kept_results(context, layer, step);
  if (!kept) return;
  if (layer.mixer_convolution) return add_convolved(context, *layer.mixer_convolution, layer, step, kept);
  auto add = [&](int64_t token, int) {
    float* row = kept + token * size;
    apply_norm(context.level, layer.mixer_norm, row, size, row);
    add_to_hidden(context.level, layer, layer.mixer_residual_gate, row, size, step.hidden + token * size);
  };
  const Phase phase = phase_of(step.tokens, add);
  context.pool.run(&phase, 1);
}

}  // namespace

MixerResults::MixerResults(Context& context, const LayerSpec& layer, const StepCall& step)
    : level_(context.level), layer_(layer), step_(step), kept_(kept_results(context, layer, step)) {}

void MixerResults::take(int64_t row, int64_t first, const float* numbers, int64_t count) const {
  const int64_t place = row * step_.hidden_size + first;
  if (kept_) {
    std::memcpy(kept_ + place, numbers, static_cast<size_t>(count) * sizeof(float));
  } else {
    level_.add_scaled(step_.hidden + place, numbers, layer_.residual_scale, count);
  }
}

// Returns null, or what is impossible in the gates of a layer's sums.
const char* check_residual_gates(const LayerSpec& layer, bool has_results) {
  if (!layer.mixer_residual_gate && !layer.inner_residual_gate) return nullptr;
  for (const ResidualGate* gate : {layer.mixer_residual_gate, layer.inner_residual_gate}) {
    if (!gate || !gate->kept || !gate->added) return "gates of a part of its sums alone";
  }
  if (!has_results) return "a gated sum with a mixer that the kernels don't run";
  if (layer.feed_forward_kind == FeedForwardKind::kNone) return "a gated sum with the results of no part";
  const bool is_usual = layer.residual_scale == 1.0f && layer.output_scale == 1.0f && layer.mixer_residual == 0.0f &&
                        layer.inner_residual == 0.0f && !layer.adds_deferred && !layer.is_parallel;
  return is_usual && !layer.mixer_convolution && !layer.mixer_streams ? nullptr : "gated sums that are changed otherwise";
}

// The rows that a part takes of a token.
int32_t queries_of(const StreamMix* mix) { return mix && mix->blocks ? mix->blocks->num_queries : 1; }

// Returns null, or what is impossible in a layer whose residual stream has several rows a token.
const char* check_streams(const LayerSpec& layer, int64_t hidden_size) {
  if (!layer.mixer_streams && !layer.inner_streams) {
    return layer.ngrams ? "embeddings of n-grams and one residual stream" : nullptr;
  }
  if (!layer.mixer_streams || !layer.inner_streams) return "several residual streams for one of its parts";
  for (const StreamMix* mix : {layer.mixer_streams, layer.inner_streams}) {
    if (mix->is_last) return "residual streams that take no results";
    if (!mix->blocks != !layer.mixer_streams->blocks) return "residual streams that are mixed in two ways";
    if (const char* reason = check_stream_mix(*mix, hidden_size)) return reason;
  }
  if (layer.mixer_streams->num_streams != layer.inner_streams->num_streams) return "parts of other residual streams";
  if (layer.ngrams) {
    const bool fits = layer.ngrams->num_streams == layer.mixer_streams->num_streams;
    if (!fits) return "embeddings of n-grams for other residual streams";
    if (const char* reason = check_ngram_embeddings(*layer.ngrams, hidden_size)) return reason;
  }
  const bool has_both = layer.mixer_kind != MixerKind::kNone && layer.feed_forward_kind != FeedForwardKind::kNone;
  if (!has_both || layer.is_parallel) return "several residual streams and not one part after another";
  if (layer.input_gate || layer.inner_gate) return "several residual streams and gated rows";
  const auto* mlp = layer.feed_forward_kind == FeedForwardKind::kMlp ? static_cast<const Mlp*>(layer.feed_forward) : nullptr;
  const auto* mixture = mlp ? nullptr : static_cast<const Mixture*>(layer.feed_forward);
  if (mixture && mixture->has_shared) mlp = &mixture->shared;
  const bool has_own_rows = (mlp && mlp->input_norm.kind != NormKind::kNone) ||
                            (mixture && (mixture->router_norm.kind != NormKind::kNone || mixture->is_deferred));
  if (has_own_rows) return "several residual streams and parts that take other rows";
  const bool is_usual = layer.output_scale == 1.0f && layer.mixer_residual == 0.0f && layer.inner_residual == 0.0f;
  return is_usual && !layer.adds_deferred ? nullptr : "several residual streams that are changed otherwise";
}

const MixerOperations* operations_of(MixerKind kind) { return at(kMixers, kind); }
const FeedForwardOperations* operations_of(FeedForwardKind kind) { return at(kFeedForwards, kind); }

const char* check_layer(const LayerSpec& layer, int64_t hidden_size, int64_t slot_bytes) {
  if (!is_count(hidden_size)) return "hidden states without a size";
  for (const Norm& norm : {layer.input_norm, layer.mixer_norm, layer.inner_norm, layer.output_norm}) {
    if (const char* reason = check_norm(norm)) return reason;
  }
  for (const NormGate* gate : {layer.input_gate, layer.inner_gate}) {
    const char* reason = gate ? check_norm_gate(*gate, hidden_size) : nullptr;
    if (reason) return reason;
  }
  if (layer.input_gate && layer.mixer_residual != 0.0f) return "gated rows in the place of the hidden states";
  if (layer.inner_gate && (layer.inner_residual != 0.0f || layer.is_parallel)) return "gated rows in another place";
  const MixerOperations* mixer = operations_of(layer.mixer_kind);
  const FeedForwardOperations* feed_forward = operations_of(layer.feed_forward_kind);
  if (!mixer || !feed_forward) return "parts of no known kind";
  if (const char* reason = check_streams(layer, hidden_size)) return reason;
  const bool has_results = mixer != &kExternal && mixer != &kNoMixer;
  if (!has_results && layer.mixer_norm.kind != NormKind::kNone) return "a norm after a mixer that the kernels don't run";
  if (!has_results && layer.mixer_convolution) return "a convolution after a mixer that the kernels don't run";
  if (const char* reason = check_residual_gates(layer, has_results)) return reason;
  if (const char* reason = check_result_convolutions(layer, hidden_size)) return reason;
  if (mixer == &kNoMixer && feed_forward == &kNoFeedForward) return "neither a mixer nor a feed-forward part";
  if (layer.adds_deferred && feed_forward == &kNoFeedForward) return "results of experts and no part that adds them";
  if (const char* reason = mixer->check(layer.mixer, hidden_size)) return reason;
  const bool is_grouped = layer.mixer_kind == MixerKind::kGroupedAttention;
  const bool has_own = is_grouped && static_cast<const GroupedAttention*>(layer.mixer)->has_own_inputs;
  if (has_own && queries_of(layer.mixer_streams) < kMostQueries) return "keys and values of rows that are not there";
  return feed_forward->check(layer.feed_forward, hidden_size, slot_bytes);
}

void norm_input(Context& context, const LayerSpec& layer, const StepCall& step) {
  const AdaptedRows rows = rows_of(layer, step);
  constexpr LoraPlace kGate = LoraPlace::kInputGate;
  if (layer.input_gate) return run_gated_norm(context, layer.input_norm, *layer.input_gate, step, rows, kGate);
  if (layer.ngrams) add_ngram_embeddings(context, *layer.ngrams, step, rows);
  if (layer.mixer_streams) return open_streams(context, *layer.mixer_streams, layer.input_norm, step, rows, kGate);
  const int64_t size = step.hidden_size;
  auto norm = [&](int64_t token, int) {
    norm_hidden(context.level, layer.input_norm, layer.mixer_residual, step.hidden + token * size, size,
                step.normed + token * size);
  };
  const Phase phase = phase_of(step.tokens, norm);
  context.pool.run(&phase, 1);
}

void begin_layer(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place) {
  LayerSpec own = layer;  // whose norms may be ready
  const bool has_mixer = layer.mixer_kind != MixerKind::kExternal && layer.mixer_kind != MixerKind::kNone;
  if ((own.input_gate || own.mixer_streams) && has_mixer) {
    norm_input(context, layer, step);
    own.input_norm.kind = NormKind::kReady;
  }
  operations_of(own.mixer_kind)->run(context, own, step);
  add_kept_results(context, own, step);
  if (own.mixer_streams) close_streams(context, *own.mixer_streams, step);
  const AdaptedRows rows = rows_of(layer, step);
  constexpr LoraPlace kGate = LoraPlace::kInnerGate;
  if (own.inner_gate) run_gated_norm(context, own.inner_norm, *own.inner_gate, step, rows, kGate);
  if (own.inner_streams) open_streams(context, *own.inner_streams, own.inner_norm, step, rows, kGate);
  if (own.inner_gate || own.inner_streams) own.inner_norm.kind = NormKind::kReady;
  operations_of(own.feed_forward_kind)->begin(context, own, step, place);
}

void finish_layer(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place, const float* outputs) {
  operations_of(layer.feed_forward_kind)->finish(context, layer, step, place, outputs);
  if (layer.inner_streams) close_streams(context, *layer.inner_streams, step);
}

void run_chosen_experts(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place,
                        const GivenExperts& given, bool are_last) {
  operations_of(layer.feed_forward_kind)->run_given(context, layer, step, place, given);
  if (are_last) finish_layer(context, layer, step, place, nullptr);
}

int64_t run_layers(Context& context, const LayerSpec* layers, int64_t num_layers, const StepCall& step, int64_t place) {
  for (int64_t i = 0; i < num_layers; ++i) {
    if (context.is_stopped.load(std::memory_order_relaxed)) return i;
    const FeedForwardOperations& feed_forward = *operations_of(layers[i].feed_forward_kind);
    begin_layer(context, layers[i], step, place);
    const float* outputs = feed_forward.run_experts(context, layers[i], step, place);
    if (feed_forward.is_routed && !outputs) return i;
    finish_layer(context, layers[i], step, place, outputs);
    place += feed_forward.is_routed;
  }
  return num_layers;
}

}  // namespace greenroom
