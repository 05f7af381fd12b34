// The layouts of the structures, and the numbers of the enumerations, that Python mirrors (`structures.py`). It compares
// them when it loads the library, so that a library of another version is refused and never reads a call wrongly.
#pragma once

#include <cstdint>

namespace greenroom {

struct Field {
  const char* name;
  int64_t offset;  // of an enumerator: its number
  int64_t bytes;
};

// A structure or an enumeration.
struct Layout {
  const char* name;
  int64_t bytes;
  const Field* fields;
  int64_t num_fields;
};

struct Layouts {
  const Layout* layouts;
  int64_t count;
};

Layouts layouts();

}  // namespace greenroom
