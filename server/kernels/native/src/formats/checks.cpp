#include "formats/checks.h"

namespace greenroom {
namespace {

constexpr int64_t kAlignment = 4;  // of offsets in a slot

// Null if the number is not one of a format.
const FormatRow* row_of(Format format) {
  const auto number = static_cast<int64_t>(format);
  return number >= 0 && number < kNumFormats ? &kFormats[number] : nullptr;
}

}  // namespace

Extents extents_of(const Matrix& matrix) {
  Extents extents = row_of(matrix.format)->extents(matrix);
  if (matrix.divisor) extents.divisor = 4;
  if (matrix.order) extents.order = matrix.inputs * 4;
  return extents;
}

const char* check_matrix(const Matrix& matrix) {
  if (!is_count(matrix.outputs) || !is_count(matrix.inputs)) return "a matrix without outputs or inputs";
  if (matrix.is_transposed && !is_plain(matrix.format)) return "a transposed matrix of codes";
  const FormatRow* row = row_of(matrix.format);
  return row ? row->check(matrix) : "a matrix of no known format";
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
