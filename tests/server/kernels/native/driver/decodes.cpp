// Steps that run one after another, against the same steps in calls of their own. They have no layers, so that a new token
// depends on the embedding of the last one alone.

#include "layers/decode_run.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "common.h"

extern "C" {
int greenroom_sample(Handle* handle, const greenroom::SamplingCall* call);
void greenroom_start_decodes(Handle* handle, const greenroom::DecodeRun* run, int64_t num_allowed);
int greenroom_allow_decodes(Handle* handle, int64_t num_steps);
int greenroom_await_decodes(Handle* handle, int64_t num_steps);
int greenroom_end_decodes(Handle* handle);
}

namespace driver {
namespace {

// The arrays of a step.
struct Rows {
  Rows(int64_t tokens, int64_t size, int64_t vocabulary)
      : hidden(static_cast<size_t>(tokens * size)),
        normed(static_cast<size_t>(tokens * size)),
        logits(static_cast<size_t>(tokens * vocabulary)),
        numbers(static_cast<size_t>(tokens)),
        sequences(static_cast<size_t>(tokens)),
        token_ids(static_cast<size_t>(tokens)) {
    std::iota(numbers.begin(), numbers.end(), 0);
  }

  std::vector<float> hidden, normed, logits;
  std::vector<int32_t> numbers;
  std::vector<StepSequence> sequences;
  std::vector<int32_t> token_ids;
};

}  // namespace

void run_decodes(Handle* handle, const char* level) {
  const int64_t hidden = between(1, 40), tokens = between(1, 5), most = between(1, 9);
  const int64_t vocabulary = between(2, 60);
  const std::vector<float> table = normals(vocabulary * hidden), head = normals(vocabulary * hidden);
  Matrix matrix{}, embedding{};
  for (Matrix* each : {&matrix, &embedding}) {
    each->format = Format::kFloat32;
    each->outputs = vocabulary;
    each->inputs = hidden;
  }
  embedding.data = table.data();
  matrix.data = head.data();
  Rows rows(tokens, hidden, vocabulary);
  HeadCall call{};
  call.matrix = matrix;
  call.hidden = rows.hidden.data();
  call.rows = rows.numbers.data();
  call.normed = rows.normed.data();
  call.logits = rows.logits.data();
  call.num_rows = call.num_logits = tokens;
  call.hidden_size = hidden;
  call.vocabulary = vocabulary;
  call.scale = 1.0f;
  call.is_exact = 1;
  const std::vector<float> first = normals(tokens * hidden);
  const float scale = one_in(2) ? 1.0f : 0.5f;
  std::vector<RowSampling> choices[2];
  std::vector<int32_t> chosen[2];
  for (int parity = 0; parity < 2; ++parity) {
    chosen[parity].resize(static_cast<size_t>(tokens));
    for (int64_t i = 0; i < tokens; ++i) choices[parity].push_back({0.3 + 0.1 * parity, 1.0, 1.0f, -1e30f, 0, 0});
  }
  const auto sampling = [&](int parity) {
    return SamplingCall{rows.logits.data(), choices[parity].data(), chosen[parity].data(), tokens, vocabulary, vocabulary};
  };

  std::vector<std::vector<int32_t>> wanted;  // tokens of each step
  std::copy(first.begin(), first.end(), rows.hidden.begin());
  for (int64_t step = 0; step < most; ++step) {
    if (greenroom_head(handle, &call)) std::abort();
    const SamplingCall choose = sampling(step % 2);
    if (greenroom_sample(handle, &choose)) std::abort();
    wanted.push_back(chosen[step % 2]);
    for (int64_t i = 0; i < tokens * hidden; ++i) {
      rows.hidden[static_cast<size_t>(i)] = scale * table[static_cast<size_t>(wanted.back()[i / hidden] * hidden + i % hidden)];
    }
  }

  StepCall step{};
  step.tokens = step.num_sequences = tokens;
  step.hidden_size = hidden;
  step.hidden = rows.hidden.data();
  step.sequences = rows.sequences.data();
  step.token_ids = rows.token_ids.data();
  DecodeRun run{};
  run.step = &step;
  run.sequences = rows.sequences.data();
  run.token_ids = rows.token_ids.data();
  run.head = &call;
  run.embedding = &embedding;
  run.even.sampling = sampling(0);
  run.odd.sampling = sampling(1);
  run.embedding_scale = scale;
  for (int64_t begun = 0; begun < 2; ++begun) {
    std::copy(first.begin(), first.end(), rows.hidden.begin());
    std::fill(rows.sequences.begin(), rows.sequences.end(), StepSequence{0, 1, 3, 0, one_in(2) ? 1 : -1, 2});
    const StepSequence before = rows.sequences[0];
    const int64_t last = between(1, most);  // the step after it may have begun when the run ends
    greenroom_start_decodes(handle, &run, 1);
    int64_t num_run = 0;
    for (bool goes_on = true; goes_on && num_run < last; ++num_run) {
      goes_on = num_run + 1 < most && !greenroom_allow_decodes(handle, num_run + 2);
      if (greenroom_await_decodes(handle, num_run + 1)) std::abort();
      const std::vector<int32_t>& found = chosen[num_run % 2];
      check_same("tokens of a run", level, found.data(), wanted[num_run].data(), tokens * 4);
    }
    if (greenroom_end_decodes(handle)) std::abort();
    const StepSequence& after = rows.sequences[0];
    const int64_t moved = after.first_position - before.first_position;
    check("a position", level, Format::kFloat32, static_cast<double>(moved), static_cast<double>(num_run - 1), 1);
    const bool is_swapped = before.state_from >= 0 && moved % 2;
    check("a state", level, Format::kFloat32, after.state_to, is_swapped ? before.state_from : before.state_to, 0);
  }
}

}  // namespace driver
