#include "model/blocks/mamba2/mamba2.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "formats/checks.h"
#include "model/blocks/recurrent/recurrent_heads.h"

namespace greenroom {
namespace {

void run(Context& context, const LayerSpec& layer, const StepCall& step) {
  const auto& spec = *static_cast<const Mamba2*>(layer.mixer);
  const Level& level = context.level;
  auto& memory = context.mixers.of<RecurrentScratch>();
  ProjectedMixer mixer(context, memory.projections, spec.projections, layer, step);
  const int64_t channels = spec.convolution.channels, inner = spec.heads * spec.head_dim;
  float* mixed = memory.mixed.reserve<float>(step.tokens * channels * 4);
  ConvolutionStep convolve(level, spec.convolution, step, mixer.rows + inner, mixer.width, mixed, channels);
  const RecurrentHeads heads(context, memory.heads, step, spec.states, spec.heads, spec.state_size, spec.head_dim,
                             false);
  const auto fill = [&](int64_t token, int64_t head, const HeadTokens& to) {
    const float* from = mixed + token * channels;
    const float* keys = from + inner + head / (spec.heads / spec.groups) * spec.state_size;
    const float time = soft_plus(mixer.row(token)[inner + channels + head] + spec.step_bias[head]);
    const float bounded = std::min(std::max(time, spec.least_step), spec.longest_step);
    const auto bytes = static_cast<size_t>(spec.state_size) * sizeof(float);
    std::memcpy(to.key, keys, bytes);
    std::memcpy(to.query, keys + spec.groups * spec.state_size, bytes);
    std::fill(to.decay, to.decay + spec.state_size, std::exp(spec.decay[head] * bounded));
    const float* x = from + head * spec.head_dim;
    for (int64_t i = 0; i < spec.head_dim; ++i) to.value[i] = x[i] * bounded;
  };
  const auto finish = [&](int64_t token, int64_t head) {
    level.add_scaled(mixer.result(token) + head * spec.head_dim, mixed + token * channels + head * spec.head_dim,
                     spec.direct[head], spec.head_dim);
  };
  auto recur = [&](int64_t tile, int thread) { heads.run(tile, thread, mixer.results, inner, fill, finish); };
  auto norm = [&](int64_t token, int) {
    float* result = mixer.result(token);
    level.apply_gates(result, mixer.row(token), inner, true);
    for (int64_t i = 0; i < inner; i += spec.norm_size) {
      level.normalise(result + i, spec.norm + i, spec.norm_epsilon, spec.norm_size, result + i);
    }
  };
  mixer.run([&](PhaseList& phases) {
    phases.add(convolve.num_tiles(), convolve);
    phases.add(heads.num_tiles(), recur);
    phases.add(step.tokens, norm);
  });
}

const char* check(const void* mixer, int64_t hidden_size) {
  const auto& spec = *static_cast<const Mamba2*>(mixer);
  if (!is_count(spec.heads) || !is_count(spec.groups) || spec.heads % spec.groups) {
    return "a number of heads that its groups can't share";
  }
  if (!is_count(spec.head_dim) || !is_count(spec.state_size)) return "heads without a size";
  if (const char* reason = check_convolution(spec.convolution)) return reason;
  const int64_t inner = spec.heads * spec.head_dim;
  if (!is_count(spec.norm_size) || inner % spec.norm_size) return "a norm that doesn't fit its heads";
  if (spec.convolution.channels != inner + 2 * spec.groups * spec.state_size) {
    return "a convolution that doesn't fit its heads";
  }
  if (!spec.decay || !spec.step_bias || !spec.direct || !spec.norm) return "heads without decays or a norm";
  return check_projections(spec.projections, hidden_size, inner + spec.convolution.channels + spec.heads, inner);
}

}  // namespace

const MixerOperations kMamba2 = {check, run};

}  // namespace greenroom
