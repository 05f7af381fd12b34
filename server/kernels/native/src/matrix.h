// Matrices of weights as they lie in memory, and rows of activations prepared to be multiplied by them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace greenroom {

// What a number or a matrix is made of. The values are those of `library.py`.
enum class Format : int32_t {
  kFloat32 = 0,
  kBFloat16 = 1,
  kFloat16 = 2,
  kQ8 = 3,     // server/kernels/q8.py
  kQ4 = 4,     // server/kernels/q4.py
  kMxfp4 = 5,  // server/kernels/fp4.py with groups of 32 whose scales are exponents of two
  kFp8 = 6,    // E4M3 numbers; server/kernels/fp8.py
  kE8M0 = 7,   // exponents of two, which only scales are
  kInt8 = 8,   // server/kernels/int8.py and int8_groups.py
  kInt4 = 9,   // server/kernels/int4.py
  kFp4 = 10,   // server/kernels/fp4.py with scales of any format
};

inline constexpr int kGroup = 32;    // inputs that share a scale in kQ8, kQ4 and kMxfp4
inline constexpr int kBlock = 16;    // outputs that lie together in kQ8 and kQ4
inline constexpr int kOutputTile = 64;  // outputs that are one thread's affair at a time; a multiple of kBlock
inline constexpr int kRowTile = 64;     // rows that are

// `outputs` rows of `inputs` weights each. A transposed matrix, (inputs, outputs) in memory, is of a plain format.
struct Matrix {
  Format format;
  int32_t is_transposed;
  int64_t outputs;
  int64_t inputs;
  const void* data;
  const void* scales;  // null for plain formats
  // Of kFp8, kInt8, kInt4 and kFp4; what a matrix has not is null.
  const void* zeros;    // int16, of kInt8: as many as scales, which are of what codes are more than them
  const void* rest;     // bfloat16, of kInt4: to be added to scales
  const void* divisor;  // float, of kFp4: of all scales
  const void* order;    // int32 (inputs): which input each column belongs to
  int64_t row_block;     // outputs that share a scale
  int64_t column_block;  // inputs that do; in kInt4 and kInt8 the last group may be shorter
  Format scale_format;
  int32_t block;  // outputs that lie together in kInt4
};

inline int64_t divide_up(int64_t number, int64_t by) { return (number + by - 1) / by; }
inline int64_t round_up(int64_t number, int64_t to) { return divide_up(number, to) * to; }

inline int64_t bytes_of(Format plain) { return plain == Format::kFloat32 ? 4 : 2; }

// How rows are prepared for a matrix.
enum class PanelKind : int32_t {
  kFloat32,   // as they are
  kBFloat16,  // rounded
  kInt8,      // codes in groups of kGroup with a scale each
  // The same for kMxfp4 and NVFP4: of each four groups first the even inputs of all, then the odd ones. Each group has
  // four lanes of scales, all its scale by two, and four of sums, each -12 times the sum of eight neighbours.
  kInt8Split,
};

// Rows of activations. What is beyond `inputs` up to the stride is zero.
struct Panel {
  PanelKind kind;
  int64_t rows;
  int64_t inputs;
  int64_t stride;   // numbers from a row to the next
  void* data;       // float, bfloat16 or int8
  float* scales;    // of kInt8: (rows, groups)
  int32_t* sums;    // of kInt8: of the codes of each group, (rows, groups)
  const int32_t* order = nullptr;  // the place of each number in what rows are prepared from; null if it is its own

  int64_t groups() const { return stride / kGroup; }
};

inline constexpr int kSplitLanes = 4;

inline constexpr int64_t kPanelPadding = 128;  // numbers; a multiple of what any level takes at a time

inline int64_t panel_stride(int64_t inputs) { return round_up(inputs, kPanelPadding); }

inline int64_t panel_bytes(PanelKind kind, int64_t rows, int64_t inputs) {
  const int64_t stride = panel_stride(inputs), groups = stride / kGroup;
  switch (kind) {
    case PanelKind::kFloat32: return rows * stride * 4;
    case PanelKind::kBFloat16: return rows * stride * 2;
    case PanelKind::kInt8: return rows * (stride + groups * 8);
    default: return rows * (stride + groups * 8 * kSplitLanes);
  }
}

// Gives row `to` what row `from` has.
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
    }
  }
}

// A panel in memory of `panel_bytes`, whose address is a multiple of 64.
inline Panel place_panel(PanelKind kind, int64_t rows, int64_t inputs, void* memory) {
  Panel panel{kind, rows, inputs, panel_stride(inputs), memory, nullptr, nullptr, nullptr};
  if (kind == PanelKind::kInt8 || kind == PanelKind::kInt8Split) {
    panel.scales = reinterpret_cast<float*>(static_cast<char*>(memory) + rows * panel.stride);
    const int64_t lanes = kind == PanelKind::kInt8 ? 1 : kSplitLanes;
    panel.sums = reinterpret_cast<int32_t*>(panel.scales + rows * panel.groups() * lanes);
  }
  return panel;
}

}  // namespace greenroom
