// Choices of tokens against plain loops.

#include "sampling/sampling.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>

#include "common.h"

extern "C" int greenroom_sample(Handle* handle, const greenroom::SamplingCall* call);

namespace driver {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kNear = 1e-5;  // parts of a distribution that rounding may move

// Returns how far a random number is outside of a token's part of the distribution; 1 if the token is filtered out.
double distance(const float* logits, int64_t size, const RowSampling& row, int64_t chosen) {
  std::vector<float> scores(logits, logits + size);
  for (float& score : scores) score /= row.temperature;
  std::vector<int64_t> order(static_cast<size_t>(size));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t one, int64_t other) { return scores[one] > scores[other]; });
  const float highest = scores[order[0]];
  const auto weight = [&](int64_t token) { return std::exp(static_cast<double>(scores[token]) - highest); };
  int64_t count = size;
  if (row.top_k > 0 && row.top_k < size) {
    for (count = row.top_k; count < size && scores[order[count]] == scores[order[row.top_k - 1]];) ++count;
  }
  double total = 0, sum = 0;
  for (int64_t i = 0; i < count; ++i) total += weight(order[i]);
  int64_t kept = 0;
  while (kept < count && (row.top_p >= 1 || sum < row.top_p * total)) sum += weight(order[kept++]);
  while (kept > 1 && scores[order[kept - 1]] < highest + row.log_min_p) --kept;
  order.resize(static_cast<size_t>(kept));
  std::sort(order.begin(), order.end());
  total = 0;
  for (const int64_t token : order) total += weight(token);
  double before = 0;
  for (const int64_t token : order) {
    const double after = before + weight(token) / total;
    if (token == chosen) return std::fmax(0.0, std::fmax(before - row.draw, row.draw - after));
    before = after;
  }
  return 1;
}

RowSampling any_row(int64_t size) {
  RowSampling row{};
  row.draw = std::generate_canonical<double, 53>(random_bits);
  row.top_p = one_in(2) ? 1.0 : 0.05 + 0.9 * std::generate_canonical<double, 53>(random_bits);
  row.temperature = one_in(5) ? 0.0f : 0.2f + std::fabs(normal());
  row.log_min_p = one_in(2) ? -kInfinity : -3.0f * std::fabs(normal());
  row.top_k = one_in(2) ? 0 : static_cast<int32_t>(between(1, size + 3));
  row.has_masks = one_in(2);
  return row;
}

}  // namespace

void run_sampling(Handle* handle, const char* level) {
  const int64_t rows = between(1, 9), size = one_in(3) ? between(1, 30) : between(1, 3000), stride = size + between(0, 3);
  std::vector<float> logits = normals(rows * stride, 0.1f + 3.0f * std::fabs(normal()));
  logits.resize(static_cast<size_t>((rows - 1) * stride + size));
  if (one_in(2)) {
    for (float& logit : logits) logit = std::round(2 * logit) / 2;
  }
  std::vector<RowSampling> samplings;
  for (int64_t row = 0; row < rows; ++row) {
    samplings.push_back(any_row(size));
    const bool is_masked = samplings.back().has_masks && one_in(2);
    for (int64_t token = 1; is_masked && token < size; ++token) {
      if (one_in(2)) logits[row * stride + token] = -kInfinity;
    }
  }
  const int64_t broken = one_in(4) ? between(0, rows - 1) : -1;
  if (broken >= 0) logits[broken * stride + between(0, size - 1)] = one_in(2) ? kInfinity : std::nanf("");
  std::vector<int32_t> tokens(static_cast<size_t>(rows), -2);
  const SamplingCall call{logits.data(), samplings.data(), tokens.data(), rows, size, stride};
  if (greenroom_sample(handle, &call)) std::abort();
  for (int64_t row = 0; row < rows; ++row) {
    const float* own = logits.data() + row * stride;
    RowSampling sampling = samplings[row];
    if (row == broken && (!sampling.has_masks || std::isinf(*std::max_element(own, own + size)))) {
      check("a token of no row", level, Format::kFloat32, tokens[row], -1, 0);
    } else if (row != broken && sampling.temperature == 0.0f) {
      check("a most likely token", level, Format::kFloat32, tokens[row], std::max_element(own, own + size) - own, 0);
    } else if (row != broken) {
      double least = 1;
      for (const double shift : {0.0, kNear, -kNear}) {
        sampling.top_p = samplings[row].top_p * (1 + (samplings[row].top_p < 1 ? shift : 0));
        sampling.log_min_p = samplings[row].log_min_p + static_cast<float>(shift);
        least = std::fmin(least, distance(own, size, sampling, tokens[row]));
      }
      check("a choice", level, Format::kFloat32, least, 0, kNear);
    }
  }
}

}  // namespace driver
