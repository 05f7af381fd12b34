#include "layers/gated_norm.h"

#include <cmath>
#include <cstring>

#include "formats/checks.h"
#include "layers/sides.h"

namespace greenroom {
namespace {

struct Memory {
  Buffer panels;
  Buffer ranks;  // (tokens, rank)
  Buffer gates;  // (tokens, hidden)
  LoraSums down_lora, up_lora;
};

}  // namespace

const char* check_norm_gate(const NormGate& gate, int64_t hidden_size) {
  const int64_t rank = gate.down.outputs;
  const bool fits = is_count(rank) && is_shaped(gate.down, rank, hidden_size) && is_shaped(gate.up, hidden_size, rank);
  return fits ? nullptr : "gates that don't fit its norms";
}

void run_gated_norm(Context& context, const Norm& norm, const NormGate& gate, const StepCall& step,
                    const AdaptedRows& rows, LoraPlace place) {
  const Level& level = context.level;
  const int64_t size = step.hidden_size, rank = gate.down.outputs, tokens = step.tokens;
  auto& own = context.mixers.of<Memory>();
  const PanelKind kind = level.panel_kind(gate.down, step.is_exact), rank_kind = level.panel_kind(gate.up, step.is_exact);
  const int64_t bytes = round_up(panel_bytes(kind, tokens, size), 64);
  char* memory = own.panels.reserve(bytes + panel_bytes(rank_kind, tokens, rank));
  Panel panel = place_panel(kind, tokens, size, memory);
  Panel rank_panel = place_panel(rank_kind, tokens, rank, memory + bytes);
  float* ranks = own.ranks.reserve<float>(tokens * rank * 4);
  float* gates = own.gates.reserve<float>(tokens * size * 4);
  const Side down{&gate.down, nullptr, 0, &own.down_lora}, up{&gate.up, nullptr, 0, &own.up_lora};
  const LoraSite down_site{own.down_lora, place, step.normed, size};
  const LoraSite up_site{own.up_lora, place_after(place, 1), ranks, rank};
  own.down_lora.clear();
  own.up_lora.clear();

  auto normalise = [&](int64_t token, int) {
    apply_norm(level, norm, step.hidden + token * size, size, step.normed + token * size);
    level.prepare(panel, step.normed, Format::kFloat32, size, nullptr, token, token + 1);
  };
  const auto put = [](float* target, int64_t width) {
    return [target, width](int64_t row, int64_t output, const float* sums, int64_t count) {
      std::memcpy(target + row * width + output, sums, static_cast<size_t>(count) * 4);
    };
  };
  auto adapt_down = [&](int64_t tile, int thread) { own.down_lora.multiply_down(level, tile, thread); };
  auto adapt_up = [&](int64_t tile, int thread) { own.up_lora.multiply_down(level, tile, thread); };
  auto multiply_down = multiply_sides(context, panel, &down, 1, kOutputTile, put(ranks, rank));
  auto activate = [&](int64_t token, int) {
    float* row = ranks + token * rank;
    for (int64_t i = 0; i < rank; ++i) row[i] /= 1.0f + std::exp(-row[i]);
    level.prepare(rank_panel, ranks, Format::kFloat32, rank, nullptr, token, token + 1);
  };
  auto multiply_up = multiply_sides(context, rank_panel, &up, 1, kOutputTile, put(gates, size));
  auto apply = [&](int64_t token, int) {
    level.sigmoid(gates + token * size, size);
    for (int64_t i = token * size; i < (token + 1) * size; ++i) step.normed[i] *= gates[i];
  };
  PhaseList phases(context.pool);
  phases.add(tokens, normalise);
  plan_sites(phases, &down_site, 1, context, rows);
  phases.add(own.down_lora.num_tiles(), adapt_down);
  phases.add(num_tiles(&down, 1, tokens, kOutputTile), multiply_down);
  phases.add(tokens, activate);
  plan_sites(phases, &up_site, 1, context, rows);
  phases.add(own.up_lora.num_tiles(), adapt_up);
  phases.add(num_tiles(&up, 1, tokens, kOutputTile), multiply_up);
  phases.add(tokens, apply);
  phases.run();
}

}  // namespace greenroom
