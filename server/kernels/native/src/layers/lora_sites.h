// What the adapters of a step add to products of the same rows with some matrices.
#pragma once

#include "context.h"

namespace greenroom {

// Rows of a step, and the entry of an adapter's layers that has what it adds to products with them.
struct AdaptedRows {
  const LoraStep* lora;   // null for a step without adapters
  int64_t layer;
  int64_t count;
  const int32_t* tokens;  // of each row; null if row i is token i

  bool are_routed() const { return lora && lora->routing; }
  LoraFactors fixed() const { return {lora->factors, lora->num_adapters, tokens, 0}; }
  const LoraParts& parts(int64_t adapter, LoraPlace place) const { return parts_at(lora->layers[adapter][layer], place); }
};

// Rows at the end of a model.
inline AdaptedRows rows_at_end(const LoraStep* lora, int64_t count, const int32_t* tokens) {
  return {lora, lora ? lora->num_layers : 0, count, tokens};
}

// A matrix that adapters may add to, and its input (rows, inputs).
struct LoraSite {
  LoraSums& sums;
  LoraPlace place;
  const float* x;
  int64_t inputs;
  int64_t gap = 0;  // numbers of a row behind the inputs
};

// Prepares the computation of a site's factors from its input.
inline void begin_routes(const Context& context, const LoraSite& site, const AdaptedRows& rows) {
  site.sums.routes.begin(*rows.lora->routing, rows.fixed(), rows.count, site.x, site.inputs, site.inputs + site.gap,
                         context.pool.num_threads(), [&](int64_t adapter) { return rows.parts(adapter, site.place); });
}

// Plans what the adapters of a step add at a site, after a router's factors were computed.
inline void plan_lora(const Context& context, const LoraSite& site, const AdaptedRows& rows) {
  const int32_t starts[] = {0, static_cast<int32_t>(rows.count)};
  site.sums.plan(rows.are_routed() ? site.sums.routes.factors() : rows.fixed(),
                 {site.x, Format::kFloat32, site.inputs + site.gap, nullptr}, 1, starts, context.pool.num_threads(),
                 [&](int64_t, int64_t adapter) { return rows.parts(adapter, site.place); });
}

// Plans additions to matrices of the same input. If a router computes factors, runs the phases so far, which compute the
// input, and the routing.
inline void plan_sites(PhaseList& phases, const LoraSite* sites, int num_sites, const Context& context,
                       const AdaptedRows& rows) {
  if (!rows.lora) return;
  auto score = [&](int64_t row, int thread) {
    for (int i = 0; i < num_sites; ++i) sites[i].sums.routes.score(context.level, row, thread);
  };
  if (rows.are_routed()) {
    for (int i = 0; i < num_sites; ++i) begin_routes(context, sites[i], rows);
    phases.add(rows.count, score);
    phases.run();
  }
  for (int i = 0; i < num_sites; ++i) plan_lora(context, sites[i], rows);
}

// The tiles of the products with `down` at some sites.
inline int64_t num_down_tiles(const LoraSite* sites, int num_sites) {
  int64_t tiles = 0;
  for (int i = 0; i < num_sites; ++i) tiles += sites[i].sums.num_tiles();
  return tiles;
}

inline void multiply_sites_down(const Level& level, const LoraSite* sites, int num_sites, int64_t tile, int thread) {
  for (int i = 0; i < num_sites; ++i) {
    LoraSums& sums = sites[i].sums;
    if (tile < sums.num_tiles()) return sums.multiply_down(level, tile, thread);
    tile -= sums.num_tiles();
  }
}

}  // namespace greenroom
