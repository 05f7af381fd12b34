#include "kernels/formats/file_blocks/grids.h"

namespace greenroom {
namespace {

template <typename Number, int kCount>
bool copy(Number (&grid)[kCount], Planes<kCount>& planes, const void* numbers, int64_t bytes) {
  if (bytes != static_cast<int64_t>(sizeof grid)) return false;
  constexpr int kNumbers = sizeof(Number), kBits = 16 / kNumbers;  // of an entry, and of a code
  const auto* source = static_cast<const uint8_t*>(numbers);
  int code_of[256] = {}, num_codes = 0;
  bool is_used[256] = {};
  for (int64_t i = 0; i < bytes; ++i) is_used[source[i]] = true;
  for (int number = 0; number < 256; ++number) {
    if (!is_used[number]) continue;
    if (num_codes == 1 << kBits) return false;
    code_of[number] = num_codes;
    planes.numbers[num_codes++] = static_cast<uint8_t>(number);
  }
  for (int entry = 0; entry < kCount; ++entry) {
    int word = 0;
    for (int i = 0; i < kNumbers; ++i) word |= code_of[source[entry * kNumbers + i]] << kBits * i;
    planes.low[entry] = static_cast<uint8_t>(word);
    planes.high[entry] = static_cast<uint8_t>(word >> 8);
  }
  std::memcpy(grid, numbers, sizeof grid);
  return true;
}

}  // namespace

Grids grids;

bool set_grid(Format format, const void* numbers, int64_t bytes) {
  switch (format) {
    case Format::kIq2Xxs: return copy(grids.iq2_xxs, grids.iq2_xxs_planes, numbers, bytes);
    case Format::kIq2Xs: return copy(grids.iq2_xs, grids.iq2_xs_planes, numbers, bytes);
    case Format::kIq2S: return copy(grids.iq2_s, grids.iq2_s_planes, numbers, bytes);
    case Format::kIq3Xxs: return copy(grids.iq3_xxs, grids.iq3_xxs_planes, numbers, bytes);
    case Format::kIq3S: return copy(grids.iq3_s, grids.iq3_s_planes, numbers, bytes);
    case Format::kIq1S:
    case Format::kIq1M: return copy(grids.iq1, grids.iq1_planes, numbers, bytes);
    default: return false;
  }
}

}  // namespace greenroom
