#include "model/blocks/gated_delta_net/gated_delta_net.h"

#include <cmath>
#include <cstring>

#include "formats/checks.h"
#include "model/blocks/recurrent/recurrent_heads.h"

namespace greenroom {
namespace {

void run(Context& context, const LayerSpec& layer, const StepCall& step) {
  const auto& spec = *static_cast<const GatedDeltaNet*>(layer.mixer);
  const Level& level = context.level;
  auto& memory = context.mixers.of<RecurrentScratch>();
  ProjectedMixer mixer(context, memory.projections, spec.projections, layer, step);
  const int64_t channels = spec.convolution.channels, keys = spec.key_heads * spec.key_dim;
  const int64_t values = spec.value_heads * spec.value_dim;
  float* mixed = memory.mixed.reserve<float>(step.tokens * channels * 4);
  auto convolve =
      ConvolutionStep(level, spec.convolution, step, mixer.rows, mixer.width, mixed, channels);
  const RecurrentHeads heads(context, memory.heads, step, spec.states, spec.value_heads, spec.key_dim, spec.value_dim,
                             true);
  const float query_scale = 1.0f / std::sqrt(static_cast<float>(spec.key_dim));
  const auto fill = [&](int64_t token, int64_t head, const HeadTokens& to) {
    const float* from = mixed + token * channels;
    const float* scalars = mixer.row(token) + channels + values;
    const int64_t key_head = head / (spec.value_heads / spec.key_heads);
    to_length(level, from + key_head * spec.key_dim, query_scale, spec.key_dim, to.query);
    to_length(level, from + keys + key_head * spec.key_dim, 1.0f, spec.key_dim, to.key);
    const float rate = soft_plus(scalars[spec.value_heads + head] + spec.decay_bias[head]);
    const float decay = std::exp(spec.decay[head] * rate);
    for (int64_t i = 0; i < spec.key_dim; ++i) {
      to.decay[i] = decay;
      to.decayed_key[i] = to.key[i] * decay;
    }
    std::memcpy(to.value, from + 2 * keys + head * spec.value_dim, static_cast<size_t>(spec.value_dim) * sizeof(float));
    *to.beta = 1.0f / (1.0f + std::exp(-scalars[head]));
  };
  const auto finish = [&](int64_t token, int64_t head) {
    float* result = mixer.result(token) + head * spec.value_dim;
    level.normalise(result, spec.norm, spec.norm_epsilon, spec.value_dim, result);
    level.apply_gates(result, mixer.row(token) + channels + head * spec.value_dim, spec.value_dim, !spec.has_sigmoid_gates);
  };
  auto recur = [&](int64_t tile, int thread) { heads.run(tile, thread, mixer.results, values, fill, finish); };
  mixer.run([&](PhaseList& phases) {
    phases.add(convolve.num_tiles(), convolve);
    phases.add(heads.num_tiles(), recur);
  });
}

const char* check(const void* mixer, int64_t hidden_size) {
  const auto& spec = *static_cast<const GatedDeltaNet*>(mixer);
  if (!is_count(spec.key_heads) || !is_count(spec.value_heads) || spec.value_heads % spec.key_heads) {
    return "a number of heads that its keys can't be shared by";
  }
  if (!is_count(spec.key_dim) || !is_count(spec.value_dim)) return "heads without a size";
  if (const char* reason = check_convolution(spec.convolution)) return reason;
  const int64_t values = spec.value_heads * spec.value_dim, keys = spec.key_heads * spec.key_dim;
  if (spec.convolution.channels != 2 * keys + values) return "a convolution that doesn't fit its heads";
  if (!spec.decay || !spec.decay_bias || !spec.norm) return "heads without decays or a norm";
  return check_projections(spec.projections, hidden_size, 2 * keys + 2 * values + 2 * spec.value_heads, values);
}

}  // namespace

const MixerOperations kGatedDeltaNet = {check, run};

}  // namespace greenroom
