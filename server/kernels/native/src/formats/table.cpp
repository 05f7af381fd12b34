#include "formats/table.h"

#include "formats/checks.h"

namespace greenroom {
namespace {

bool is_scale(Format format) { return is_plain(format) || format == Format::kE8m0 || format == Format::kFp8; }
int64_t bytes_of_scale(Format format) { return is_plain(format) ? bytes_of(format) : 1; }

// True if groups of inputs consist of complete steps, or one group covers all inputs.
bool has_steps(const Matrix& matrix, int64_t step) {
  return is_count(matrix.column_block) && (matrix.column_block % step == 0 || matrix.column_block >= matrix.inputs);
}

// Extents of blocks of kBlock outputs and groups of kGroup inputs.
Extents block_extents(const Matrix& matrix, int64_t weights_per_byte) {
  const int64_t groups = divide_up(matrix.outputs, kBlock) * divide_up(matrix.inputs, kGroup);
  return {groups * kBlock * kGroup / weights_per_byte, groups * kBlock * 2, 0, 0, 0, 0};
}

// What a record of superblocks.inc takes.
struct RecordRow {
  Format format;
  int bits;      // of a code
  int inputs;    // per record
  int halves;    // float16 numbers per output and record
  int integers;  // bytes of further numbers
};

constexpr RecordRow kRecords[] = {
    {Format::kQ4_0, 4, 32, 1, 0},  {Format::kQ4_1, 4, 32, 2, 0},  {Format::kQ5_0, 5, 32, 1, 0},
    {Format::kQ5_1, 5, 32, 2, 0},  {Format::kIq4Nl, 4, 32, 1, 0}, {Format::kBlockMxfp4, 4, 32, 0, 1},
    {Format::kQ2K, 2, 256, 2, 16}, {Format::kQ3K, 3, 256, 1, 12}, {Format::kQ4K, 4, 256, 2, 12},
    {Format::kQ5K, 5, 256, 2, 12}, {Format::kQ6K, 6, 256, 1, 16}, {Format::kIq4Xs, 4, 256, 1, 8},
};

Extents scaled_extents(const Matrix& matrix, int64_t weights_per_byte) {
  const int64_t scales = divide_up(matrix.outputs, matrix.row_block) * divide_up(matrix.inputs, matrix.column_block);
  return {matrix.outputs * matrix.inputs / weights_per_byte, scales * bytes_of_scale(matrix.scale_format),
          matrix.zeros ? scales * 2 : 0, 0, 0, 0};
}

}  // namespace

const char* check_nothing(const Matrix&) { return nullptr; }

const char* check_scale(const Matrix&) { return "a matrix of no known format"; }

const char* check_mxfp4(const Matrix& matrix) {
  return matrix.inputs % kGroup ? "an MXFP4 matrix with an incomplete group" : nullptr;
}

const char* check_scaled(const Matrix& matrix) {
  if (!is_count(matrix.row_block)) return "a matrix without a block of outputs that share a scale";
  if (!has_steps(matrix, kDecoded)) return "a matrix whose groups of inputs are not multiples of 16";
  if (!is_scale(matrix.scale_format)) return "a matrix whose scales have no known format";
  const bool may_have_zeros = matrix.format == Format::kInt8 || matrix.format == Format::kLookup4;
  return matrix.zeros && !may_have_zeros ? "a matrix with zeros of no known format" : nullptr;
}

const char* check_fp4(const Matrix& matrix) {
  if (const char* reason = check_scaled(matrix)) return reason;
  return matrix.inputs % 2 || matrix.inputs % matrix.column_block ? "a 4-bit matrix with an incomplete group" : nullptr;
}

const char* check_lookup4(const Matrix& matrix) {
  return matrix.zeros ? check_fp4(matrix) : "a matrix without the numbers of its codes";
}

const char* check_int4(const Matrix& matrix) {
  if (matrix.block <= 0 || matrix.block % (2 * kDecoded)) return "a 4-bit matrix whose blocks are not multiples of 32";
  if (!has_steps(matrix, 2)) return "a 4-bit matrix whose groups of inputs are odd";
  const bool is_known = matrix.scale_format == Format::kFloat32 || matrix.scale_format == Format::kBFloat16;
  return is_known ? nullptr : "a 4-bit matrix whose scales have no known format";
}

const char* check_small_records(const Matrix& matrix) {
  return matrix.inputs % kGroup ? "a matrix with an incomplete group" : nullptr;
}

const char* check_records(const Matrix& matrix) {
  return matrix.inputs % kSuperblock ? "a matrix with an incomplete superblock" : nullptr;
}

const char* check_coded(const Matrix& matrix) {
  if (matrix.inputs % kCodedInputs) return "a coded matrix with an incomplete block";
  if (matrix.inputs > kMostCodedInputs) return "a coded matrix with too many inputs";
  const bool is_possible = matrix.row_block >= 0 && matrix.row_block <= kMost;
  return is_possible ? nullptr : "a coded matrix with an impossible number of plain blocks";
}

Extents plain_extents(const Matrix& matrix) {
  return {matrix.outputs * matrix.inputs * bytes_of(matrix.format), 0, 0, 0, 0, 0};
}

Extents q8_extents(const Matrix& matrix) { return block_extents(matrix, 1); }

Extents q4_extents(const Matrix& matrix) { return block_extents(matrix, 2); }

Extents mxfp4_extents(const Matrix& matrix) {
  return {matrix.outputs * matrix.inputs / 2, matrix.outputs * (matrix.inputs / kGroup), 0, 0, 0, 0};
}

Extents byte_extents(const Matrix& matrix) { return scaled_extents(matrix, 1); }

Extents fp4_extents(const Matrix& matrix) { return scaled_extents(matrix, 2); }

Extents lookup4_extents(const Matrix& matrix) {
  Extents extents = scaled_extents(matrix, 2);
  extents.zeros = kLookups * int64_t{sizeof(float)};
  return extents;
}

Extents int4_extents(const Matrix& matrix) {
  const int64_t pairs = divide_up(matrix.inputs, matrix.column_block) * matrix.outputs * 2;
  return {divide_up(matrix.outputs, matrix.block) * matrix.inputs * (matrix.block / 2),
          pairs * bytes_of(matrix.scale_format), 0, matrix.rest ? pairs * 2 : 0, 0, 0};
}

Extents record_extents(const Matrix& matrix) {
  const RecordRow& row = kRecords[static_cast<int>(matrix.format) - static_cast<int>(kRecords[0].format)];
  const int64_t outputs = round_up(matrix.outputs, kBlock);
  return {outputs * matrix.inputs / 8 * row.bits, outputs * (matrix.inputs / row.inputs) * (2 * row.halves + row.integers),
          0, 0, 0, 0};
}

Extents file_extents(const Matrix& matrix) {
  constexpr int64_t kBlockBytes[] = {66, 74, 98, 50, 110, 82, 56, 54, 66};  // of kIq2Xxs and those after it
  const int64_t bytes = kBlockBytes[static_cast<int>(matrix.format) - static_cast<int>(Format::kIq2Xxs)];
  return {round_up(matrix.outputs, kBlock) * (matrix.inputs / kSuperblock) * bytes, 0, 0, 0, 0, 0};
}

Extents coded_extents(const Matrix& matrix) {
  const int64_t blocks = matrix.outputs * (matrix.inputs / kCodedInputs);
  const int64_t rest = matrix.rest ? matrix.row_block * kCodedInputs * 2 : 0;
  return {blocks * kCodedBytes, blocks, matrix.zeros ? int64_t{sizeof(MorePlain)} : 0, rest, 0, 0};
}

}  // namespace greenroom
