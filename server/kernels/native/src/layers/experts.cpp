#include "layers/experts.h"

#include <algorithm>
#include <cstring>

namespace greenroom {
namespace {

constexpr int64_t kPrepared = 4;  // rows per tile of a phase over rows

Matrix in_slot(const Matrix& matrix, uint64_t slot) {
  const char* begin = reinterpret_cast<const char*>(slot);
  Matrix placed = matrix;
  placed.data = begin + reinterpret_cast<uintptr_t>(matrix.data);
  placed.scales = begin + reinterpret_cast<uintptr_t>(matrix.scales);
  for (const void** part : {&placed.zeros, &placed.rest, &placed.divisor, &placed.order}) {
    if (*part) *part = begin + reinterpret_cast<uintptr_t>(*part);  // their offset is never 0, so null means absent
  }
  return placed;
}

// The tiles of all experts of a batch, expert by expert, over its rows and the outputs of a matrix.
//
// A matrix that is stored inputs first is read fastest in whole rows of memory, or else in long parts of them. So experts
// of few rows have one tile each, or few of them, if that leaves no thread without work.
class Tiling {
 public:
  Tiling(const ExpertBatch& batch, const Matrix& matrix, PanelKind kind, int num_threads, int64_t* ends)
      : batch_(batch), matrix_(matrix), parts_(matrix.is_transposed ? parts_for(num_threads, kind) : 0), ends_(ends) {
    int64_t end = 0;
    for (int64_t expert = 0; expert < batch.num_experts; ++expert) {
      end += row_tiles(expert) * divide_up(matrix.outputs, tile_outputs(expert));
      ends[expert] = end;
    }
  }

  struct Tile {
    int64_t expert, first_row, last_row, first_output, last_output;  // rows are those of the batch
    int64_t num_outputs() const { return last_output - first_output; }
  };

  int64_t count() const { return ends_[batch_.num_experts - 1]; }

  Tile at(int64_t index) const {
    const int64_t expert = std::upper_bound(ends_, ends_ + batch_.num_experts, index) - ends_;
    const int64_t place = index - (expert ? ends_[expert - 1] : 0);
    const int64_t output_tile = place / row_tiles(expert), row_tile = place % row_tiles(expert);
    const int64_t begin = batch_.starts[0], size = tile_outputs(expert);
    const int64_t first_row = batch_.starts[expert] - begin + row_tile * kRowTile;
    const int64_t first_output = output_tile * size;
    return {expert, first_row, std::min(first_row + kRowTile, batch_.starts[expert + 1] - begin), first_output,
            std::min(first_output + size, matrix_.outputs)};
  }

 private:
  // Bytes of a part of a row of memory that is read fast: of one row or, by pairs in bfloat16, beside other rows.
  static constexpr int64_t kLongBytes = 4096, kLongBytesOfPairs = 1024;
  static constexpr int64_t kTilesEach = 4;     // of a thread, so that it may help another

  int64_t rows_of(int64_t expert) const { return batch_.starts[expert + 1] - batch_.starts[expert]; }
  int64_t row_tiles(int64_t expert) const { return divide_up(rows_of(expert), kRowTile); }

  // Returns into how many parts the rows of memory are split for experts of few rows; 0 if they are in narrow tiles.
  int64_t parts_for(int num_threads, PanelKind kind) const {
    const int64_t least = kind == PanelKind::kBFloat16 ? kLongBytesOfPairs : kLongBytes;
    int64_t few = 0;
    for (int64_t expert = 0; expert < batch_.num_experts; ++expert) few += rows_of(expert) <= kSpreadRows;
    for (int64_t parts = divide_up(matrix_.outputs * kSpreadRows, kWidest);; parts *= 2) {
      if (parts > 1 && matrix_.outputs / parts * bytes_of(matrix_.format) < least) return 0;
      if (few * parts % num_threads == 0 || few * parts >= kTilesEach * num_threads) return parts;
    }
  }

  int64_t tile_outputs(int64_t expert) const {
    if (!matrix_.is_transposed) return kOutputTile;
    if (!parts_ || rows_of(expert) > kSpreadRows) return kWideTile;
    return round_up(divide_up(matrix_.outputs, parts_), kOutputTile);
  }

  const ExpertBatch& batch_;
  const Matrix& matrix_;
  int64_t parts_;
  int64_t* ends_;
};

// Finds rows of the same token, so that one of them is prepared and then copied.
class Duplicates {
 public:
  // `memory` holds 2 * rows + num_sources numbers. If `are_apart`, each row counts as the only one of its token.
  Duplicates(const int32_t* sources, int64_t rows, int64_t num_sources, int32_t* memory, bool are_apart)
      : first_(memory), next_(memory + rows) {
    int32_t* last = memory + 2 * rows;  // the last row so far of each token, or -1
    std::fill(last, last + num_sources, -1);
    for (int64_t row = 0; row < rows; ++row) {
      const auto number = static_cast<int32_t>(row);
      int32_t& before = last[sources[row]];
      if (before < 0 || are_apart) {
        first_[num_first_++] = number;
      } else {
        next_[before] = number;
      }
      next_[row] = -1;
      before = number;
    }
  }

  int64_t num_first() const { return num_first_; }
  int64_t first(int64_t place) const { return first_[place]; }

  // Calls `act` for all rows of the token except the first.
  template <typename Act>
  void each(int64_t first, Act act) const {
    for (int64_t row = next_[first]; row >= 0; row = next_[row]) act(row);
  }

 private:
  int32_t* first_;
  int32_t* next_;
  int64_t num_first_ = 0;
};

// Returns the additions of a batch's adapters to a matrix of its experts.
auto parts_of(const LoraExperts& lora, const LoraParts* const* by_adapter) {
  return [&lora, by_adapter](int64_t expert, int64_t adapter) {
    return by_adapter[adapter] ? by_adapter[adapter][lora.numbers[expert]] : LoraParts{nullptr, 0};
  };
}

// Computes a router's factors for a matrix of a batch's one expert, whose input is `x (rows, inputs)`.
void route(Context& context, LoraSums& sums, const ExpertBatch& batch, const LoraParts* const* by_adapter,
           const int32_t* sources, const float* x, int64_t inputs) {
  const LoraExperts& lora = *batch.lora;
  const int64_t rows = batch.starts[1] - batch.starts[0];
  const auto parts = parts_of(lora, by_adapter);
  sums.routes.begin(*lora.routing, {lora.factors, lora.num_adapters, sources, 0}, rows, x, inputs, inputs,
                    context.pool.num_threads(), [&](int64_t adapter) { return parts(0, adapter); });
  auto score = [&](int64_t row, int thread) { sums.routes.score(context.level, row, thread); };
  const Phase phase = phase_of(rows, score);
  context.pool.run(&phase, 1);
}

// Plans what adapters add to the first or the second matrix of the experts of a batch.
void plan_lora(Context& context, LoraSums& sums, const ExpertBatch& batch, const LoraParts* const* by_adapter,
               const int32_t* sources, const LoraRows& rows) {
  const LoraExperts& lora = *batch.lora;
  const LoraFactors fixed{lora.factors, lora.num_adapters, sources, 0};
  sums.plan(lora.routing ? sums.routes.factors() : fixed, rows, batch.num_experts, batch.starts,
            context.pool.num_threads(), parts_of(lora, by_adapter));
}

}  // namespace

void run_experts(Context& context, const ExpertShape& shape, const ExpertBatch& batch) {
  const Level& level = context.level;
  const int32_t begin = batch.starts[0];
  const int32_t* choices = batch.choices + begin;
  const int64_t rows = batch.starts[batch.num_experts] - begin;
  if (!rows) return;
  const Matrix &first = shape.first[0], &second = shape.second;
  int64_t width = 0;
  for (int part = 0; part < shape.num_parts; ++part) width += shape.first[part].outputs;
  const int64_t hidden = second.outputs;

  // Parts share a panel unless they need different kinds of rows or another order of inputs.
  const Matrix& other = shape.first[shape.num_parts - 1];
  const PanelKind kind = level.panel_kind(first, batch.is_exact), inner = level.panel_kind(second, batch.is_exact);
  const PanelKind other_kind = level.panel_kind(other, batch.is_exact);
  const bool is_shared = kind == other_kind && first.order == other.order;
  const int64_t panel_size = round_up(panel_bytes(kind, rows, first.inputs), 64);
  char* panel_memory =
      context.rows.reserve(panel_size + (is_shared ? 0 : panel_bytes(other_kind, rows, first.inputs)));
  Panel panel = place_panel(kind, rows, first.inputs, panel_memory);
  Panel other_panel = is_shared ? panel : place_panel(other_kind, rows, first.inputs, panel_memory + panel_size);
  Panel inner_panel =
      place_panel(inner, rows, second.inputs, context.hidden.reserve(panel_bytes(inner, rows, second.inputs)));
  float* middle = context.middle.reserve<float>(rows * width * 4 + context.pool.num_threads() * second.inputs * 4);
  float* activated = middle + rows * width;  // one row per thread
  const int64_t num_experts = batch.num_experts;
  const int64_t num_sources = *std::max_element(choices, choices + rows) / batch.top_k + 1;
  auto* tables =
      context.tables.reserve<int64_t>(num_experts * (shape.num_parts + 1) * 8 + (3 * rows + num_sources) * 4);
  auto* sources = reinterpret_cast<int32_t*>(tables + num_experts * (shape.num_parts + 1));
  for (int64_t row = 0; row < rows; ++row) sources[row] = static_cast<int32_t>(choices[row] / batch.top_k);
  const Duplicates duplicates(sources, rows, num_sources, sources + rows, first.order || other.order);

  LoraSums &first_lora = context.first_lora, &second_lora = context.second_lora;
  first_lora.clear();
  second_lora.clear();
  const bool is_routed = batch.lora && batch.lora->routing;
  float* exact = nullptr;  // the inputs of the second matrix in float32, (rows, inner), if adapters may add to it
  if (batch.lora) {
    const LoraExperts& lora = *batch.lora;
    if (is_routed) {  // all tokens have one expert, so row i is token i
      route(context, first_lora, batch, lora.first, sources, static_cast<const float*>(batch.x), first.inputs);
    }
    plan_lora(context, first_lora, batch, lora.first, sources, {batch.x, batch.x_format, batch.x_stride, sources});
    if (!is_routed) {
      plan_lora(context, second_lora, batch, lora.second, sources, {nullptr, Format::kFloat32, second.inputs, nullptr});
    }
    if (is_routed || !second_lora.is_empty()) {
      exact = context.exact.reserve<float>(rows * second.inputs * 4);
      second_lora.set_rows(exact);
    }
  }

  // A panel with the input order of a matrix, for the expert of a row.
  const auto ordered = [&](Panel target, const Matrix& matrix, int64_t row) {
    if (matrix.order) {
      const int64_t expert =
          std::upper_bound(batch.starts, batch.starts + num_experts + 1, row + begin) - batch.starts - 1;
      target.order = static_cast<const int32_t*>(in_slot(matrix, batch.slots[expert]).order);
    }
    return target;
  };
  const auto prepare_for = [&](const Matrix& matrix, const Panel& target, int64_t row) {
    Panel rows_of_expert = ordered(target, matrix, row);
    level.prepare(rows_of_expert, batch.x, batch.x_format, batch.x_stride, sources, row, row + 1);
    duplicates.each(row, [&](int64_t copy) { copy_row(target, row, copy); });
  };
  const int64_t num_prepared = divide_up(duplicates.num_first(), kPrepared);
  auto prepare = [&](int64_t tile, int thread) {
    if (tile >= num_prepared) return first_lora.multiply_down(level, tile - num_prepared, thread);
    for (int64_t i = tile * kPrepared; i < std::min((tile + 1) * kPrepared, duplicates.num_first()); ++i) {
      prepare_for(first, panel, duplicates.first(i));
      if (!is_shared) prepare_for(other, other_panel, duplicates.first(i));
    }
  };
  const auto run_first = [&](const Tiling& tiling, int part, int64_t offset, int64_t index) {
    const Tiling::Tile tile = tiling.at(index);
    const uint64_t slot = batch.slots[tile.expert];
    float* y = middle + tile.first_row * width + offset + tile.first_output;
    level.multiply(in_slot(shape.first[part], slot), part ? other_panel : panel, tile.first_row, tile.last_row,
                   tile.first_output, tile.last_output, y, width);
    if (shape.first_bias >= 0) {
      const char* bias = reinterpret_cast<const char*>(slot) + shape.first_bias + offset * bytes_of(shape.bias_format);
      add_bias(level, bias, shape.bias_format, tile.last_row - tile.first_row, tile.first_output, tile.last_output, y,
               width);
    }
    first_lora.add(level, tile.expert, tile.first_row, tile.last_row, offset + tile.first_output,
                   offset + tile.last_output, y, width);
  };
  const int num_threads = context.pool.num_threads();
  const Tiling first_tiles(batch, first, kind, num_threads, tables);
  const Tiling other_tiles(batch, other, other_kind, num_threads, tables + num_experts * (shape.num_parts - 1));
  auto multiply_first = [&](int64_t tile, int) {
    if (tile < first_tiles.count()) {
      run_first(first_tiles, 0, 0, tile);
    } else {
      run_first(other_tiles, 1, first.outputs, tile - first_tiles.count());
    }
  };
  auto activate = [&](int64_t tile, int thread) {
    float* hidden_row = activated + thread * second.inputs;
    for (int64_t row = tile * kPrepared; row < std::min((tile + 1) * kPrepared, rows); ++row) {
      level.activate(shape.gate, middle + row * width, second.inputs, hidden_row);
      Panel target = ordered(inner_panel, second, row);
      level.prepare(target, hidden_row, Format::kFloat32, 0, nullptr, row, row + 1);  // the source of all rows
      if (exact) std::memcpy(exact + row * second.inputs, hidden_row, static_cast<size_t>(second.inputs) * 4);
    }
  };
  auto multiply_down = [&](int64_t tile, int thread) { second_lora.multiply_down(level, tile, thread); };
  const Tiling second_tiles(batch, second, inner, num_threads, tables + num_experts * shape.num_parts);
  auto multiply_second = [&](int64_t index, int) {
    const Tiling::Tile tile = second_tiles.at(index);
    const uint64_t slot = batch.slots[tile.expert];
    alignas(64) float sums[kWidest];
    const int64_t size = tile.num_outputs();
    level.multiply(in_slot(second, slot), inner_panel, tile.first_row, tile.last_row, tile.first_output,
                   tile.last_output, sums, size);
    if (shape.second_bias >= 0) {
      add_bias(level, reinterpret_cast<const char*>(slot) + shape.second_bias, shape.bias_format,
               tile.last_row - tile.first_row, tile.first_output, tile.last_output, sums, size);
    }
    second_lora.add(level, tile.expert, tile.first_row, tile.last_row, tile.first_output, tile.last_output, sums, size);
    for (int64_t row = tile.first_row; row < tile.last_row; ++row) {
      std::memcpy(batch.outputs + choices[row] * hidden + tile.first_output, sums + (row - tile.first_row) * size,
                  static_cast<size_t>(size) * sizeof(float));
    }
  };
  const int64_t row_tiles = divide_up(rows, kPrepared);
  const int64_t num_first = first_tiles.count() + (shape.num_parts > 1 ? other_tiles.count() : 0);
  Phase phases[5] = {phase_of(num_prepared + first_lora.num_tiles(), prepare), phase_of(num_first, multiply_first),
                     phase_of(row_tiles, activate)};
  int num_phases = 3;
  if (is_routed) {
    context.pool.run(phases, num_phases);
    num_phases = 0;
    route(context, second_lora, batch, batch.lora->second, sources, exact, second.inputs);
    plan_lora(context, second_lora, batch, batch.lora->second, sources,
              {exact, Format::kFloat32, second.inputs, nullptr});
  }
  if (!second_lora.is_empty()) phases[num_phases++] = phase_of(second_lora.num_tiles(), multiply_down);
  phases[num_phases++] = phase_of(second_tiles.count(), multiply_second);
  context.pool.run(phases, num_phases);
}

void combine(Context& context, const Combination& call) {
  const Level& level = context.level;
  const int64_t hidden = call.hidden;
  float* sums = context.middle.reserve<float>(context.pool.num_threads() * (hidden + call.top_k) * 4);
  auto* outputs = const_cast<float*>(call.outputs);
  for (int64_t i = 0; i < call.num_absent; ++i) {
    std::memset(outputs + call.absent[i] * hidden, 0, static_cast<size_t>(hidden) * sizeof(float));
  }
  auto add = [&](int64_t token, int thread) {
    float* sum = sums + thread * (hidden + call.top_k);
    float* weights = sum + hidden;
    level.widen(static_cast<const char*>(call.weights) + token * call.top_k * bytes_of(call.weights_format),
                call.weights_format, weights, call.top_k);
    std::memset(sum, 0, static_cast<size_t>(hidden) * sizeof(float));
    for (int64_t place = 0; place < call.top_k; ++place) {
      level.add_scaled(sum, outputs + (token * call.top_k + place) * hidden, weights[place], hidden);
    }
    level.narrow(sum, call.y_format, static_cast<char*>(call.y) + token * call.y_stride * bytes_of(call.y_format),
                 hidden);
  };
  const Phase phase = phase_of(call.tokens, add);
  context.pool.run(&phase, 1);
}

}  // namespace greenroom
