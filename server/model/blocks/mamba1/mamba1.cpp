#include "model/blocks/mamba1/mamba1.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "formats/checks.h"
#include "model/blocks/recurrent/recurrent_heads.h"

namespace greenroom {
namespace {

constexpr int64_t kChannelTile = 64;  // channels of a sequence that a thread scans at a time

struct Mamba1Scratch {
  ProjectionScratch projections;
  Buffer panels;
  Buffer mixed;     // (tokens, channels): results of the convolution
  Buffer selected;  // (tokens, rank + 2 * state_size)
  Buffer steps;     // (tokens, channels)
  LoraSums lora;
};

void run(Context& context, const LayerSpec& layer, const StepCall& step) {
  const auto& spec = *static_cast<const Mamba1*>(layer.mixer);
  const Level& level = context.level;
  auto& memory = context.mixers.of<Mamba1Scratch>();
  ProjectedMixer mixer(context, memory.projections, spec.projections, layer, step);
  const int64_t channels = spec.convolution.channels, padded = round_up(channels, kStateLanes);
  const int64_t rank = spec.to_steps.inputs, states = spec.state_size, width = rank + 2 * states;
  const int64_t tokens = step.tokens;
  float* mixed = memory.mixed.reserve<float>(tokens * channels * 4);
  float* selected = memory.selected.reserve<float>(tokens * width * 4);
  float* steps = memory.steps.reserve<float>(tokens * channels * 4);
  const PanelKind kinds[] = {level.panel_kind(spec.select, step.is_exact), level.panel_kind(spec.to_steps, step.is_exact)};
  const int64_t select_bytes = round_up(panel_bytes(kinds[0], tokens, channels), 64);
  char* place = memory.panels.reserve(select_bytes + panel_bytes(kinds[1], tokens, rank));
  Panel select_panel = place_panel(kinds[0], tokens, channels, place);
  Panel step_panel = place_panel(kinds[1], tokens, rank, place + select_bytes);
  LoraSums& lora = memory.lora;
  lora.clear();

  ConvolutionStep convolve(level, spec.convolution, step, mixer.rows, mixer.width, mixed, channels);
  auto prepare = [&](int64_t tile, int thread) {
    if (tile >= tokens) return lora.multiply_down(level, tile - tokens, thread);
    level.prepare(select_panel, mixed, Format::kFloat32, channels, nullptr, tile, tile + 1);
  };
  const Side select_side{&spec.select, nullptr, 0, &lora};
  auto select = multiply_sides(context, select_panel, &select_side, 1, kOutputTile,
                               [&](int64_t row, int64_t output, const float* sums, int64_t count) {
                                 float* to = selected + row * width + output;
                                 std::memcpy(to, sums, static_cast<size_t>(count) * sizeof(float));
                               });
  auto norm = [&](int64_t token, int) {
    float* row = selected + token * width;
    if (spec.step_norm) {
      level.normalise(row, spec.step_norm, spec.norm_epsilon, rank, row);
      level.normalise(row + rank, spec.key_norm, spec.norm_epsilon, states, row + rank);
      level.normalise(row + rank + states, spec.query_norm, spec.norm_epsilon, states, row + rank + states);
    }
    level.prepare(step_panel, selected, Format::kFloat32, width, nullptr, token, token + 1);
  };
  const Side step_side{&spec.to_steps, spec.step_bias, 0};
  auto make_steps = multiply_sides(context, step_panel, &step_side, 1, kOutputTile,
                                   [&](int64_t row, int64_t output, const float* sums, int64_t count) {
                                     float* to = steps + row * channels + output;
                                     for (int64_t i = 0; i < count; ++i) to[i] = soft_plus(sums[i]);
                                   });
  const int64_t tiles = divide_up(channels, kChannelTile);
  auto scan = [&](int64_t tile, int) {
    const StepSequence& sequence = step.sequences[tile / tiles];
    const int64_t first = tile % tiles * kChannelTile, count = std::min(kChannelTile, channels - first);
    const int64_t row = sequence.first_row, size = states * padded;
    float* state = spec.states + sequence.state_to * size + first;
    const float* before = spec.states + sequence.state_from * size + first;
    const auto bytes = static_cast<size_t>(std::min(round_up(count, kStateLanes), padded - first)) * sizeof(float);
    for (int64_t i = 0; i < states; ++i) {
      if (sequence.state_from < 0) {
        std::memset(state + i * padded, 0, bytes);
      } else {
        std::memcpy(state + i * padded, before + i * padded, bytes);
      }
    }
    const float* keys = selected + row * width + rank;
    float* output = mixer.result(row) + first;
    level.scan({state, spec.decay + first, spec.direct + first, steps + row * channels + first,
                mixed + row * channels + first, keys, keys + states, output, sequence.num_tokens, states, count, padded,
                channels, width});
    for (int64_t i = 0; i < sequence.num_tokens; ++i) {
      level.apply_gates(output + i * channels, mixer.row(row + i) + channels + first, count, true);
    }
  };
  const LoraSite site{lora, mixer_place(static_cast<int>(spec.projections.num_inputs) + 1), mixed, channels};
  mixer.run([&](PhaseList& phases) {
    phases.add(convolve.num_tiles(), convolve);
    plan_sites(phases, &site, 1, context, layer, step);
    phases.add(tokens + lora.num_tiles(), prepare);
    phases.add(num_tiles(&select_side, 1, tokens, kOutputTile), select);
    phases.add(tokens, norm);
    phases.add(num_tiles(&step_side, 1, tokens, kOutputTile), make_steps);
    phases.add(step.num_sequences * tiles, scan);
  });
}

const char* check(const void* mixer, int64_t hidden_size) {
  const auto& spec = *static_cast<const Mamba1*>(mixer);
  if (const char* reason = check_convolution(spec.convolution)) return reason;
  const int64_t channels = spec.convolution.channels;
  if (!is_count(spec.state_size)) return "channels without states";
  if (!is_shaped(spec.to_steps, channels, spec.to_steps.inputs) ||
      !is_shaped(spec.select, spec.to_steps.inputs + 2 * spec.state_size, channels)) {
    return "time steps that don't fit its channels";
  }
  if (!spec.step_norm != !spec.key_norm || !spec.step_norm != !spec.query_norm) return "only some norms";
  if (!spec.step_bias || !spec.decay || !spec.direct) return "channels without decays";
  return check_projections(spec.projections, hidden_size, 2 * channels, channels);
}

}  // namespace

const MixerOperations kMamba1 = {check, run};

}  // namespace greenroom
