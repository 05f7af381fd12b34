// Products of the same rows with some matrices, as one phase of a pool.
#pragma once

#include <algorithm>
#include <cstdint>

#include "context.h"

namespace greenroom {

// A matrix with the place of its outputs among those of all.
struct Side {
  const Matrix* matrix;
  const float* bias;
  int64_t offset;                 // offset of its first output
  const LoraSums* lora = nullptr;  // what adapters add
  const Panel* panel = nullptr;    // its rows, if it takes another kind than the others
  int64_t lora_output = 0;         // its first output among those that adapters know
};

// Returns the function of a tile: kRowTile rows and `output_tile` outputs of one matrix. `put(row, output, sums, count)`
// takes each row of the results.
template <typename Put>
auto multiply_sides(const Context& context, const Panel& panel, const Side* sides, int num_sides, int64_t output_tile,
                    Put put) {
  return [&context, &panel, sides, num_sides, output_tile, put](int64_t tile, int) {
    const int64_t row_tiles = divide_up(panel.rows, kRowTile);
    int64_t place = tile / row_tiles;
    const int64_t first_row = tile % row_tiles * kRowTile, last_row = std::min(first_row + kRowTile, panel.rows);
    for (int i = 0; i < num_sides; ++i) {
      const int64_t tiles = divide_up(sides[i].matrix->outputs, output_tile);
      if (place >= tiles) {
        place -= tiles;
        continue;
      }
      const int64_t first = place * output_tile, last = std::min(first + output_tile, sides[i].matrix->outputs);
      alignas(64) float sums[kRowTile * kOutputTile];
      context.level.multiply(*sides[i].matrix, sides[i].panel ? *sides[i].panel : panel, first_row, last_row, first, last, sums, kOutputTile);
      if (sides[i].bias) {
        add_bias(context.level, sides[i].bias, Format::kFloat32, last_row - first_row, first, last, sums, kOutputTile);
      }
      if (sides[i].lora) {
        const int64_t output = sides[i].lora_output;
        sides[i].lora->add(context.level, 0, first_row, last_row, output + first, output + last, sums, kOutputTile);
      }
      for (int64_t row = first_row; row < last_row; ++row) {
        put(row, sides[i].offset + first, sums + (row - first_row) * kOutputTile, last - first);
      }
      return;
    }
  };
}

inline int64_t num_tiles(const Side* sides, int num_sides, int64_t rows, int64_t output_tile) {
  int64_t tiles = 0;
  for (int i = 0; i < num_sides; ++i) tiles += divide_up(sides[i].matrix->outputs, output_tile);
  return tiles * divide_up(rows, kRowTile);
}

}  // namespace greenroom
