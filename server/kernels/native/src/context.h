// What every call needs: threads, a level and working memory.
#pragma once

#include <atomic>
#include <cstdint>

#include "adapters/lora.h"
#include "buffer.h"
#include "formats/matrix.h"
#include "levels/level.h"
#include "scratch.h"
#include "threads.h"

namespace greenroom {

struct Context {
  Context(int num_threads, const Level& level) : pool(num_threads), level(level) {}

  ThreadPool pool;
  std::atomic<bool> is_stopped{false};  // whether a run of steps ends before its next layer
  const Level& level;
  Buffer rows;      // panels of the input rows
  Buffer middle;    // results of the experts' first matrix
  Buffer hidden;    // panels of the inputs of their second matrix
  Buffer tables;    // tables of tiles
  Buffer mixed;     // results of a part that a norm or a convolution follows
  Buffer convolved; // the same after the convolution
  Buffer logits;    // logits of routers
  Buffer shares;    // weights of a router for experts that every token runs through
  Buffer ahead;     // logits of the next layer's router
  Buffer ahead_weights;  // of its choices, which nobody reads
  Buffer sorted;    // choices by expert
  Buffer results;   // results of experts
  Buffer projected; // rows that experts take, if these are projections of the layer's
  Buffer more_rows; // of mixers that take other ones for keys and for values
  Buffer summed;    // sums of results before the projection back, and after it
  Buffer shared;    // results of the dense expert
  Buffer router_rows;  // what routers carry from layer to layer
  Buffer deferred;  // sums of experts that a later layer adds
  Buffer inputs;    // rows of a router or a dense expert that have a norm of their own, or of experts, weighted
  Buffer factors;   // adapters' factors of weighted rows
  Buffer exact;     // inputs of the experts' second matrix as adapters see them
  Buffer adapters;  // additions of a step's adapters to experts, by adapter
  LoraSums router_lora, gate_lora, head_lora;  // additions of adapters
  LoraSums first_lora, second_lora;            // to experts
  LoraSums projection_lora;                    // to the projections around these
  Scratch mixers;   // memory of the kinds of mixers
};

// Adds a bias of plain numbers to some outputs of some rows; `y` is the first output of the first row.
void add_bias(const Level& level, const void* bias, Format format, int64_t rows, int64_t first_output,
              int64_t last_output, float* y, int64_t y_stride);

// Writes a row of a matrix in float32; returns false if rows of the format can't be read. `target` may be null.
bool read_row(const Level& level, const Matrix& matrix, int64_t row, float* target);

}  // namespace greenroom
