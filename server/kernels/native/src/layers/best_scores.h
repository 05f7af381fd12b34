// The choice of the highest scores.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace greenroom {

struct Scored {
  float score;
  int32_t position;
};

// Brings the `top_k` best of more to the front, in no order. Which of equal scores are chosen follows from the algorithm:
// it is the one of torch.topk on as many scores.
inline void choose_best(Scored* scored, int64_t count, int64_t top_k) {
  constexpr int64_t kSmallShare = 64;  // of which a heap finds the best
  const auto is_better = [](const Scored& one, const Scored& other) {
    return (std::isnan(one.score) && !std::isnan(other.score)) || one.score > other.score;
  };
  if (top_k * kSmallShare <= count) {
    std::partial_sort(scored, scored + top_k, scored + count, is_better);
  } else {
    std::nth_element(scored, scored + top_k - 1, scored + count, is_better);
  }
}

}  // namespace greenroom
