#include "model/blocks/recurrent/projections.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "formats/checks.h"

namespace greenroom {

ProjectedMixer::ProjectedMixer(Context& context, ProjectionScratch& memory, const Projections& spec,
                               const LayerSpec& layer, const StepCall& step)
    : context_(context),
      memory_(memory),
      spec_(spec),
      layer_(layer),
      step_(step),
      taken_(context, layer, step),
      count_(static_cast<int>(spec.num_inputs)) {
  const Level& level = context.level;
  PanelKind kinds[kMostProjections];
  int panel_of[kMostProjections];
  int64_t size = 0;
  for (int i = 0; i < count_; ++i) {
    const PanelKind kind = level.panel_kind(spec.inputs[i], step.is_exact);
    panel_of[i] = static_cast<int>(std::find(kinds, kinds + num_panels_, kind) - kinds);
    if (panel_of[i] < num_panels_) continue;
    kinds[num_panels_++] = kind;
    size += round_up(panel_bytes(kind, step.tokens, step.hidden_size), 64);
  }
  const PanelKind output_kind = level.panel_kind(spec.output, step.is_exact);
  int64_t num_between = 0;
  for (int i = 0; i < count_; ++i) {
    const Matrix& second = spec.seconds[i];
    if (!second.outputs) continue;
    size += round_up(panel_bytes(level.panel_kind(second, step.is_exact), step.tokens, second.inputs), 64);
    num_between += step.tokens * second.inputs;
  }
  char* place = memory.panels.reserve(size + panel_bytes(output_kind, step.tokens, spec.output.inputs));
  for (int i = 0; i < num_panels_; ++i) {
    panels_[i] = place_panel(kinds[i], step.tokens, step.hidden_size, place);
    place += round_up(panel_bytes(kinds[i], step.tokens, step.hidden_size), 64);
  }
  float* between = memory.between.reserve<float>(num_between * 4);
  for (int i = 0; i < count_; ++i) {
    memory.lora[i].clear();
    sides_[i] = {&spec.inputs[i], spec.biases[i], width, &memory.lora[i], &panels_[panel_of[i]]};
    const Matrix& second = spec.seconds[i];
    width += second.outputs ? second.outputs : spec.inputs[i].outputs;
    if (!second.outputs) continue;
    const PanelKind kind = level.panel_kind(second, step.is_exact);
    second_panels_[num_seconds_] = place_panel(kind, step.tokens, second.inputs, place);
    place += round_up(panel_bytes(kind, step.tokens, second.inputs), 64);
    memory.second_lora[num_seconds_].clear();
    seconds_[num_seconds_] = {&second, nullptr, sides_[i].offset, &memory.second_lora[num_seconds_],
                              &second_panels_[num_seconds_]};
    between_[num_seconds_++] = between;
    between += step.tokens * second.inputs;
  }
  int64_t offset = width;
  for (int i = 0; i < count_; ++i) {
    if (!spec.seconds[i].outputs) continue;
    sides_[i].offset = offset;
    offset += spec.inputs[i].outputs;
  }
  output_panel_ = place_panel(output_kind, step.tokens, spec.output.inputs, place);
  output_panel_.order = static_cast<const int32_t*>(spec.output.order);
  memory.output_lora.clear();
  rows = memory.rows.reserve<float>(step.tokens * width * 4);
  results = memory.results.reserve<float>(step.tokens * spec.output.inputs * 4);
}

void ProjectedMixer::norm_token(int64_t token) {
  const int64_t size = step_.hidden_size;
  norm_hidden(context_.level, layer_.input_norm, layer_.mixer_residual, step_.hidden + token * size, size,
              step_.normed + token * size);
  for (int i = 0; i < num_panels_; ++i) {
    context_.level.prepare(panels_[i], step_.normed, Format::kFloat32, size, nullptr, token, token + 1);
  }
}

void ProjectedMixer::prepare_second(int64_t tile, int thread) {
  for (int i = 0; i < num_seconds_ && tile < step_.tokens; ++i) {
    context_.level.prepare(second_panels_[i], between_[i], Format::kFloat32, seconds_[i].matrix->inputs, nullptr, tile,
                           tile + 1);
  }
  tile -= step_.tokens;
  for (int i = 0; i < num_seconds_ && tile >= 0; ++i) {
    LoraSums& sums = memory_.second_lora[i];
    if (tile < sums.num_tiles()) return sums.multiply_down(context_.level, tile, thread);
    tile -= sums.num_tiles();
  }
}

void ProjectedMixer::take_rows(int64_t token, int64_t output, const float* sums, int64_t count) const {
  if (output >= width) {
    output -= width;
    for (int i = 0; i < num_seconds_; ++i) {
      const int64_t size = seconds_[i].matrix->inputs;
      if (output < size) {
        std::memcpy(between_[i] + token * size + output, sums, static_cast<size_t>(count) * sizeof(float));
        return;
      }
      output -= size;
    }
  }
  float* to = row(token);
  const int32_t* places = spec_.places ? spec_.places + output : nullptr;
  for (int64_t i = 0, run; i < count; i += run) {
    run = places ? 1 : count;
    if (places) {
      while (i + run < count && places[i + run] == places[i] + run) ++run;
    }
    std::memcpy(to + (places ? places[i] : output), sums + i, static_cast<size_t>(run) * sizeof(float));
  }
}

void ProjectedMixer::prepare_output(int64_t token, int thread) {
  if (token >= step_.tokens) return memory_.output_lora.multiply_down(context_.level, token - step_.tokens, thread);
  context_.level.prepare(output_panel_, results, Format::kFloat32, spec_.output.inputs, nullptr, token, token + 1);
}

void ProjectedMixer::take_output(int64_t token, int64_t output, const float* sums, int64_t count) const {
  taken_.take(token, output, sums, count);
}

const char* check_projections(const Projections& spec, int64_t hidden_size, int64_t width, int64_t results) {
  if (spec.num_inputs < 1 || spec.num_inputs > kMostProjections) return "an impossible number of projections";
  int64_t total = 0;
  for (int64_t i = 0; i < spec.num_inputs; ++i) {
    if (!is_shaped(spec.inputs[i], spec.inputs[i].outputs, hidden_size)) return "projections that don't fit its rows";
    const Matrix& second = spec.seconds[i];
    if (second.outputs && !is_shaped(second, second.outputs, spec.inputs[i].outputs)) {
      return "second projections that don't fit the first";
    }
    total += second.outputs ? second.outputs : spec.inputs[i].outputs;
  }
  if (total != width || !is_shaped(spec.output, hidden_size, results)) return "projections that don't fit its heads";
  if (!spec.places) return nullptr;
  std::vector<bool> is_taken(static_cast<size_t>(width));
  for (int64_t i = 0; i < width; ++i) {
    const int32_t place = spec.places[i];
    if (place < 0 || place >= width || is_taken[static_cast<size_t>(place)]) return "two projections in one place";
    is_taken[static_cast<size_t>(place)] = true;
  }
  return nullptr;
}

}  // namespace greenroom
