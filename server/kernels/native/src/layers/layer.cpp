#include "layers/layer.h"

#include <iterator>

#include "formats/checks.h"
#include "layers/grouped_attention.h"
#include "layers/mixture.h"

namespace greenroom {
namespace {

constexpr MixerOperations kExternal = {
    [](const void*, int64_t) -> const char* { return nullptr; },
    [](Context&, const LayerSpec&, const StepCall&) {},
};

// By kind.
const MixerOperations* const kMixers[] = {&kExternal, &kGroupedAttention};
const FeedForwardOperations* const kFeedForwards[] = {&kMlp, &kExperts};

template <typename Operations, size_t N, typename Kind>
const Operations* at(const Operations* const (&table)[N], Kind kind) {
  const auto number = static_cast<int64_t>(kind);
  return number >= 0 && number < static_cast<int64_t>(N) ? table[number] : nullptr;
}

}  // namespace

const MixerOperations* operations_of(MixerKind kind) { return at(kMixers, kind); }
const FeedForwardOperations* operations_of(FeedForwardKind kind) { return at(kFeedForwards, kind); }

const char* check_layer(const LayerSpec& layer, int64_t hidden_size, int64_t slot_bytes) {
  if (!is_count(hidden_size)) return "hidden states without a size";
  const MixerOperations* mixer = operations_of(layer.mixer_kind);
  const FeedForwardOperations* feed_forward = operations_of(layer.feed_forward_kind);
  if (!mixer || !feed_forward) return "parts of no known kind";
  if (const char* reason = mixer->check(layer.mixer, hidden_size)) return reason;
  return feed_forward->check(layer.feed_forward, hidden_size, slot_bytes);
}

void norm_input(Context& context, const LayerSpec& layer, const StepCall& step) {
  const int64_t size = step.hidden_size;
  auto norm = [&](int64_t token, int) {
    context.level.normalise(step.hidden + token * size, layer.input_norm, layer.norm_epsilon, size,
                           step.normed + token * size);
  };
  const Phase phase = phase_of(step.tokens, norm);
  context.pool.run(&phase, 1);
}

void begin_layer(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place) {
  operations_of(layer.mixer_kind)->run(context, layer, step);
  operations_of(layer.feed_forward_kind)->begin(context, layer, step, place);
}

void finish_layer(Context& context, const LayerSpec& layer, const StepCall& step, int64_t place, const float* outputs) {
  operations_of(layer.feed_forward_kind)->finish(context, layer, step, place, outputs);
}

void run_layers(Context& context, const LayerSpec* layers, int64_t num_layers, const StepCall& step, int64_t place) {
  for (int64_t i = 0; i < num_layers; ++i) {
    const FeedForwardOperations& feed_forward = *operations_of(layers[i].feed_forward_kind);
    begin_layer(context, layers[i], step, place);
    const float* outputs = feed_forward.run_experts(context, layers[i], step, place);
    finish_layer(context, layers[i], step, place, outputs);
    place += feed_forward.is_routed;
  }
}

}  // namespace greenroom
