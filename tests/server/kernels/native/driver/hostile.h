// Parts of descriptions with counts that a hostile file may have.
#pragma once

#include <algorithm>
#include <deque>
#include <vector>

#include "common.h"
#include "formats/checks.h"
#include "layers/layer.h"

namespace driver {

using Memory = std::deque<std::vector<char>>;

constexpr int64_t kMostBytes = 1 << 22;  // of memory for one description

extern int64_t rarity;           // of hostile numbers
extern int64_t num_accepted[6];  // matrices, experts, layers, latents, recurrent mixers and compressed keys that ran

// Returns a number, or rarely a hostile one.
int64_t maybe(int64_t usual);
inline int32_t maybe32(int64_t usual) { return static_cast<int32_t>(maybe(usual)); }

// Any bits, but numbers that are small enough to be indices where they are read as such are as likely.
char* any_bits(Memory& memory, int64_t bytes);

Matrix any_matrix(int64_t outputs, int64_t inputs, bool is_trunk);
bool is_large(const Matrix& matrix);

// Gives an accepted matrix memory of its own.
void place(Matrix& matrix, Memory& memory);

// A step of one sequence, whose states before it are in row 0, if there are some, and go to row 1.
struct AnyStep {
  AnyStep(Memory& memory, int64_t hidden, int64_t tokens, int64_t first_position, int64_t rotary_dim)
      : sequence{0, static_cast<int32_t>(tokens), static_cast<int32_t>(first_position), 0, one_in(2) ? -1 : 0, 1} {
    const auto floats = [&](int64_t count) { return reinterpret_cast<float*>(any_bits(memory, count * 4)); };
    for (int64_t block = 0; block < divide_up(first_position + tokens, kCacheBlock); ++block) {
      blocks.push_back(static_cast<int32_t>(block));
    }
    tables = blocks.data();
    const int64_t angles = (first_position + tokens) * (std::max<int64_t>(rotary_dim, 0) / 2);
    cosines = floats(angles);
    sines = floats(angles);
    call.hidden = floats(tokens * hidden);
    call.normed = floats(tokens * hidden);
    call.sequences = &sequence;
    call.block_tables = &tables;
    call.cosines = &cosines;
    call.sines = &sines;
    call.query_scales = floats(first_position + tokens);
    call.tokens = tokens;
    call.num_sequences = 1;
    call.hidden_size = hidden;
    call.is_exact = static_cast<int32_t>(between(0, 1));
  }
  AnyStep(const AnyStep&) = delete;

  StepSequence sequence;
  std::vector<int32_t> blocks;
  const int32_t* tables;
  const float *cosines, *sines;
  StepCall call{};
};

void run_any_recurrent(Handle* handle);
void run_any_compressed(Handle* handle);

}  // namespace driver
