#include "model/blocks/short_convolution/short_convolution.h"

namespace greenroom {
namespace {

struct ShortConvolutionScratch {
  ProjectionScratch projections;
};

void run(Context& context, const LayerSpec& layer, const StepCall& step) {
  const auto& spec = *static_cast<const ShortConvolution*>(layer.mixer);
  ProjectedMixer mixer(context, context.mixers.of<ShortConvolutionScratch>().projections, spec.projections, layer, step);
  const int64_t channels = spec.convolution.channels;
  auto gate = [&](int64_t token, int) {
    float* inner = mixer.row(token);
    const float* x = inner + 2 * channels;
    for (int64_t i = 0; i < channels; ++i) inner[i] *= x[i];
  };
  auto convolve = ConvolutionStep(context.level, spec.convolution, step, mixer.rows, mixer.width, mixer.results, channels);
  auto gate_again = [&](int64_t token, int) {
    const float* outer = mixer.row(token) + channels;
    float* result = mixer.result(token);
    for (int64_t i = 0; i < channels; ++i) result[i] *= outer[i];
  };
  mixer.run([&](PhaseList& phases) {
    phases.add(step.tokens, gate);
    phases.add(convolve.num_tiles(), convolve);
    phases.add(step.tokens, gate_again);
  });
}

const char* check(const void* mixer, int64_t hidden_size) {
  const auto& spec = *static_cast<const ShortConvolution*>(mixer);
  if (const char* reason = check_convolution(spec.convolution)) return reason;
  const int64_t channels = spec.convolution.channels;
  return check_projections(spec.projections, hidden_size, 3 * channels, channels);
}

}  // namespace

const MixerOperations kShortConvolution = {check, run};

}  // namespace greenroom
