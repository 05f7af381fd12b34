// Checks of counts and offsets that come from files, made once where a description is built. Kernels do not check them
// again, so whatever passes here must stay inside the memory that its counts stand for.
#pragma once

#include "formats/table.h"

namespace greenroom {

inline constexpr int64_t kMost = int64_t{1} << 30;  // of any count: a product of two and a size does not overflow

inline bool is_count(int64_t number) { return number > 0 && number <= kMost; }
inline bool is_plain(Format format) { return format >= Format::kFloat32 && format <= Format::kFloat16; }

// Returns the extents of a matrix that `check_matrix` accepts.
Extents extents_of(const Matrix& matrix);

// All checks return null, or what is impossible: the rest of a sentence that begins with "it has".
const char* check_matrix(const Matrix& matrix);

// Checks a matrix and the place of its parts in a slot of `slot_bytes`; 0 means that they are addresses. Null in a slot is
// an offset for codes and scales only.
const char* check_placed(const Matrix& matrix, int64_t slot_bytes);

// True for a possible matrix of this shape, whose memory has an address.
bool is_shaped(const Matrix& matrix, int64_t outputs, int64_t inputs);

// True if a part lies in a slot.
bool is_inside(const void* offset, int64_t bytes, int64_t slot_bytes);

}  // namespace greenroom
