// LoRA adapters: low-rank additions to products, each for some rows.
//
// An addition is `factor * scale * (x * down^T) * up^T`. Its rows are never rounded, whatever the format of the matrix
// that it adds to: x and x * down^T are float32. As products are batch-invariant, and a row's additions are summed in the
// order of the adapters, a row's result does not depend on other rows.
#pragma once

#include <cstdint>
#include <vector>

#include "adapters/lora_router.h"
#include "buffer.h"
#include "formats/matrix.h"
#include "levels/level.h"

namespace greenroom {

extern "C" {  // structures/adapters.py
// An adapter's addition to some neighbouring outputs of a matrix.
struct LoraPart {
  const void* down;       // (rank, inputs)
  const void* up;         // (outputs, rank), or (rank, outputs) if transposed, which is faster
  int64_t rank;
  int64_t inputs;
  int64_t outputs;
  int64_t first_output;   // of the matrix
  Format format;          // plain, of both
  int32_t is_transposed;
  float scale;
  int32_t module;         // of those that are computed as one matrix
  const float* vector;    // (inputs), by which a router scores the adapter at this module; null if none needs it
};

// An adapter's additions to one matrix.
struct LoraParts {
  const LoraPart* parts;
  int64_t count;
};

// The matrices of a decoder layer, and of the end of a model, that adapters may add to, besides those of experts.
enum class LoraPlace : int32_t {
  kMixer = 0,  // the first of its mixer's, which are in an order of its kind
  kRouter = 12,
  kDenseFirst = 13,
  kDenseSecond = 14,
  kDenseGate = 15,
  kInputGate = 16,  // gates of a norm, or of rows of the residual stream, before the mixer: down, up, and weights of results
  kInnerGate = 19,  // the same before the feed-forward part
  kNgramKey = 22,
  kNgramValue = 23,
  kHead = 24,       // of the end of a model, whose gates have the place of those before a mixer
  kExpertsInput = 25,   // projections of the rows of experts, and of their sum
  kExpertsOutput = 26,
  kRouterDown = 27,      // the layers of a router's MLP, before its matrix
  kRouterFirst = 28,
  kRouterSecond = 29,
  kCount = 30,
};

// An adapter's additions to a decoder layer, or to the end of a model.
struct LoraLayer {
  LoraParts places[static_cast<int>(LoraPlace::kCount)];
  const LoraParts* first;   // (experts), or null
  const LoraParts* second;
};

// The adapters of a step, in an order that does not depend on what else is in the step.
struct LoraStep {
  const LoraLayer* const* layers;  // (adapters), each by layer, and then of the end of the model
  const float* factors;            // (tokens, adapters); 0 where a token does not use the adapter
  int64_t num_adapters;
  int64_t num_layers;
  const LoraRouting* routing;      // null if all factors are fixed
};

// The adapters of a batch of experts.
struct LoraExperts {
  const LoraParts* const* first;   // (adapters), each by expert, or null
  const LoraParts* const* second;
  const float* factors;            // (tokens, adapters)
  int64_t num_adapters;
  const int32_t* numbers;          // (experts of the batch): index of each in `first` and `second`
  const LoraRouting* routing;      // null if all factors are fixed; else the batch has one expert, for all tokens
};
}  // extern "C"

inline constexpr LoraPlace place_after(LoraPlace place, int number) {
  return static_cast<LoraPlace>(static_cast<int>(place) + number);
}
inline constexpr LoraPlace mixer_place(int number) { return place_after(LoraPlace::kMixer, number); }

inline const LoraParts& parts_at(const LoraLayer& layer, LoraPlace place) {
  return layer.places[static_cast<int>(place)];
}

// The rows that adapters multiply.
struct LoraRows {
  const void* x;          // plain
  Format format;
  int64_t stride;
  const int32_t* rows;    // place in `x` of each row; null if row i is at i
};

// The additions of a step's adapters to one matrix, or to the same matrix of several experts. Rows are sorted by group
// (by expert), and by adapter within. First all tiles of `multiply_down` run, then `add` for tiles of the base product.
// It keeps its memory from step to step.
class LoraSums {
 public:
  LoraRoutes routes;  // for factors that a router computes before `plan`

  // `starts (groups + 1)` are the first row of each group. `parts_of(group, adapter)` returns `LoraParts`.
  template <typename PartsOf>
  void plan(const LoraFactors& factors, const LoraRows& rows, int64_t num_groups, const int32_t* starts,
            int num_threads, PartsOf parts_of) {
    begin(factors, rows);
    for (int64_t group = 0; group < num_groups; ++group) {
      for (int64_t adapter = 0; adapter < factors.num_adapters; ++adapter) {
        const LoraParts parts = parts_of(group, adapter);
        if (parts.count) place(parts, adapter, starts[group] - starts[0], starts[group + 1] - starts[0]);
      }
      group_ends_.push_back(static_cast<int64_t>(pieces_.size()));
    }
    reserve(num_threads);
  }

  // Sets the address of the rows, for a caller that makes them after planning.
  void set_rows(const void* x) { source_.x = x; }

  // Plans nothing, for a step without adapters.
  void clear() {
    pieces_.clear();
    num_tiles_ = 0;
  }

  int64_t num_tiles() const { return num_tiles_; }
  bool is_empty() const { return pieces_.empty(); }

  // Multiplies some rows by a part's `down`.
  void multiply_down(const Level& level, int64_t tile, int thread);

  // Adds to some outputs of some rows of one group, at most kWidest numbers, the first at `y`.
  void add(const Level& level, int64_t group, int64_t first_row, int64_t last_row, int64_t first_output,
           int64_t last_output, float* y, int64_t y_stride) const;

 private:
  // A part with its rows.
  struct Piece {
    const LoraPart* part;
    int64_t adapter;
    int64_t first, count;  // in `rows_`
    int64_t begin;         // of its products with `down`, (count, stride), in `products_`
    int64_t stride;
    int64_t last_tile;     // end of its tiles
  };

  void begin(const LoraFactors& factors, const LoraRows& rows);
  void place(const LoraParts& parts, int64_t adapter, int64_t first_row, int64_t last_row);
  void reserve(int num_threads);
  float factor_of(int64_t row, int64_t adapter, int64_t module) const {
    const int64_t token = factors_.tokens ? factors_.tokens[row] : row;
    return factors_.factors[module * factors_.module_stride + token * factors_.num_adapters + adapter];
  }
  int64_t place_rows(int64_t adapter, int64_t module, int64_t first_row, int64_t last_row);

  LoraFactors factors_{};
  LoraRows source_{};
  std::vector<Piece> pieces_;
  std::vector<int64_t> group_ends_;  // end of each group's pieces
  std::vector<int32_t> rows_;        // ascending within an adapter of a group
  int64_t num_tiles_ = 0;
  int64_t num_products_ = 0;
  int64_t panel_bytes_ = 0;          // of a thread
  float* products_ = nullptr;
  char* panels_ = nullptr;
  Buffer memory_;
};

}  // namespace greenroom
