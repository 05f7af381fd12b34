#include "layers/head.h"

#include <algorithm>
#include <cmath>

#include "layers/lora_sites.h"
#include "layers/sides.h"

namespace greenroom {

void run_head(Context& context, const HeadCall& call) {
  const Level& level = context.level;
  const int64_t hidden_size = call.hidden_size, rows = call.num_logits, vocabulary = call.vocabulary;
  const PanelKind kind = level.panel_kind(call.matrix, call.is_exact);
  Panel panel =
      place_panel(kind, rows, hidden_size, context.rows.reserve(panel_bytes(kind, rows, hidden_size)));
  if (call.streams) {
    sum_streams(context, *call.streams, call.hidden, rows_at_end(call.lora, call.num_rows, call.rows), hidden_size,
                call.is_exact, call.normed);
  }
  auto norm = [&](int64_t row, int) {
    float* normed = call.normed + row * hidden_size;
    const float* hidden = call.streams ? normed : call.hidden + call.rows[row] * hidden_size;
    apply_norm(level, call.norm, hidden, hidden_size, normed);
    if (row < rows) level.prepare(panel, call.normed, Format::kFloat32, hidden_size, nullptr, row, row + 1);
  };
  LoraSums& lora = context.head_lora;
  lora.clear();
  PhaseList phases(context.pool);
  const LoraSite site{lora, LoraPlace::kHead, call.normed, hidden_size};
  auto multiply_down = [&](int64_t tile, int thread) { lora.multiply_down(level, tile, thread); };
  const Side side[] = {{&call.matrix, call.bias, 0, &lora}};
  auto multiply = multiply_sides(context, panel, side, 1, kOutputTile,
                                 [&](int64_t row, int64_t output, const float* sums, int64_t count) {
                                   count = std::min(count, vocabulary - output);
                                   float* y = call.logits + row * vocabulary + output;
                                   for (int64_t i = 0; i < count; ++i) y[i] = sums[i] * call.scale;
                                   if (call.softcap == 0.0f) return;
                                   for (int64_t i = 0; i < count; ++i) {
                                     y[i] = std::tanh(y[i] / call.softcap) * call.softcap;
                                   }
                                 });
  phases.add(call.num_rows, norm);
  plan_sites(phases, &site, 1, context, rows_at_end(call.lora, rows, call.rows));
  phases.add(lora.num_tiles(), multiply_down);
  phases.add(num_tiles(side, 1, rows, kOutputTile), multiply);
  phases.run();
}

}  // namespace greenroom
