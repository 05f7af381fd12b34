#include "layers/linear.h"

#include <algorithm>

#include "formats/checks.h"

namespace greenroom {

bool read_row(const Level& level, const Matrix& matrix, int64_t row, float* target) {
  if (!is_plain(matrix.format)) return level.read_row(matrix, row, target);
  const int64_t bytes = row * matrix.inputs * bytes_of(matrix.format);
  if (target) level.widen(static_cast<const char*>(matrix.data) + bytes, matrix.format, target, matrix.inputs);
  return true;
}

void add_bias(const Level& level, const void* bias, Format format, int64_t rows, int64_t first_output,
              int64_t last_output, float* y, int64_t y_stride) {
  float numbers[kWideTile];
  for (int64_t first = first_output; first < last_output; first += kWideTile, y += kWideTile) {
    const int64_t count = std::min<int64_t>(kWideTile, last_output - first);
    level.widen(static_cast<const char*>(bias) + first * bytes_of(format), format, numbers, count);
    for (int64_t row = 0; row < rows; ++row) level.add_scaled(y + row * y_stride, numbers, 1.0f, count);
  }
}

void run_linear(Context& context, const LinearCall& call) {
  const Level& level = context.level;
  const Matrix& matrix = call.matrix;
  const PanelKind kind = level.panel_kind(matrix, call.is_exact);
  Panel panel = place_panel(kind, call.rows, matrix.inputs,
                            context.rows.reserve(panel_bytes(kind, call.rows, matrix.inputs)));
  panel.order = static_cast<const int32_t*>(matrix.order);
  constexpr int64_t kPrepared = 4;  // rows per tile
  auto prepare = [&](int64_t tile, int) {
    const int64_t first = tile * kPrepared;
    level.prepare(panel, call.x, call.x_format, call.x_stride, nullptr, first, std::min(first + kPrepared, call.rows));
  };
  const int64_t output_tiles = divide_up(matrix.outputs, kOutputTile), row_tiles = divide_up(call.rows, kRowTile);
  auto multiply = [&](int64_t tile, int) {
    // Tiles with the same outputs are adjacent, so that their weights are still in a cache.
    const int64_t first_output = tile / row_tiles * kOutputTile, first_row = tile % row_tiles * kRowTile;
    const int64_t last_output = std::min(first_output + kOutputTile, matrix.outputs);
    const int64_t last_row = std::min(first_row + kRowTile, call.rows);
    alignas(64) float sums[kRowTile * kOutputTile];
    level.multiply(matrix, panel, first_row, last_row, first_output, last_output, sums, kOutputTile);
    if (call.bias) {
      add_bias(level, call.bias, call.bias_format, last_row - first_row, first_output, last_output, sums, kOutputTile);
    }
    for (int64_t row = first_row; row < last_row; ++row) {
      char* target = static_cast<char*>(call.y) + (row * call.y_stride + first_output) * bytes_of(call.y_format);
      level.narrow(sums + (row - first_row) * kOutputTile, call.y_format, target, last_output - first_output);
    }
  };
  const Phase phases[] = {phase_of(divide_up(call.rows, kPrepared), prepare),
                          phase_of(output_tiles * row_tiles, multiply)};
  context.pool.run(phases, 2);
}

}  // namespace greenroom
