// Weight matrices in memory, and rows of activations prepared for products with them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "sizes.h"

namespace greenroom {

extern "C" {  // structures/matrices.py
// The format of a number or a matrix. Its row is in table.h.
enum class Format : int32_t {
  kFloat32 = 0,
  kBFloat16 = 1,
  kFloat16 = 2,
  kQ8 = 3,     // server/kernels/formats/block_int8/
  kQ4 = 4,     // server/kernels/formats/block_int4/
  kMxfp4 = 5,  // of safetensors: server/kernels/formats/fp4/ with groups of 32 and scales that are exponents of two
  kFp8 = 6,    // E4M3 numbers; server/kernels/formats/fp8/
  kE8m0 = 7,   // exponents of two; for scales only
  kInt8 = 8,   // server/kernels/formats/channel_int8/ and group_int8.py
  kInt4 = 9,   // server/kernels/formats/group_int4/
  kFp4 = 10,   // server/kernels/formats/fp4/ with scales of any format
  kQ4_0 = 11,  // this and those down to kIq4Xs: server/kernels/formats/superblocks/
  kQ4_1 = 12,
  kQ5_0 = 13,
  kQ5_1 = 14,
  kIq4Nl = 15,
  kBlockMxfp4 = 16,  // MXFP4 of GGUF files, in blocks of outputs
  kQ2K = 17,
  kQ3K = 18,
  kQ4K = 19,
  kQ5K = 20,
  kQ6K = 21,
  kIq4Xs = 22,
  kIq2Xxs = 23,  // this and those below: server/kernels/formats/file_blocks/
  kIq2Xs = 24,
  kIq3Xxs = 25,
  kIq1S = 26,
  kIq3S = 27,
  kIq2S = 28,
  kIq1M = 29,
  kTq1_0 = 30,
  kTq2_0 = 31,
  kCodedBFloat16 = 32,  // server/kernels/formats/coded_bfloat16/
  kLookup4 = 33,        // server/kernels/formats/lookup4/
};
}  // extern "C"

inline constexpr int kSuperblock = 256;  // inputs of a record or block in kQ2K and those after it
inline constexpr int kCodedBytes = 96;   // of a block in kCodedBFloat16

// Plain blocks of a matrix in kCodedBFloat16 for which `rest` has no room. Only this process writes it.
struct MorePlain {
  const uint16_t* blocks;
  int64_t count;
};
inline constexpr uint8_t kPlainBlock = 255;                // the base of a block that is plain
inline constexpr int kLookups = 16;  // codes of kLookup4
inline constexpr int kOutputTile = 64;  // outputs in a thread's tile; a multiple of kBlock
inline constexpr int kWideTile = 256;   // the same for a matrix that is stored inputs first
inline constexpr int kRowTile = 64;     // rows in a tile
inline constexpr int kSpreadRows = 4;   // few rows, whose tiles of such a matrix may be wider:
inline constexpr int kWidest = kRowTile * kWideTile;  // outputs times rows

extern "C" {  // structures/matrices.py
// `outputs` rows of `inputs` weights each. Only plain formats may be transposed, (inputs, outputs) in memory.
struct Matrix {
  Format format;
  int32_t is_transposed;
  int64_t outputs;
  int64_t inputs;
  const void* data;
  const void* scales;  // null for plain formats
  // What follows is for kFp8, kInt8, kInt4, kFp4, kLookup4 and kCodedBFloat16; what a matrix lacks is null.
  const void* zeros;    // int16, for kInt8: one per scale, subtracted before scaling; for kCodedBFloat16: MorePlain; for
                        // kLookup4: float (16), the number of each code
  const void* rest;     // bfloat16, for kInt4: added to scales; for kCodedBFloat16: `row_block` plain blocks
  const void* divisor;  // float, for kFp4: divides all scales
  const void* order;    // int32 (inputs): the input that each column belongs to
  int64_t row_block;     // outputs that share a scale
  int64_t column_block;  // inputs that share a scale; in kInt4 and kInt8 the last group may be shorter
  Format scale_format;
  int32_t block;  // outputs per block in kInt4
};
}  // extern "C"

inline int64_t divide_up(int64_t number, int64_t by) { return (number + by - 1) / by; }
inline int64_t round_up(int64_t number, int64_t to) { return divide_up(number, to) * to; }

inline int64_t bytes_of(Format plain) { return plain == Format::kFloat32 ? 4 : 2; }

// The form of rows that a matrix is multiplied by.
enum class PanelKind : int32_t {
  kFloat32,   // unchanged
  kBFloat16,  // rounded
  kInt8,      // codes in groups of kGroup, with a scale per group
  // The same for kMxfp4 and NVFP4: for each four groups, first the even inputs of all, then the odd ones. Each group
  // has four lanes of scales, all half its scale, and four of sums, each -12 times the sum of eight neighbours.
  kInt8Split,
};

// Rows of activations, padded with zeros from `inputs` up to the stride.
struct Panel {
  PanelKind kind;
  int64_t rows;
  int64_t inputs;
  int64_t stride;   // numbers from one row to the next
  void* data;       // float, bfloat16 or int8
  float* scales;    // for kInt8: (rows, groups)
  int32_t* sums;    // for kInt8: sums of the codes of each group, (rows, groups)
  const int32_t* order = nullptr;  // the index of each number in the source row; null if it is the same
  int32_t* halves = nullptr;  // for kInt8: sums of the codes of the first half of each group, (rows, groups)

  int64_t groups() const { return stride / kGroup; }
};

inline constexpr int kSplitLanes = 4;

inline constexpr int64_t kPanelPadding = 128;  // numbers; a multiple of any level's vector size

inline int64_t panel_stride(int64_t inputs) { return round_up(inputs, kPanelPadding); }

inline int64_t panel_bytes(PanelKind kind, int64_t rows, int64_t inputs) {
  const int64_t stride = panel_stride(inputs), groups = stride / kGroup;
  switch (kind) {
    case PanelKind::kFloat32: return rows * stride * 4;
    case PanelKind::kBFloat16: return rows * stride * 2;
    case PanelKind::kInt8: return rows * (stride + groups * 12);
    default: return rows * (stride + groups * 8 * kSplitLanes);
  }
}

// Copies row `from` to row `to`.
inline void copy_row(const Panel& panel, int64_t from, int64_t to) {
  const auto copy = [&](void* data, int64_t bytes) {
    char* rows = static_cast<char*>(data);
    std::memcpy(rows + to * bytes, rows + from * bytes, static_cast<size_t>(bytes));
  };
  switch (panel.kind) {
    case PanelKind::kFloat32: return copy(panel.data, panel.stride * 4);
    case PanelKind::kBFloat16: return copy(panel.data, panel.stride * 2);
    default: {
      copy(panel.data, panel.stride);
      const int64_t lanes = panel.kind == PanelKind::kInt8 ? 1 : kSplitLanes;
      copy(panel.scales, panel.groups() * lanes * 4);
      copy(panel.sums, panel.groups() * lanes * 4);
      if (panel.kind == PanelKind::kInt8) copy(panel.halves, panel.groups() * 4);
    }
  }
}

// Makes a panel in `panel_bytes` of memory, aligned to 64.
inline Panel place_panel(PanelKind kind, int64_t rows, int64_t inputs, void* memory) {
  Panel panel{kind, rows, inputs, panel_stride(inputs), memory, nullptr, nullptr, nullptr};
  if (kind == PanelKind::kInt8 || kind == PanelKind::kInt8Split) {
    panel.scales = reinterpret_cast<float*>(static_cast<char*>(memory) + rows * panel.stride);
    const int64_t lanes = kind == PanelKind::kInt8 ? 1 : kSplitLanes;
    panel.sums = reinterpret_cast<int32_t*>(panel.scales + rows * panel.groups() * lanes);
    if (kind == PanelKind::kInt8) panel.halves = panel.sums + rows * panel.groups();
  }
  return panel;
}

}  // namespace greenroom
