#include "formats/checks.h"

namespace greenroom {
namespace {

constexpr int64_t kAlignment = 4;  // of offsets in a slot
constexpr int64_t kDecoded = 16;   // codes that are decoded at a time, and share a scale

bool is_scale(Format format) { return is_plain(format) || format == Format::kE8M0 || format == Format::kFp8; }
int64_t bytes_of_scale(Format format) { return is_plain(format) ? bytes_of(format) : 1; }

// True if groups of inputs consist of complete steps, or one group covers all inputs.
bool has_steps(const Matrix& matrix, int64_t step) {
  return is_count(matrix.column_block) && (matrix.column_block % step == 0 || matrix.column_block >= matrix.inputs);
}

const char* check_blocks(const Matrix& matrix) {
  if (!is_count(matrix.row_block)) return "a matrix without a block of outputs that share a scale";
  if (!has_steps(matrix, kDecoded)) return "a matrix whose groups of inputs are not multiples of 16";
  if (!is_scale(matrix.scale_format)) return "a matrix whose scales have no known format";
  if (matrix.zeros && matrix.format != Format::kInt8) return "a matrix with zeros of no known format";
  if (matrix.format != Format::kFp4) return nullptr;
  return matrix.inputs % 2 || matrix.inputs % matrix.column_block ? "a 4-bit matrix with an incomplete group" : nullptr;
}

const char* check_int4(const Matrix& matrix) {
  if (matrix.block <= 0 || matrix.block % (2 * kDecoded)) return "a 4-bit matrix whose blocks are not multiples of 32";
  if (!has_steps(matrix, 2)) return "a 4-bit matrix whose groups of inputs are odd";
  const bool is_known = matrix.scale_format == Format::kFloat32 || matrix.scale_format == Format::kBFloat16;
  return is_known ? nullptr : "a 4-bit matrix whose scales have no known format";
}

}  // namespace

Extents extents_of(const Matrix& matrix) {
  const int64_t outputs = matrix.outputs, inputs = matrix.inputs;
  Extents extents{outputs * inputs, 0, 0, 0, matrix.divisor ? int64_t{4} : 0, matrix.order ? inputs * 4 : 0};
  const int64_t block_groups = divide_up(outputs, kBlock) * divide_up(inputs, kGroup);
  switch (matrix.format) {
    case Format::kFloat32:
    case Format::kBFloat16:
    case Format::kFloat16:
      extents.data *= bytes_of(matrix.format);
      break;
    case Format::kQ8:
    case Format::kQ4:
      extents.data = block_groups * kBlock * kGroup / (matrix.format == Format::kQ8 ? 1 : 2);
      extents.scales = block_groups * kBlock * 2;
      break;
    case Format::kMxfp4:
      extents.data /= 2;
      extents.scales = outputs * (inputs / kGroup);
      break;
    case Format::kInt4: {
      const int64_t pairs = divide_up(inputs, matrix.column_block) * outputs * 2;
      extents.data = divide_up(outputs, matrix.block) * inputs * (matrix.block / 2);
      extents.scales = pairs * bytes_of(matrix.scale_format);
      extents.rest = matrix.rest ? pairs * 2 : 0;
      break;
    }
    default: {
      const int64_t scales = divide_up(outputs, matrix.row_block) * divide_up(inputs, matrix.column_block);
      extents.data /= matrix.format == Format::kFp4 ? 2 : 1;
      extents.scales = scales * bytes_of_scale(matrix.scale_format);
      extents.zeros = matrix.zeros ? scales * 2 : 0;
    }
  }
  return extents;
}

const char* check_matrix(const Matrix& matrix) {
  if (!is_count(matrix.outputs) || !is_count(matrix.inputs)) return "a matrix without outputs or inputs";
  if (matrix.is_transposed && !is_plain(matrix.format)) return "a transposed matrix of codes";
  switch (matrix.format) {
    case Format::kFloat32:
    case Format::kBFloat16:
    case Format::kFloat16:
    case Format::kQ8:
    case Format::kQ4:
      return nullptr;
    case Format::kMxfp4:
      return matrix.inputs % kGroup ? "an MXFP4 matrix with an incomplete group" : nullptr;
    case Format::kFp8:
    case Format::kInt8:
    case Format::kFp4:
      return check_blocks(matrix);
    case Format::kInt4:
      return check_int4(matrix);
    default:
      return "a matrix of no known format";
  }
}

bool is_inside(const void* offset, int64_t bytes, int64_t slot_bytes) {
  const auto begin = static_cast<int64_t>(reinterpret_cast<intptr_t>(offset));
  return begin >= 0 && begin <= slot_bytes && bytes <= slot_bytes - begin && begin % kAlignment == 0;
}

const char* check_placed(const Matrix& matrix, int64_t slot_bytes) {
  if (const char* reason = check_matrix(matrix)) return reason;
  const Extents extents = extents_of(matrix);
  if (!slot_bytes) return matrix.data && (matrix.scales || !extents.scales) ? nullptr : "a matrix without memory";
  const bool are_inside = is_inside(matrix.data, extents.data, slot_bytes) &&
                          is_inside(matrix.scales, extents.scales, slot_bytes) &&
                          (!matrix.zeros || is_inside(matrix.zeros, extents.zeros, slot_bytes)) &&
                          (!matrix.rest || is_inside(matrix.rest, extents.rest, slot_bytes)) &&
                          (!matrix.divisor || is_inside(matrix.divisor, extents.divisor, slot_bytes)) &&
                          (!matrix.order || is_inside(matrix.order, extents.order, slot_bytes));
  return are_inside ? nullptr : "a matrix that is larger than its slot";
}

bool is_shaped(const Matrix& matrix, int64_t outputs, int64_t inputs) {
  return !check_placed(matrix, 0) && matrix.outputs == outputs && matrix.inputs == inputs;
}

}  // namespace greenroom
