// Random matrices of every format, with their values.
#pragma once

#include <optional>

#include "common.h"

namespace driver {

// All of a matrix except its numbers, which the matrices of several experts can share.
struct Layout {
  Layout(Format format, int64_t outputs, int64_t inputs);

  Format format;
  int64_t outputs, inputs;
  bool is_transposed = false, has_zeros = false, has_rest = false, has_divisor = false, has_order = false;
  int64_t row_block = 0, column_block = 0;
  Format scale_format = Format::kFloat32;
  int32_t block = 0;
};

extern std::optional<Format> only_format;  // what any_format() returns, if it is set
Format any_format();
Format format_for(int64_t inputs);  // a format that supports a number of inputs, `only_format` if it does
Format trunk_format();  // a format of linear layers: plain, or int8 or int4 of a pack

// A number of inputs that a format supports, near another one.
int64_t supported(Format format, int64_t inputs);

// A matrix in memory; `values` are (outputs, inputs), in the order of the inputs.
struct Weights {
  explicit Weights(const Layout& layout);

  Matrix matrix() const;

  // The sum of an output for some numbers; sets `size` to the sum of magnitudes.
  double sum(const double* x, int64_t output, double* size) const;

  // The tolerance of that sum if numbers are rounded: to bfloat16, or to 8 bits of the largest.
  double rounding(const double* x, int64_t output) const;

  Layout layout;
  std::vector<char> codes, scales, zeros, rest, divisor, order;
  std::vector<double> values;

 private:
  double& value(int64_t output, int64_t column);
  void fill_plain();
  void fill_coded();
  void fill_pack(bool is_q8);
  void fill_pack_group(bool is_q8, int64_t output, int64_t group, int64_t groups);
  void fill_codes();  // for kFp8, kInt8, kFp4 and kMxfp4
  void fill_int4();
  void fill_records();  // for kQ4_0 and those after it
  void fill_scales(int64_t count);
  double code(int64_t output, int64_t column, double zero);
};

}  // namespace driver
