// The frame of mixers whose rows are projected by some matrices, mixed, and projected back.
#pragma once

#include "layers/layer_adapters.h"
#include "layers/sides.h"

namespace greenroom {

inline constexpr int kMostProjections = 4;

struct Projections {
  Matrix inputs[kMostProjections];        // of the normed hidden states
  const float* biases[kMostProjections];  // each may be null
  Matrix output;
  const float* output_bias;               // or null
  const int32_t* places;  // where a token's row has each output of all inputs; null if they are there in their order
  int64_t num_inputs;
};

// The working memory of such a mixer.
struct ProjectionScratch {
  Buffer panels;   // of the normed rows, one of each kind, and of the results
  Buffer rows;     // (tokens, width), the outputs of all inputs
  Buffer results;  // (tokens, output.inputs)
  LoraSums lora[kMostProjections], output_lora;
};

// Checks the shapes: `width` outputs of all inputs together, and `results` inputs of the output.
const char* check_projections(const Projections& spec, int64_t hidden_size, int64_t width, int64_t results);

// Runs the steps around what a kind of mixer does with its rows. Adapters know the inputs by number, and then the output.
class ProjectedMixer {
 public:
  ProjectedMixer(Context& context, ProjectionScratch& memory, const Projections& spec, const LayerSpec& layer,
                 const StepCall& step);

  // Runs all phases; `add_phases(phases)` adds those that make `results` of `rows`, whose functions outlive the call.
  template <typename AddPhases>
  void run(AddPhases add_phases) {
    auto norm = [this](int64_t token, int) { norm_token(token); };
    auto multiply_down = [this](int64_t tile, int thread) { multiply_lora_down(tile, thread); };
    const auto put = [this](auto... results) { take_rows(results...); };
    auto project = multiply_sides(context_, panels_[0], sides_, count_, kOutputTile, put);
    auto prepare = [this](int64_t token, int thread) { prepare_output(token, thread); };
    const auto add = [this](auto... results) { take_output(results...); };
    const Side side{&spec_.output, spec_.output_bias, 0, &memory_.output_lora};
    auto project_back = multiply_sides(context_, output_panel_, &side, 1, kOutputTile, add);

    LoraSums* lora = memory_.lora;
    const auto site = [&](int number) {
      return LoraSite{lora[number], mixer_place(number), step_.normed, step_.hidden_size};
    };
    const LoraSite sites[kMostProjections] = {site(0), site(1), site(2), site(3)};
    const LoraSite output{memory_.output_lora, mixer_place(count_), results, spec_.output.inputs};
    PhaseList phases(context_.pool);
    phases.add(step_.tokens, norm);
    plan_sites(phases, sites, count_, context_, layer_, step_);
    int64_t lora_tiles = 0;
    for (int i = 0; i < count_; ++i) lora_tiles += lora[i].num_tiles();
    phases.add(lora_tiles, multiply_down);
    phases.add(num_tiles(sides_, count_, step_.tokens, kOutputTile), project);
    add_phases(phases);
    plan_sites(phases, &output, 1, context_, layer_, step_);
    phases.add(step_.tokens + memory_.output_lora.num_tiles(), prepare);
    phases.add(num_tiles(&side, 1, step_.tokens, kOutputTile), project_back);
    phases.run();
  }

  float* row(int64_t token) const { return rows + token * width; }
  float* result(int64_t token) const { return results + token * spec_.output.inputs; }

  int64_t width = 0;  // numbers of a row
  float* rows;        // (tokens, width)
  float* results;     // (tokens, output.inputs)

 private:
  void norm_token(int64_t token);
  void multiply_lora_down(int64_t tile, int thread) const;
  void take_rows(int64_t row, int64_t output, const float* sums, int64_t count) const;
  void prepare_output(int64_t token, int thread);
  void take_output(int64_t row, int64_t output, const float* sums, int64_t count) const;

  Context& context_;
  ProjectionScratch& memory_;
  const Projections& spec_;
  const LayerSpec& layer_;
  const StepCall& step_;
  const MixerResults taken_;
  const int count_;
  int num_panels_ = 0;
  Panel panels_[kMostProjections]{};  // one of each kind
  Panel output_panel_{};
  Side sides_[kMostProjections]{};
};

}  // namespace greenroom
