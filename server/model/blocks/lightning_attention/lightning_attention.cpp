#include "model/blocks/lightning_attention/lightning_attention.h"

#include <algorithm>

#include "formats/checks.h"
#include "model/blocks/recurrent/recurrent_heads.h"

namespace greenroom {
namespace {

void run(Context& context, const LayerSpec& layer, const StepCall& step) {
  const auto& spec = *static_cast<const LightningAttention*>(layer.mixer);
  const Level& level = context.level;
  auto& memory = context.mixers.of<RecurrentScratch>();
  ProjectedMixer mixer(context, memory.projections, spec.projections, layer, step);
  const int64_t size = spec.head_dim, inner = spec.heads * size;
  const RecurrentHeads heads(context, memory.heads, step, spec.states, spec.heads, size, size, false);
  const Gate activation{spec.activation, 0, 0, 0.0f, 0.0f};
  const auto fill = [&](int64_t token, int64_t head, const HeadTokens& to) {
    const float* from = mixer.row(token) + head * size;
    level.activate(activation, from, size, to.query);
    level.activate(activation, from + inner, size, to.key);
    level.activate(activation, from + 2 * inner, size, to.value);
    std::fill(to.decay, to.decay + size, spec.decay[head]);
  };
  const auto finish = [](int64_t, int64_t) {};
  auto recur = [&](int64_t tile, int thread) { heads.run(tile, thread, mixer.results, inner, fill, finish); };
  auto norm = [&](int64_t token, int) {
    float* result = mixer.result(token);
    level.normalise(result, spec.norm, spec.norm_epsilon, inner, result);
    level.apply_gates(result, mixer.row(token) + 3 * inner, inner, false);
  };
  mixer.run([&](PhaseList& phases) {
    phases.add(heads.num_tiles(), recur);
    phases.add(step.tokens, norm);
  });
}

const char* check(const void* mixer, int64_t hidden_size) {
  const auto& spec = *static_cast<const LightningAttention*>(mixer);
  if (!is_count(spec.heads) || !is_count(spec.head_dim)) return "heads without a size";
  if (spec.activation < Activation::kSilu || spec.activation > Activation::kQuickGelu ||
      spec.activation == Activation::kClampedSwish) {
    return "an unknown activation";
  }
  if (!spec.decay || !spec.norm) return "heads without decays or a norm";
  const int64_t inner = spec.heads * spec.head_dim;
  return check_projections(spec.projections, hidden_size, 4 * inner, inner);
}

}  // namespace

const MixerOperations kLightningAttention = {check, run};

}  // namespace greenroom
