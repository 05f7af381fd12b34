// The formats of numbers and matrices, one row each, in the order of their numbers.
//
// To add a format: a number in matrix.h, a row here, its counts in table.cpp, and a folder of `server/kernels/formats` with
// the products of its rows, `Products` (levels/kernels.inc), and in Python a place in the table of `format_table.py`.
#pragma once

#include "formats/matrix.h"

namespace greenroom {

// The bytes of each part of a matrix; 0 for what it lacks.
struct Extents {
  int64_t data, scales, zeros, rest, divisor, order;
};

struct FormatRow {
  Format format;

  // Returns null, or what is impossible in a matrix of this format, whose outputs and inputs are possible.
  const char* (*check)(const Matrix& matrix);

  // Returns the extents of a possible matrix, without divisor and order.
  Extents (*extents)(const Matrix& matrix);
};

const char* check_nothing(const Matrix& matrix);  // nothing is impossible
const char* check_scale(const Matrix& matrix);    // for scales only
const char* check_mxfp4(const Matrix& matrix);
const char* check_scaled(const Matrix& matrix);  // scales of blocks of any size
const char* check_fp4(const Matrix& matrix);
const char* check_lookup4(const Matrix& matrix);
const char* check_int4(const Matrix& matrix);
const char* check_small_records(const Matrix& matrix);  // of superblocks.inc, with records of 32 inputs
const char* check_coded(const Matrix& matrix);
const char* check_records(const Matrix& matrix);        // with records or blocks of 256 inputs
Extents plain_extents(const Matrix& matrix);
Extents q8_extents(const Matrix& matrix);
Extents q4_extents(const Matrix& matrix);
Extents mxfp4_extents(const Matrix& matrix);
Extents byte_extents(const Matrix& matrix);  // a byte a weight, scales of blocks of any size
Extents fp4_extents(const Matrix& matrix);
Extents lookup4_extents(const Matrix& matrix);
Extents int4_extents(const Matrix& matrix);
Extents record_extents(const Matrix& matrix);
Extents file_extents(const Matrix& matrix);  // of file_blocks.inc
Extents coded_extents(const Matrix& matrix);

inline constexpr FormatRow kFormats[] = {
    {Format::kFloat32, check_nothing, plain_extents},
    {Format::kBFloat16, check_nothing, plain_extents},
    {Format::kFloat16, check_nothing, plain_extents},
    {Format::kQ8, check_nothing, q8_extents},
    {Format::kQ4, check_nothing, q4_extents},
    {Format::kMxfp4, check_mxfp4, mxfp4_extents},
    {Format::kFp8, check_scaled, byte_extents},
    {Format::kE8m0, check_scale, byte_extents},
    {Format::kInt8, check_scaled, byte_extents},
    {Format::kInt4, check_int4, int4_extents},
    {Format::kFp4, check_fp4, fp4_extents},
    {Format::kQ4_0, check_small_records, record_extents},
    {Format::kQ4_1, check_small_records, record_extents},
    {Format::kQ5_0, check_small_records, record_extents},
    {Format::kQ5_1, check_small_records, record_extents},
    {Format::kIq4Nl, check_small_records, record_extents},
    {Format::kBlockMxfp4, check_small_records, record_extents},
    {Format::kQ2K, check_records, record_extents},
    {Format::kQ3K, check_records, record_extents},
    {Format::kQ4K, check_records, record_extents},
    {Format::kQ5K, check_records, record_extents},
    {Format::kQ6K, check_records, record_extents},
    {Format::kIq4Xs, check_records, record_extents},
    {Format::kIq2Xxs, check_records, file_extents},
    {Format::kIq2Xs, check_records, file_extents},
    {Format::kIq3Xxs, check_records, file_extents},
    {Format::kIq1S, check_records, file_extents},
    {Format::kIq3S, check_records, file_extents},
    {Format::kIq2S, check_records, file_extents},
    {Format::kIq1M, check_records, file_extents},
    {Format::kTq1_0, check_records, file_extents},
    {Format::kTq2_0, check_records, file_extents},
    {Format::kCodedBFloat16, check_coded, coded_extents},
    {Format::kLookup4, check_lookup4, lookup4_extents},
};

inline constexpr int64_t kNumFormats = sizeof(kFormats) / sizeof(kFormats[0]);

constexpr bool are_in_order() {
  for (int64_t place = 0; place < kNumFormats; ++place) {
    if (static_cast<int64_t>(kFormats[place].format) != place) return false;
  }
  return true;
}
static_assert(are_in_order(), "a format is not in the row of its number");

}  // namespace greenroom
