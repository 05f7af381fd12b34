#include "layers/result_convolution.h"

namespace greenroom {

const char* check_result_convolutions(const LayerSpec& layer, int64_t hidden_size) {
  if (!layer.mixer_convolution && !layer.inner_convolution) return nullptr;
  for (const Convolution* each : {layer.mixer_convolution, layer.inner_convolution}) {
    if (!each) return "a convolution of the results of one part alone";
    if (const char* reason = check_convolution(*each)) return reason;
    if (each->channels != hidden_size) return "a convolution that doesn't fit its results";
  }
  if (layer.mixer_norm.kind != NormKind::kNone || layer.output_norm.kind != NormKind::kNone) return "results that are both normed and convolved";
  if (layer.feed_forward_kind == FeedForwardKind::kNone) return "a convolution of the results of no part";
  const bool is_usual = layer.output_scale == 1.0f && !layer.adds_deferred;
  return is_usual ? nullptr : "convolved results that are added otherwise";
}

void add_convolved(Context& context, const Convolution& spec, const LayerSpec& layer, const StepCall& step, const float* results) {
  const int64_t size = step.hidden_size;
  float* convolved = context.convolved.reserve<float>(step.tokens * size * 4);
  const ConvolutionStep convolve(context.level, spec, step, results, size, convolved, size);
  auto add = [&](int64_t tile, int thread) {
    convolve(tile, thread);
    if (tile < step.tokens) context.level.add_scaled(step.hidden + tile * size, convolved + tile * size, layer.residual_scale, size);
  };
  const Phase phase = phase_of(convolve.num_tiles(), add);
  context.pool.run(&phase, 1);
}

}  // namespace greenroom
