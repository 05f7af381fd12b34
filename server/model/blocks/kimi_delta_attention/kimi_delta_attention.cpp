#include "model/blocks/kimi_delta_attention/kimi_delta_attention.h"

#include <cmath>
#include <cstring>

#include "formats/checks.h"
#include "model/blocks/recurrent/recurrent_heads.h"

namespace greenroom {
namespace {

void run(Context& context, const LayerSpec& layer, const StepCall& step) {
  const auto& spec = *static_cast<const KimiDeltaAttention*>(layer.mixer);
  const Level& level = context.level;
  auto& memory = context.mixers.of<RecurrentScratch>();
  ProjectedMixer mixer(context, memory.projections, spec.projections, layer, step);
  const int64_t channels = spec.convolution.channels, size = spec.head_dim, inner = spec.heads * size;
  float* mixed = memory.mixed.reserve<float>(step.tokens * channels * 4);
  ConvolutionStep convolve(level, spec.convolution, step, mixer.rows, mixer.width, mixed, channels);
  const RecurrentHeads heads(context, memory.heads, step, spec.states, spec.heads, size, size, true);
  const float query_scale = 1.0f / std::sqrt(static_cast<float>(size));
  const auto fill = [&](int64_t token, int64_t head, const HeadTokens& to) {
    const float* from = mixed + token * channels + head * size;
    const float* decays = mixer.row(token) + channels + inner + head * size;
    const float *bias = spec.decay_bias + head * size, rate = spec.decay[head];
    to_length(level, from, query_scale, size, to.query);
    to_length(level, from + inner, 1.0f, size, to.key);
    std::memcpy(to.value, from + 2 * inner, static_cast<size_t>(size) * sizeof(float));
    for (int64_t i = 0; i < size; ++i) {
      const float x = decays[i] + bias[i];
      const float power = spec.least_decay ? spec.least_decay / (1.0f + std::exp(rate * x)) : rate * soft_plus(x);
      to.decay[i] = std::exp(power);
      to.decayed_key[i] = to.key[i] * to.decay[i];
    }
    *to.beta = 1.0f / (1.0f + std::exp(-mixer.row(token)[channels + 2 * inner + head]));
  };
  const auto finish = [&](int64_t token, int64_t head) {
    float* result = mixer.result(token) + head * size;
    level.normalise(result, spec.norm, spec.norm_epsilon, size, result);
    level.apply_gates(result, mixer.row(token) + channels + head * size, size, false);
  };
  auto recur = [&](int64_t tile, int thread) { heads.run(tile, thread, mixer.results, inner, fill, finish); };
  mixer.run([&](PhaseList& phases) {
    phases.add(convolve.num_tiles(), convolve);
    phases.add(heads.num_tiles(), recur);
  });
}

const char* check(const void* mixer, int64_t hidden_size) {
  const auto& spec = *static_cast<const KimiDeltaAttention*>(mixer);
  if (!is_count(spec.heads) || !is_count(spec.head_dim)) return "heads without a size";
  if (const char* reason = check_convolution(spec.convolution)) return reason;
  const int64_t inner = spec.heads * spec.head_dim;
  if (spec.convolution.channels != 3 * inner) return "a convolution that doesn't fit its heads";
  if (!spec.decay || !spec.decay_bias || !spec.norm) return "heads without decays or a norm";
  return check_projections(spec.projections, hidden_size, 5 * inner + spec.heads, inner);
}

}  // namespace

const MixerOperations kKimiDeltaAttention = {check, run};

}  // namespace greenroom
