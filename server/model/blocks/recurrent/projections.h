// The frame of mixers whose rows are projected by some matrices, mixed, and projected back.
#pragma once

#include "layers/layer_adapters.h"
#include "layers/sides.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
struct Projections {
  Matrix inputs[kMostProjections];        // of the normed hidden states
  Matrix seconds[kMostProjections];       // of the outputs of an input, in whose place its own are; no outputs: none
  const float* biases[kMostProjections];  // each may be null
  Matrix output;                          // may have an order
  const float* output_bias;               // or null
  const int32_t* places;  // where a token's row has each output of all these; null if they are there in their order
  int64_t num_inputs;
};
}  // extern "C"

// The working memory of such a mixer.
struct ProjectionScratch {
  Buffer panels;   // of the normed rows, one of each kind, and of the results
  Buffer rows;     // (tokens, width), the outputs of all inputs
  Buffer between;  // inputs of second matrices, each (tokens, inputs)
  Buffer results;  // (tokens, output.inputs)
  LoraSums lora[kMostProjections], second_lora[kMostProjections], output_lora;
};

// Checks the shapes: `width` outputs of all inputs together, and `results` inputs of the output.
const char* check_projections(const Projections& spec, int64_t hidden_size, int64_t width, int64_t results);

// Runs the steps around what a kind of mixer does with its rows. Adapters know the inputs by number, then the output, and
// then the second matrices.
class ProjectedMixer {
 public:
  ProjectedMixer(Context& context, ProjectionScratch& memory, const Projections& spec, const LayerSpec& layer,
                 const StepCall& step);

  // Runs all phases; `add_phases(phases)` adds those that make `results` of `rows`, whose functions outlive the call.
  template <typename AddPhases>
  void run(AddPhases add_phases) {
    auto norm = [this](int64_t token, int) { norm_token(token); };
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
    const LoraSite sites[kMostProjections] = {site(0), site(1), site(2), site(3), site(4), site(5)};
    const auto second_site = [&](int number) {
      const bool is_there = number < num_seconds_;
      return LoraSite{memory_.second_lora[number], mixer_place(count_ + 1 + number), between_[number],
                      is_there ? seconds_[number].matrix->inputs : 0};
    };
    const LoraSite second_sites[kMostProjections] = {second_site(0), second_site(1), second_site(2),
                                                     second_site(3), second_site(4), second_site(5)};
    auto prepare_seconds = [this](int64_t tile, int thread) { prepare_second(tile, thread); };
    auto project_again = multiply_sides(context_, second_panels_[0], seconds_, num_seconds_, kOutputTile, put);
    const LoraSite output{memory_.output_lora, mixer_place(count_), results, spec_.output.inputs};
    PhaseList phases(context_.pool);
    phases.add(step_.tokens, norm);
    plan_sites(phases, sites, count_, context_, layer_, step_);
    auto multiply_down = [&](int64_t tile, int thread) {
      multiply_sites_down(context_.level, sites, count_, tile, thread);
    };
    phases.add(num_down_tiles(sites, count_), multiply_down);
    phases.add(num_tiles(sides_, count_, step_.tokens, kOutputTile), project);
    if (num_seconds_) {
      plan_sites(phases, second_sites, num_seconds_, context_, layer_, step_);
      int64_t tiles = step_.tokens;
      for (int i = 0; i < num_seconds_; ++i) tiles += memory_.second_lora[i].num_tiles();
      phases.add(tiles, prepare_seconds);
      phases.add(num_tiles(seconds_, num_seconds_, step_.tokens, kOutputTile), project_again);
    }
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
  void take_rows(int64_t row, int64_t output, const float* sums, int64_t count) const;
  void prepare_second(int64_t tile, int thread);
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
  int num_seconds_ = 0;
  Panel panels_[kMostProjections]{};  // one of each kind
  Panel second_panels_[kMostProjections]{};
  Panel output_panel_{};
  Side sides_[kMostProjections]{};    // those with a second matrix have their outputs from `width` on
  Side seconds_[kMostProjections]{};
  float* between_[kMostProjections]{};  // inputs of second matrices
};

}  // namespace greenroom
