// Experts that make the queries and the output of attention (JetMoe), of which a router gives each token some. The queries
// of all of them attend to the same keys: head `g * top_k + place` belongs to the expert with this place among a token's.
#pragma once

#include <algorithm>
#include <cmath>

#include "formats/checks.h"
#include "layers/sides.h"
#include "layers/step.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
struct HeadExperts {
  Matrix router;      // (experts, hidden)
  Matrix query;       // (experts * kv_heads * key_dim, hidden), plain
  Matrix output;      // (experts * hidden, kv_heads * value_dim), plain
  const float* bias;  // (hidden) of the sum of outputs, or null
  int64_t num_experts;
  int64_t top_k;      // of a token, whose weights are a softmax of their logits
};
}  // extern "C"

// The choices of a step's rows, and the products of these rows with their experts' matrices.
class HeadExpertsStep {
 public:
  HeadExpertsStep(Context& context, const HeadExperts& spec, const StepCall& step, int64_t key_dim, int64_t value_dim)
      : level_(context.level), spec_(spec), step_(step), key_dim_(key_dim), value_dim_(value_dim),
        queries_(spec.query.outputs / spec.num_experts), num_rows_(step.tokens * spec.top_k) {
    const int64_t tokens = step.tokens, hidden = step.hidden_size, experts = spec.num_experts;
    const int64_t threads = context.pool.num_threads();
    auto& own = context.mixers.of<Memory>();
    const PanelKind inner = level_.panel_kind(spec.query, step.is_exact);
    const PanelKind outer = level_.panel_kind(spec.output, step.is_exact);
    const int64_t size = round_up(panel_bytes(PanelKind::kFloat32, tokens, hidden), 64);
    const int64_t inner_size = round_up(panel_bytes(inner, num_rows_, hidden), 64);
    char* place = own.panels.reserve(size + inner_size + panel_bytes(outer, num_rows_, spec.output.inputs));
    router_panel_ = place_panel(PanelKind::kFloat32, tokens, hidden, place);
    query_panel_ = place_panel(inner, num_rows_, hidden, place + size);
    output_panel_ = place_panel(outer, num_rows_, spec.output.inputs, place + size + inner_size);
    logits_ = own.numbers.reserve<float>(
        (2 * tokens * experts + num_rows_ + num_rows_ * (hidden + spec.output.inputs) + threads * hidden) * 4);
    weights_ = logits_ + 2 * tokens * experts;
    results_ = weights_ + num_rows_;
    gathered_ = results_ + num_rows_ * hidden;
    sums_ = gathered_ + num_rows_ * spec.output.inputs;
    chosen_ = own.choices.reserve<int32_t>((3 * num_rows_ + experts + 1) * 4);
    sorted_ = chosen_ + num_rows_;
    sources_ = sorted_ + num_rows_;
    starts_ = sources_ + num_rows_;
  }

  // Prepares a token's normed row.
  void prepare(int64_t token) {
    level_.prepare(router_panel_, step_.normed, Format::kFloat32, step_.hidden_size, nullptr, token, token + 1);
  }

  // The router, whose outputs are the logits from `offset` on.
  Side router(int64_t offset, const LoraSums* lora) const {
    return {&spec_.router, nullptr, offset, lora, &router_panel_};
  }

  void take_logits(int64_t token, int64_t first, const float* sums, int64_t count) const {
    std::copy_n(sums, count, logits_ + token * spec_.num_experts + first);
  }

  // Chooses a token's experts; of equal ones, takes the first.
  void choose(int64_t row) const {
    const int64_t experts = spec_.num_experts;
    const float* logits = logits_ + row * experts;
    float* left = logits_ + (step_.tokens + row) * experts;
    std::copy_n(logits, experts, left);
    for (int64_t i = row * spec_.top_k; i < (row + 1) * spec_.top_k; ++i) {
      int64_t best = 0;
      for (int64_t j = 1; j < experts; ++j) best = left[j] > left[best] ? j : best;
      chosen_[i] = static_cast<int32_t>(best);
      weights_[i] = logits[best];
      left[best] = -INFINITY;
    }
    level_.soft_max(weights_ + row * spec_.top_k, spec_.top_k);
  }

  // Sorts the choices by expert, once all are made.
  void sort() {
    std::fill(starts_, starts_ + spec_.num_experts + 1, 0);
    for (int64_t i = 0; i < num_rows_; ++i) ++starts_[chosen_[i] + 1];
    for (int64_t i = 0; i < spec_.num_experts; ++i) starts_[i + 1] += starts_[i];
    for (int64_t i = 0; i < num_rows_; ++i) {
      const int32_t row = starts_[chosen_[i]]++;
      sorted_[row] = static_cast<int32_t>(i);
      sources_[row] = static_cast<int32_t>(i / spec_.top_k);
    }
    std::copy_backward(starts_, starts_ + spec_.num_experts, starts_ + spec_.num_experts + 1);
    starts_[0] = 0;
  }

  int64_t num_rows() const { return num_rows_; }  // a token has one of each of its experts
  int64_t num_query_tiles() const { return num_tiles(queries_); }
  int64_t num_output_tiles() const { return num_tiles(step_.hidden_size); }

  void prepare_query(int64_t row) {
    level_.prepare(query_panel_, step_.normed, Format::kFloat32, step_.hidden_size, sources_, row, row + 1);
  }

  // `put(token, number, sums, count)` takes some of a token's queries.
  template <typename Put>
  void project(int64_t tile, Put put) const {
    multiply(spec_.query, query_panel_, queries_, tile, [&](int64_t row, int64_t first, const float* sums, int64_t count) {
      const int64_t place = sorted_[row] % spec_.top_k;
      for (int64_t i = 0, size; i < count; i += size) {
        const int64_t head = (first + i) / key_dim_, number = (first + i) % key_dim_;
        size = std::min(count - i, key_dim_ - number);
        put(sources_[row], (head * spec_.top_k + place) * key_dim_ + number, sums + i, size);
      }
    });
  }

  // `attended` are the results of attention, (tokens, heads * value_dim).
  void prepare_output(int64_t row, const float* attended) {
    const int64_t size = spec_.output.inputs, place = sorted_[row] % spec_.top_k;
    const float* heads = attended + sources_[row] * size * spec_.top_k;
    for (int64_t head = 0; head < size / value_dim_; ++head) {
      std::copy_n(heads + (head * spec_.top_k + place) * value_dim_, value_dim_, gathered_ + row * size + head * value_dim_);
    }
    level_.prepare(output_panel_, gathered_, Format::kFloat32, size, nullptr, row, row + 1);
  }

  void project_back(int64_t tile) const {
    multiply(spec_.output, output_panel_, step_.hidden_size, tile,
             [&](int64_t row, int64_t first, const float* sums, int64_t count) {
               std::copy_n(sums, count, results_ + sorted_[row] * step_.hidden_size + first);
             });
  }

  // Returns the weighted sum of a token's outputs.
  const float* sum(int64_t token, int thread) const {
    const int64_t size = step_.hidden_size;
    float* sum = sums_ + thread * size;
    std::fill(sum, sum + size, 0.0f);
    for (int64_t i = token * spec_.top_k; i < (token + 1) * spec_.top_k; ++i) {
      level_.add_scaled(sum, results_ + i * size, weights_[i], size);
    }
    if (spec_.bias) level_.add_scaled(sum, spec_.bias, 1.0f, size);
    return sum;
  }

 private:
  struct Memory {
    Buffer panels, numbers, choices;
  };

  int64_t tiles_of(int64_t expert, int64_t outputs) const {
    return divide_up(starts_[expert + 1] - starts_[expert], kRowTile) * divide_up(outputs, kOutputTile);
  }

  int64_t num_tiles(int64_t outputs) const {
    int64_t count = 0;
    for (int64_t expert = 0; expert < spec_.num_experts; ++expert) count += tiles_of(expert, outputs);
    return count;
  }

  // Runs a tile of the products of sorted rows with the `outputs` rows of their experts in a matrix.
  template <typename Put>
  void multiply(const Matrix& matrix, const Panel& panel, int64_t outputs, int64_t tile, Put put) const {
    int64_t expert = 0;
    for (int64_t count; tile >= (count = tiles_of(expert, outputs)); ++expert) tile -= count;
    Matrix own = matrix;
    own.outputs = outputs;
    own.data = static_cast<const char*>(matrix.data) + expert * outputs * matrix.inputs * bytes_of(matrix.format);
    const int64_t row_tiles = divide_up(starts_[expert + 1] - starts_[expert], kRowTile);
    const int64_t first_row = starts_[expert] + tile % row_tiles * kRowTile, first = tile / row_tiles * kOutputTile;
    const int64_t last_row = std::min<int64_t>(first_row + kRowTile, starts_[expert + 1]);
    const int64_t last = std::min(first + kOutputTile, outputs);
    alignas(64) float sums[kRowTile * kOutputTile];
    level_.multiply(own, panel, first_row, last_row, first, last, sums, kOutputTile);
    for (int64_t row = first_row; row < last_row; ++row) put(row, first, sums + (row - first_row) * kOutputTile, last - first);
  }

  const Level& level_;
  const HeadExperts& spec_;
  const StepCall& step_;
  const int64_t key_dim_, value_dim_;
  const int64_t queries_;   // numbers of the queries of one expert
  const int64_t num_rows_;
  Panel router_panel_{}, query_panel_{}, output_panel_{};
  float* logits_;    // (2, tokens, experts): all, then those that are left in a choice
  float* weights_;   // (tokens, top_k)
  float* results_;   // (tokens, top_k, hidden)
  float* gathered_;  // (rows, output.inputs)
  float* sums_;      // (threads, hidden)
  int32_t* chosen_;  // (tokens, top_k)
  int32_t* sorted_;  // (rows): indices of choices, by expert
  int32_t* sources_;  // (rows): their tokens
  int32_t* starts_;  // (experts + 1): rows of each expert
};

// Returns null, or what is impossible.
inline const char* check_head_experts(const HeadExperts& spec, int64_t heads, int64_t kv_heads, int64_t queries,
                                      int64_t values, int64_t hidden_size) {
  if (!is_count(spec.num_experts) || spec.top_k < 1 || spec.top_k > spec.num_experts || heads != kv_heads * spec.top_k) {
    return "heads that its experts don't make";
  }
  const bool fits = is_shaped(spec.router, spec.num_experts, hidden_size) &&
                    is_shaped(spec.query, spec.num_experts * queries, hidden_size) &&
                    is_shaped(spec.output, spec.num_experts * hidden_size, values);
  if (!fits) return "experts of heads that don't fit each other";
  const auto is_read = [](const Matrix& matrix) { return is_plain(matrix.format) && !matrix.is_transposed; };
  return is_read(spec.query) && is_read(spec.output) ? nullptr : "experts of heads in a format whose parts can't be read";
}

}  // namespace greenroom
