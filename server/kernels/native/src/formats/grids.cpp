#include "formats/grids.h"

namespace greenroom {
namespace {

template <typename Number, size_t kCount>
bool copy(Number (&grid)[kCount], const void* numbers, int64_t bytes) {
  if (bytes != static_cast<int64_t>(sizeof grid)) return false;
  std::memcpy(grid, numbers, sizeof grid);
  return true;
}

}  // namespace

Grids grids;

bool set_grid(Format format, const void* numbers, int64_t bytes) {
  switch (format) {
    case Format::kIq2Xxs: return copy(grids.iq2_xxs, numbers, bytes);
    case Format::kIq2Xs: return copy(grids.iq2_xs, numbers, bytes);
    case Format::kIq2S: return copy(grids.iq2_s, numbers, bytes);
    case Format::kIq3Xxs: return copy(grids.iq3_xxs, numbers, bytes);
    case Format::kIq3S: return copy(grids.iq3_s, numbers, bytes);
    case Format::kIq1S:
    case Format::kIq1M: return copy(grids.iq1, numbers, bytes);
    default: return false;
  }
}

}  // namespace greenroom
