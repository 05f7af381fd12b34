// Rows of a panel that belong to one head, or to one group of heads.
#pragma once

#include "formats/matrix.h"

namespace greenroom {

// The rows of a panel from `first` on.
inline Panel rows_from(const Panel& panel, int64_t first) {
  Panel rows = panel;
  const int64_t bytes = panel.kind == PanelKind::kFloat32 ? 4 : panel.kind == PanelKind::kBFloat16 ? 2 : 1;
  rows.data = static_cast<char*>(panel.data) + first * panel.stride * bytes;
  if (bytes > 1) return rows;
  const int64_t lanes = first * panel.groups() * (panel.kind == PanelKind::kInt8Split ? kSplitLanes : 1);
  rows.scales += lanes;
  rows.sums += lanes;
  if (rows.halves) rows.halves += lanes;
  return rows;
}

// Some rows of a panel that alternate with those of other heads.
inline Panel panel_of_head(const Panel& panel, int64_t head, int64_t heads) {
  Panel rows = rows_from(panel, head);
  rows.stride = panel.stride * heads;
  rows.rows = panel.rows / heads;
  return rows;
}

}  // namespace greenroom
