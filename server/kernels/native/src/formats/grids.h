// The tables of IQ1, IQ2 and IQ3: the numbers that the codes of GGUF's types mean, eight or four bytes each.
#pragma once

#include "formats/matrix.h"

namespace greenroom {

// All zeros until they are set; the size of each is a power of two that covers every code.
struct Grids {
  uint64_t iq2_xxs[256], iq2_xs[512], iq2_s[1024];
  uint64_t iq1[2048];  // of both types; eight times the numbers, plus 128
  uint32_t iq3_xxs[256], iq3_s[512];
};

extern Grids grids;

// Sets the table of a format from memory of its size; returns false if the format has none, or one of another size.
bool set_grid(Format format, const void* numbers, int64_t bytes);

}  // namespace greenroom
