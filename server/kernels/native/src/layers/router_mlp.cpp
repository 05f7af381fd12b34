#include "formats/checks.h"
#include "layers/layer_adapters.h"
#include "layers/router.h"
#include "layers/sides.h"

namespace greenroom {
namespace {

struct RouterScratch {
  Buffer numbers, panels;
  LoraSums lora;
};

// Multiplies rows of a panel by a matrix; `x` are the same rows in float32, and `put` takes the results.
template <typename Put>
void multiply(Context& context, const LayerSpec& layer, const StepCall& step, const Matrix& matrix, const float* bias,
              LoraPlace place, const Panel& panel, const float* x, Put put) {
  LoraSums& lora = context.mixers.of<RouterScratch>().lora;
  lora.clear();
  const LoraSite site{lora, place, x, matrix.inputs};
  const Side side{&matrix, bias, 0, &lora};
  auto multiply_down = [&](int64_t tile, int thread) { lora.multiply_down(context.level, tile, thread); };
  auto compute = multiply_sides(context, panel, &side, 1, kOutputTile, put);
  PhaseList phases(context.pool);
  plan_sites(phases, &site, 1, context, layer, step);
  phases.add(lora.num_tiles(), multiply_down);
  phases.add(num_tiles(&side, 1, step.tokens, kOutputTile), compute);
  phases.run();
}

}  // namespace

const float* run_router_mlp(Context& context, const RouterMlp& mlp, const LayerSpec& layer, const StepCall& step,
                            const float* rows, Panel& panel) {
  const Level& level = context.level;
  auto& own = context.mixers.of<RouterScratch>();
  const int64_t tokens = step.tokens, width = mlp.down.outputs;
  float* carried = step.router_rows ? step.router_rows : context.router_rows.reserve<float>(tokens * width * 4);
  float* normed = own.numbers.reserve<float>(2 * tokens * width * 4);
  float* results = normed + tokens * width;
  Panel inner = place_panel(PanelKind::kFloat32, tokens, width,
                            own.panels.reserve(panel_bytes(PanelKind::kFloat32, tokens, width)));
  const auto carry = [&](int64_t row, int64_t first, const float* sums, int64_t count) {
    float* to = carried + row * width + first;
    for (int64_t i = 0; i < count; ++i) to[i] = sums[i] + (mlp.carried ? to[i] * mlp.carried[first + i] : 0.0f);
  };
  const auto activate = [&](int64_t row, int64_t first, const float* sums, int64_t count) {
    level.activate({Activation::kGelu, 0, 0, 0.0f, 0.0f}, sums, count, results + row * width + first);
  };
  auto norm = [&](int64_t row, int) {
    apply_norm(level, mlp.norm, carried + row * width, width, normed + row * width);
    level.prepare(inner, normed, Format::kFloat32, width, nullptr, row, row + 1);
  };
  auto prepare = [&](int64_t row, int) { level.prepare(inner, results, Format::kFloat32, width, nullptr, row, row + 1); };
  const auto run = [&](const Phase& phase) { context.pool.run(&phase, 1); };

  multiply(context, layer, step, mlp.down, mlp.down_bias, LoraPlace::kRouterDown, panel, rows, carry);
  run(phase_of(tokens, norm));
  multiply(context, layer, step, mlp.first, mlp.first_bias, LoraPlace::kRouterFirst, inner, normed, activate);
  run(phase_of(tokens, prepare));
  multiply(context, layer, step, mlp.second, mlp.second_bias, LoraPlace::kRouterSecond, inner, results, activate);
  run(phase_of(tokens, prepare));
  panel = inner;
  return results;
}

const char* check_router_mlp(const RouterMlp& mlp, int64_t hidden_size) {
  const int64_t width = mlp.down.outputs;
  if (!is_count(width) || !is_shaped(mlp.down, width, hidden_size) || !is_shaped(mlp.first, width, width) ||
      !is_shaped(mlp.second, width, width)) {
    return "layers of a router that don't fit each other";
  }
  if (mlp.norm.kind == NormKind::kNone) return "a router's MLP without a norm";
  if (const char* reason = check_norm(mlp.norm)) return reason;
  return mlp.down_bias && mlp.first_bias && mlp.second_bias ? nullptr : "layers of a router without biases";
}

}  // namespace greenroom
