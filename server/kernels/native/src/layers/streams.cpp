#include "layers/streams.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "formats/checks.h"
#include "layers/sides.h"

namespace greenroom {
namespace {

struct Memory {
  Buffer panel;
  Buffer rows;     // sums of threads, and logits of tokens
  Buffer weights;  // of results and from row to row
  Buffer mixed;    // rows of threads
};

constexpr int64_t kMostStreams = 16;
constexpr int32_t kMostIterations = 1000;

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// Makes the weights from row to row, (from, to), from their logits: all that leave a row, and all that reach one, have the
// sum 1 in the end.
void normalise_weights(const StreamMix& mix, const float* logits, const float* bias, float* weights) {
  const int64_t n = mix.num_streams;
  for (int64_t from = 0; from < n; ++from) {
    float* row = weights + from * n;
    float most = -INFINITY, total = 0.0f;
    for (int64_t to = 0; to < n; ++to) {
      row[to] = logits[from * n + to] * mix.scales[2] + bias[from * n + to];
      most = std::max(most, row[to]);
    }
    for (int64_t to = 0; to < n; ++to) total += row[to] = std::exp(row[to] - most);
    for (int64_t to = 0; to < n; ++to) row[to] = row[to] / total + mix.epsilon;
  }
  const auto divide = [&](int64_t first, int64_t stride) {
    float total = 0.0f;
    for (int64_t i = 0; i < n; ++i) total += weights[first + i * stride];
    for (int64_t i = 0; i < n; ++i) weights[first + i * stride] /= total + mix.epsilon;
  };
  for (int i = 0; i < mix.iterations; ++i) {
    for (int64_t from = 0; i && from < n; ++from) divide(from * n, 1);
    for (int64_t to = 0; to < n; ++to) divide(to, n);
  }
}

int64_t kept_weights(const StreamMix& mix) { return mix.num_streams * (1 + (mix.iterations ? mix.num_streams : 0)); }

// The weights of a part's results and from row to row, by token, which are kept until the part has run.
float* weights_of(Context& context, const StreamMix& mix, const StepCall& step) {
  if (step.stream_weights) return step.stream_weights;
  return context.mixers.of<Memory>().weights.reserve<float>(step.tokens * kept_weights(mix) * 4);
}

// Keeps the weights of a token's results, from its logits, and those from row to row behind them.
void keep_weights(const StreamMix& mix, const float* logits, float* weights) {
  const int64_t n = mix.num_streams, first = mix.gates ? 0 : n;  // gates take the place of logits for sums
  for (int64_t i = 0; i < n; ++i) {
    weights[i] = mix.magnitude * sigmoid(logits[first + i] * mix.scales[1] + mix.bias[first + i]) + mix.result_epsilon;
  }
  if (mix.iterations) normalise_weights(mix, logits + 2 * n, mix.bias + 2 * n, weights + n);
}

// Sums the rows of tokens by gates; `kept` and `finish` are as of `sum_rows`.
template <typename Finish>
void sum_by_gates(Context& context, const StreamMix& mix, const float* streams, const AdaptedRows& rows, LoraPlace place,
                  int64_t hidden_size, bool is_exact, float* kept, Finish finish) {
  auto& own = context.mixers.of<Memory>();
  const int64_t n = mix.num_streams, num_rows = rows.count;
  float* sums = own.rows.reserve<float>(num_rows * (hidden_size + n) * 4);
  float* logits = sums + num_rows * hidden_size;
  sum_gated_rows(context, mix, streams, rows, place, hidden_size, is_exact, sums, logits);
  auto take = [&](int64_t row, int) {
    if (!mix.is_last) keep_weights(mix, logits + row * n, kept + row * kept_weights(mix));
    finish(row, sums + row * hidden_size);
  };
  const Phase phase = phase_of(num_rows, take);
  context.pool.run(&phase, 1);
}

// Sums the rows of tokens: `finish(row, sum)` takes each sum, which it may change. `place` is that of gates, and `kept` takes
// the weights of results, unless the mix is the last.
template <typename Finish>
void sum_rows(Context& context, const StreamMix& mix, const float* streams, const AdaptedRows& rows, LoraPlace place,
              int64_t hidden_size, bool is_exact, float* kept, Finish finish) {
  if (mix.gates) return sum_by_gates(context, mix, streams, rows, place, hidden_size, is_exact, kept, finish);
  const Level& level = context.level;
  auto& own = context.mixers.of<Memory>();
  const int64_t n = mix.num_streams, size = n * hidden_size, outputs = mix.logits.outputs, num_rows = rows.count;
  const int64_t threads = context.pool.num_threads(), stride = round_up(hidden_size, 16);
  Panel panel{};
  if (outputs) {
    panel = place_panel(PanelKind::kFloat32, num_rows, size, own.panel.reserve(panel_bytes(PanelKind::kFloat32, num_rows, size)));
  }
  float* sums_of_threads = own.rows.reserve<float>((threads * stride + num_rows * outputs) * 4);
  float* logits = sums_of_threads + threads * stride;
  const auto streams_of = [&](int64_t row) { return streams + (rows.tokens ? rows.tokens[row] : row) * size; };

  auto normalise = [&](int64_t row, int) {
    float* normed = static_cast<float*>(panel.data) + row * panel.stride;
    level.normalise(streams_of(row), mix.norm, mix.norm_epsilon, size, normed);
    std::memset(normed + size, 0, static_cast<size_t>(panel.stride - size) * 4);
  };
  const Side side{&mix.logits, nullptr, 0};
  auto multiply = multiply_sides(context, panel, &side, outputs ? 1 : 0, kOutputTile,
                                 [&](int64_t row, int64_t output, const float* sums, int64_t count) {
                                   std::memcpy(logits + row * outputs + output, sums, static_cast<size_t>(count) * 4);
                                 });
  auto sum = [&](int64_t row, int thread) {
    const float *from = streams_of(row), *own_logits = logits + row * outputs;
    float* to = sums_of_threads + thread * stride;
    std::memset(to, 0, static_cast<size_t>(hidden_size) * 4);
    for (int64_t i = 0; i < n; ++i) {
      const float weight =
          outputs ? sigmoid(own_logits[i] * mix.scales[0] + mix.bias[i]) + mix.epsilon : 1.0f / static_cast<float>(n);
      level.add_scaled(to, from + i * hidden_size, weight, hidden_size);
    }
    if (!mix.is_last) keep_weights(mix, own_logits, kept + row * kept_weights(mix));
    finish(row, to);
  };
  PhaseList phases(context.pool);
  if (outputs) {
    phases.add(num_rows, normalise);
    phases.add(num_tiles(&side, 1, num_rows, kOutputTile), multiply);
  }
  phases.add(num_rows, sum);
  phases.run();
}

// Attends to the kept rows of a token and to its residual stream; `take(query, result)` takes each result. `memory` holds a row
// for each of them and one more.
template <typename Take>
void attend_to_blocks(const Level& level, const StreamMix& mix, const float* rows, int64_t size, float* memory, Take take) {
  const BlockAttention& by = *mix.blocks;
  const float* last = rows + (mix.num_streams - 1) * size;
  const int64_t count = by.num_blocks + 1;
  float* result = memory + count * size;
  for (int64_t i = 0; by.queries && i < count; ++i) {
    level.normalise(i < by.num_blocks ? rows + i * size : last, nullptr, by.norm_epsilon, size, memory + i * size);
  }
  for (int64_t query = 0; query < by.num_queries; ++query) {
    if (!by.queries) {
      take(query, last);
      continue;
    }
    float scores[kMostStreams];
    for (int64_t i = 0; i < count; ++i) {
      scores[i] = level.dot(by.queries + query * size, memory + i * size, size) * by.scaling;
    }
    level.soft_max(scores, count);
    std::memset(result, 0, static_cast<size_t>(size) * 4);
    for (int64_t i = 0; i < count; ++i) level.add_scaled(result, memory + i * size, scores[i], size);
    take(query, result);
  }
}

float* memory_of_blocks(Context& context, const StreamMix& mix, int64_t size) {
  const int64_t numbers = (mix.blocks->num_blocks + 2) * size;
  return context.mixers.of<Memory>().mixed.reserve<float>(context.pool.num_threads() * numbers * 4);
}

// As `open_streams`; rows of the second and the third query go to `context.more_rows`.
void open_blocks(Context& context, const StreamMix& mix, const Norm& norm, const StepCall& step) {
  const BlockAttention& by = *mix.blocks;
  const int64_t size = step.hidden_size;
  float* more = more_rows_of(context, step, by.num_queries);
  float* memory = memory_of_blocks(context, mix, size);
  auto open = [&](int64_t token, int thread) {
    const auto take = [&](int64_t query, const float* row) {
      float* to = query ? more + ((query - 1) * step.tokens + token) * size : step.normed + token * size;
      apply_norm(context.level, query ? by.norms[query - 1] : norm, row, size, to);
    };
    attend_to_blocks(context.level, mix, step.streams + token * mix.num_streams * size, size,
                     memory + thread * (by.num_blocks + 2) * size, take);
    std::memset(step.hidden + token * size, 0, static_cast<size_t>(size) * 4);
  };
  const Phase phase = phase_of(step.tokens, open);
  context.pool.run(&phase, 1);
}

// As `close_streams`.
void close_blocks(Context& context, const StreamMix& mix, const StepCall& step) {
  const BlockAttention& by = *mix.blocks;
  const int64_t size = step.hidden_size, n = mix.num_streams;
  const auto bytes = static_cast<size_t>(size) * 4;
  auto close = [&](int64_t token, int) {
    float *rows = step.streams + token * n * size, *last = rows + (n - 1) * size;
    const float* result = step.hidden + token * size;
    if (!by.starts_block) return context.level.add_scaled(last, result, 1.0f, size);
    std::memcpy(rows + by.num_blocks * size, last, bytes);
    std::memcpy(last, result, bytes);
  };
  const Phase phase = phase_of(step.tokens, close);
  context.pool.run(&phase, 1);
}

const char* check_block_attention(const StreamMix& mix) {
  const BlockAttention& by = *mix.blocks;
  if (mix.gates || mix.logits.outputs || mix.iterations) return "residual streams that are mixed in two ways";
  if (by.num_blocks < 0 || by.num_blocks + (by.starts_block ? 1 : 0) >= mix.num_streams) return "too few rows for its blocks of layers";
  if (by.num_queries != 1 && by.num_queries != kMostQueries) return "an impossible number of queries for earlier states";
  if (mix.is_last && (by.num_queries != 1 || by.starts_block)) return "a block of layers at its end";
  for (const Norm& norm : by.norms) {
    if (const char* reason = check_norm(norm)) return reason;
  }
  return nullptr;
}

}  // namespace

const char* check_stream_mix(const StreamMix& mix, int64_t hidden_size) {
  const int64_t n = mix.num_streams;
  if (n < 1 || n > kMostStreams) return "an impossible number of residual streams";
  if (mix.blocks) return check_block_attention(mix);
  if (mix.iterations < 0 || mix.iterations > kMostIterations) return "residual streams that are mixed impossibly often";
  if (mix.gates) {
    if (mix.iterations) return "gated residual streams that are mixed";
    if (const char* reason = check_stream_gates(*mix.gates, n * hidden_size)) return reason;
    if (!mix.norm) return "residual streams without a norm";
    if (mix.is_last) return mix.logits.outputs ? "results of residual streams at its end" : nullptr;
    return is_shaped(mix.logits, n, n * hidden_size) && mix.bias ? nullptr : "weights of residual streams that don't fit them";
  }
  if (!mix.logits.outputs) return mix.is_last ? nullptr : "residual streams that take no results";
  const int64_t outputs = mix.is_last ? n : 2 * n + (mix.iterations ? n * n : 0);
  if (!is_shaped(mix.logits, outputs, n * hidden_size)) return "weights of residual streams that don't fit them";
  return mix.bias && mix.norm ? nullptr : "residual streams without a bias or a norm";
}

void open_streams(Context& context, const StreamMix& mix, const Norm& norm, const StepCall& step, const AdaptedRows& rows,
                  LoraPlace place) {
  if (mix.blocks) return open_blocks(context, mix, norm, step);
  const int64_t size = step.hidden_size;
  const auto finish = [&](int64_t token, float* sum) {
    apply_norm(context.level, norm, sum, size, step.normed + token * size);
    std::memset(step.hidden + token * size, 0, static_cast<size_t>(size) * 4);
  };
  sum_rows(context, mix, step.streams, rows, place, size, step.is_exact, weights_of(context, mix, step), finish);
}

void close_streams(Context& context, const StreamMix& mix, const StepCall& step) {
  if (mix.blocks) return close_blocks(context, mix, step);
  const int64_t size = step.hidden_size, n = mix.num_streams;
  auto& own = context.mixers.of<Memory>();
  const float* kept = weights_of(context, mix, step);
  float* mixed = own.mixed.reserve<float>(mix.iterations ? context.pool.num_threads() * n * size * 4 : 0);
  auto add = [&](int64_t token, int thread) {
    const float *weights = kept + token * kept_weights(mix), *result = step.hidden + token * size;
    float* rows = step.streams + token * n * size;
    if (mix.iterations) {
      float* sums = mixed + thread * n * size;
      std::memset(sums, 0, static_cast<size_t>(n * size) * 4);
      for (int64_t from = 0; from < n; ++from) {
        for (int64_t to = 0; to < n; ++to) {
          context.level.add_scaled(sums + to * size, rows + from * size, weights[n + from * n + to], size);
        }
      }
      std::memcpy(rows, sums, static_cast<size_t>(n * size) * 4);
    }
    for (int64_t i = 0; i < n; ++i) context.level.add_scaled(rows + i * size, result, weights[i], size);
  };
  const Phase phase = phase_of(step.tokens, add);
  context.pool.run(&phase, 1);
}

void sum_streams(Context& context, const StreamMix& mix, const float* streams, const AdaptedRows& rows,
                 int64_t hidden_size, bool is_exact, float* to) {
  if (mix.blocks) {
    float* memory = memory_of_blocks(context, mix, hidden_size);
    auto sum = [&](int64_t row, int thread) {
      const float* from = streams + (rows.tokens ? rows.tokens[row] : row) * mix.num_streams * hidden_size;
      attend_to_blocks(context.level, mix, from, hidden_size, memory + thread * (mix.blocks->num_blocks + 2) * hidden_size,
                       [&](int64_t, const float* result) {
                         std::memcpy(to + row * hidden_size, result, static_cast<size_t>(hidden_size) * 4);
                       });
    };
    const Phase phase = phase_of(rows.count, sum);
    return context.pool.run(&phase, 1);
  }
  const auto finish = [&](int64_t row, const float* sum) {
    std::memcpy(to + row * hidden_size, sum, static_cast<size_t>(hidden_size) * 4);
  };
  sum_rows(context, mix, streams, rows, LoraPlace::kInputGate, hidden_size, is_exact, nullptr, finish);
}

}  // namespace greenroom
