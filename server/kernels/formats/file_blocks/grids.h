// The tables of IQ1, IQ2 and IQ3: the numbers that the codes of GGUF's types mean, eight or four bytes each.
#pragma once

#include "formats/matrix.h"

namespace greenroom {

// A table for looking up many codes at a time. An entry's numbers, of which there are few, have codes of two or four bits;
// together they are a word, whose lower bytes are `low`, and whose upper ones `high`.
template <int kEntries>
struct Planes {
  alignas(64) uint8_t low[kEntries];
  alignas(64) uint8_t high[kEntries];
  uint8_t numbers[16];  // by code
};

// All zeros until they are set; the size of each is a power of two that covers every code.
struct Grids {
  uint64_t iq2_xxs[256], iq2_xs[512], iq2_s[1024];
  uint64_t iq1[2048];  // of both types; eight times the numbers, plus 128
  uint32_t iq3_xxs[256], iq3_s[512];

  Planes<256> iq2_xxs_planes, iq3_xxs_planes;
  Planes<512> iq2_xs_planes, iq3_s_planes;
  Planes<1024> iq2_s_planes;
  Planes<2048> iq1_planes;
};

extern Grids grids;

// Sets the tables of a format from memory of its size; returns false if the format has none, or one of another size or with
// more different numbers than codes.
bool set_grid(Format format, const void* numbers, int64_t bytes);

}  // namespace greenroom
