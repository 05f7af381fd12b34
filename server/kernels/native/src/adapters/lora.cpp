#include "adapters/lora.h"

#include <algorithm>

namespace greenroom {
namespace {

constexpr int64_t kLoraRows = 16;   // rows of a tile
constexpr int64_t kLoraRanks = 16;  // outputs of `down` in a tile

Matrix down_of(const LoraPart& part) {
  Matrix matrix{};
  matrix.format = part.format;
  matrix.outputs = part.rank;
  matrix.inputs = part.inputs;
  matrix.data = part.down;
  return matrix;
}

Matrix up_of(const LoraPart& part) {
  Matrix matrix{};
  matrix.format = part.format;
  matrix.is_transposed = part.is_transposed;
  matrix.outputs = part.outputs;
  matrix.inputs = part.rank;
  matrix.data = part.up;
  return matrix;
}

}  // namespace

void LoraSums::begin(const LoraFactors& factors, const LoraRows& rows) {
  factors_ = factors;
  source_ = rows;
  pieces_.clear();
  group_ends_.clear();
  rows_.clear();
  num_tiles_ = num_products_ = panel_bytes_ = 0;
}

// Appends the rows that an adapter adds to at a module, and returns how many they are.
int64_t LoraSums::place_rows(int64_t adapter, int64_t module, int64_t first_row, int64_t last_row) {
  const auto first = static_cast<int64_t>(rows_.size());
  for (int64_t row = first_row; row < last_row; ++row) {
    if (factor_of(row, adapter, module) != 0.0f) rows_.push_back(static_cast<int32_t>(row));
  }
  return static_cast<int64_t>(rows_.size()) - first;
}

void LoraSums::place(const LoraParts& parts, int64_t adapter, int64_t first_row, int64_t last_row) {
  int64_t module = -1, count = 0;
  for (const LoraPart* part = parts.parts; part < parts.parts + parts.count; ++part) {
    if (module < 0 || (factors_.module_stride && part->module != module)) {
      count = place_rows(adapter, part->module, first_row, last_row);
    }
    module = part->module;
    if (!count) continue;
    const int64_t first = static_cast<int64_t>(rows_.size()) - count, stride = round_up(part->rank, kLoraRanks);
    num_tiles_ += divide_up(count, kLoraRows) * divide_up(part->rank, kLoraRanks);
    pieces_.push_back({part, adapter, first, count, num_products_, stride, num_tiles_});
    num_products_ += count * stride;
    panel_bytes_ = std::max(panel_bytes_, greenroom::panel_bytes(PanelKind::kFloat32, kLoraRows, part->inputs));
  }
}

void LoraSums::reserve(int num_threads) {
  if (pieces_.empty()) return;
  const int64_t product_bytes = round_up(num_products_ * 4, 64);
  char* memory = memory_.reserve(product_bytes + num_threads * panel_bytes_);
  products_ = reinterpret_cast<float*>(memory);
  panels_ = memory + product_bytes;
}

void LoraSums::multiply_down(const Level& level, int64_t tile, int thread) {
  const Piece& piece = *std::upper_bound(pieces_.begin(), pieces_.end(), tile,
                                         [](int64_t index, const Piece& each) { return index < each.last_tile; });
  const LoraPart& part = *piece.part;
  const int64_t row_tiles = divide_up(piece.count, kLoraRows), rank_tiles = divide_up(part.rank, kLoraRanks);
  const int64_t place = tile - (piece.last_tile - row_tiles * rank_tiles);
  const int64_t first_row = place % row_tiles * kLoraRows, rows = std::min(kLoraRows, piece.count - first_row);
  const int64_t first = place / row_tiles * kLoraRanks, last = std::min(first + kLoraRanks, part.rank);
  const int32_t* numbers = rows_.data() + piece.first + first_row;
  int32_t sources[kLoraRows];
  for (int64_t i = 0; i < rows; ++i) sources[i] = source_.rows ? source_.rows[numbers[i]] : numbers[i];
  Panel panel = place_panel(PanelKind::kFloat32, kLoraRows, part.inputs, panels_ + thread * panel_bytes_);
  level.prepare(panel, source_.x, source_.format, source_.stride, sources, 0, rows);
  float* y = products_ + piece.begin + first_row * piece.stride + first;
  level.multiply(down_of(part), panel, 0, rows, first, last, y, piece.stride);
  for (int64_t i = 0; i < rows; ++i) {
    const float factor = part.scale * factor_of(numbers[i], piece.adapter, part.module);
    float* row = y + i * piece.stride;
    for (int64_t j = 0; j < last - first; ++j) row[j] *= factor;
    std::fill(row + (last - first), row + kLoraRanks, 0.0f);
  }
}

void LoraSums::add(const Level& level, int64_t group, int64_t first_row, int64_t last_row, int64_t first_output,
                   int64_t last_output, float* y, int64_t y_stride) const {
  if (pieces_.empty()) return;
  const auto begin = static_cast<size_t>(group ? group_ends_[static_cast<size_t>(group - 1)] : 0);
  const auto end = static_cast<size_t>(group_ends_[static_cast<size_t>(group)]);
  for (size_t i = begin; i < end; ++i) {
    const Piece& piece = pieces_[i];
    const LoraPart& part = *piece.part;
    const int64_t from = std::max(first_output, part.first_output);
    const int64_t to = std::min(last_output, part.first_output + part.outputs);
    if (from >= to) continue;
    const int32_t* rows = rows_.data() + piece.first;
    const int64_t first = std::lower_bound(rows, rows + piece.count, first_row) - rows;
    const int64_t last = std::lower_bound(rows + first, rows + piece.count, last_row) - rows;
    if (first == last) continue;
    Panel panel{PanelKind::kFloat32, piece.count, part.rank, piece.stride, products_ + piece.begin, nullptr, nullptr};
    alignas(64) float sums[kWidest];
    const int64_t size = to - from;
    level.multiply(up_of(part), panel, first, last, from - part.first_output, to - part.first_output, sums, size);
    for (int64_t place = first; place < last; ++place) {
      level.add_scaled(y + (rows[place] - first_row) * y_stride + (from - first_output), sums + (place - first) * size,
                       1.0f, size);
    }
  }
}

}  // namespace greenroom
