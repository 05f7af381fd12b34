// A linear layer.
#pragma once

#include "context.h"

namespace greenroom {

extern "C" {  // structures/matrices.py
struct LinearCall {
  Matrix matrix;
  const void* bias;  // or null
  const void* x;     // (rows, inputs), plain
  void* y;           // (rows, outputs), plain
  int64_t rows;
  int64_t x_stride;  // in numbers
  int64_t y_stride;
  Format bias_format;
  Format x_format;
  Format y_format;
  int32_t is_exact;  // never round rows
};
}  // extern "C"

void run_linear(Context& context, const LinearCall& call);

}  // namespace greenroom
