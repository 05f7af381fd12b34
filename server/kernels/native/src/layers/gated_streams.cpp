#include "layers/gated_streams.h"

#include <cmath>
#include <cstring>

#include "formats/checks.h"
#include "layers/sides.h"
#include "layers/streams.h"

namespace greenroom {
namespace {

struct Memory {
  Buffer panels;
  Buffer normed;  // (rows, streams * hidden)
  Buffer ranks;   // (rows, rank)
  Buffer gates;   // (rows, streams * hidden)
  LoraSums down_lora, up_lora, result_lora;
};

}  // namespace

const char* check_stream_gates(const StreamGates& gates, int64_t size) {
  const int64_t rank = gates.down.outputs;
  const bool fits = is_count(rank) && is_shaped(gates.down, rank, size) && is_shaped(gates.up, size, rank);
  return fits ? nullptr : "gates that don't fit its residual streams";
}

void sum_gated_rows(Context& context, const StreamMix& mix, const float* streams, const AdaptedRows& rows, LoraPlace place,
                    int64_t hidden_size, bool is_exact, float* sums, float* logits) {
  const Level& level = context.level;
  const StreamGates& of = *mix.gates;
  auto& own = context.mixers.of<Memory>();
  const int64_t n = mix.num_streams, size = n * hidden_size, rank = of.down.outputs, num_rows = rows.count;
  const Side sides[] = {{&of.down, nullptr, 0, &own.down_lora}, {&mix.logits, nullptr, rank, &own.result_lora}};
  const Side up{&of.up, nullptr, 0, &own.up_lora};
  const int num_sides = mix.logits.outputs ? 2 : 1;
  PanelKind kind = level.panel_kind(of.down, is_exact);
  const PanelKind rank_kind = level.panel_kind(of.up, is_exact);
  // Both share the panel: all matrices take float32 rows.
  if (num_sides == 2 && level.panel_kind(mix.logits, is_exact) != kind) kind = PanelKind::kFloat32;
  const int64_t bytes = round_up(panel_bytes(kind, num_rows, size), 64);
  char* memory = own.panels.reserve(bytes + panel_bytes(rank_kind, num_rows, rank));
  Panel panel = place_panel(kind, num_rows, size, memory);
  Panel rank_panel = place_panel(rank_kind, num_rows, rank, memory + bytes);
  float* normed = own.normed.reserve<float>(num_rows * size * 4);
  float* ranks = own.ranks.reserve<float>(num_rows * rank * 4);
  float* gates = own.gates.reserve<float>(num_rows * size * 4);
  const float share = 1.0f / static_cast<float>(n);
  const LoraSite sites[] = {{own.down_lora, place, normed, size}, {own.result_lora, place_after(place, 2), normed, size}};
  const LoraSite up_site{own.up_lora, place_after(place, 1), ranks, rank};
  for (LoraSums* lora : {&own.down_lora, &own.result_lora, &own.up_lora}) lora->clear();

  auto normalise = [&](int64_t row, int) {
    const float* from = streams + (rows.tokens ? rows.tokens[row] : row) * size;
    for (int64_t i = 0; i < size; i += hidden_size) {
      level.normalise(from + i, mix.norm + i, mix.norm_epsilon, hidden_size, normed + row * size + i);
    }
    level.prepare(panel, normed, Format::kFloat32, size, nullptr, row, row + 1);
  };
  auto adapt_down = [&](int64_t tile, int thread) { multiply_sites_down(level, sites, num_sides, tile, thread); };
  auto multiply_down = multiply_sides(context, panel, sides, num_sides, kOutputTile,
                                      [&](int64_t row, int64_t output, const float* from, int64_t count) {
                                        float* to = output < rank ? ranks + row * rank + output
                                                                  : logits + row * n + output - rank;
                                        std::memcpy(to, from, static_cast<size_t>(count) * 4);
                                      });
  auto activate = [&](int64_t row, int) {
    float* x = ranks + row * rank;
    for (int64_t i = 0; i < rank; ++i) x[i] *= share;
    for (int64_t i = 0; i < rank; ++i) x[i] /= 1.0f + std::exp(-x[i]);
    level.prepare(rank_panel, ranks, Format::kFloat32, rank, nullptr, row, row + 1);
  };
  auto adapt_up = [&](int64_t tile, int thread) { own.up_lora.multiply_down(level, tile, thread); };
  auto multiply_up = multiply_sides(context, rank_panel, &up, 1, kOutputTile,
                                    [&](int64_t row, int64_t output, const float* from, int64_t count) {
                                      float* to = gates + row * size + output;
                                      std::memcpy(to, from, static_cast<size_t>(count) * 4);
                                    });
  auto sum = [&](int64_t row, int) {
    float *x = normed + row * size, *to = sums + row * hidden_size;
    level.apply_gates(x, gates + row * size, size, false);
    std::memset(to, 0, static_cast<size_t>(hidden_size) * 4);
    for (int64_t i = 0; i < size; i += hidden_size) level.add_scaled(to, x + i, share, hidden_size);
  };
  PhaseList phases(context.pool);
  phases.add(num_rows, normalise);
  plan_sites(phases, sites, num_sides, context, rows);
  phases.add(num_down_tiles(sites, num_sides), adapt_down);
  phases.add(num_tiles(sides, num_sides, num_rows, kOutputTile), multiply_down);
  phases.add(num_rows, activate);
  plan_sites(phases, &up_site, 1, context, rows);
  phases.add(own.up_lora.num_tiles(), adapt_up);
  phases.add(num_tiles(&up, 1, num_rows, kOutputTile), multiply_up);
  phases.add(num_rows, sum);
  phases.run();
}

}  // namespace greenroom
