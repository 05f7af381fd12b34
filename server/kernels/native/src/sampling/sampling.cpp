#include "sampling/sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace greenroom {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int32_t kEveryToken = std::numeric_limits<int32_t>::max();
constexpr float kDepth = 8.0f;       // scores below the largest where top-p is searched first
constexpr float kMostDepth = 128.0f;  // all that have a weight are above
constexpr int64_t kFew = 16;

// A token with the quotient of its logit and the temperature.
struct Candidate {
  float score;
  int32_t token;
};

bool is_before(const Candidate& one, const Candidate& other) {
  return one.score > other.score || (one.score == other.score && one.token < other.token);
}

// Kept are the tokens before `last`, and itself.
struct Edge {
  Candidate last{-kInfinity, kEveryToken};

  bool keeps(float score, int64_t token) const {
    return score > last.score || (score == last.score && token <= last.token);
  }
};

struct Memory {
  Buffer numbers;
};

// Chooses the tokens of one thread's rows.
class Sampler {
 public:
  static int64_t bytes(int64_t size) {
    const int64_t blocks = divide_up(size, kLogitBlock);
    return round_up(size * int64_t{sizeof(Candidate)}, 64) + round_up(size * 4, 64) + round_up(blocks * 8, 64) +
           2 * round_up(blocks * 4, 64);
  }

  Sampler(const Level& level, int64_t size, char* memory)
      : level_(level), size_(size), blocks_(divide_up(size, kLogitBlock)) {
    const auto take = [&](int64_t count) {
      char* start = memory;
      memory += round_up(count, 64);
      return start;
    };
    candidates_ = reinterpret_cast<Candidate*>(take(size * int64_t{sizeof(Candidate)}));
    weights_ = reinterpret_cast<float*>(take(size * 4));
    masses_ = reinterpret_cast<double*>(take(blocks_ * 8));
    maxima_ = reinterpret_cast<float*>(take(blocks_ * 4));
    sums_ = reinterpret_cast<float*>(take(blocks_ * 4));
  }

  int32_t choose(const float* logits, const RowSampling& row) {
    logits_ = logits;
    const bool is_finite = level_.find_maxima(logits, size_, maxima_);
    const float most = *std::max_element(maxima_, maxima_ + blocks_);
    if (!(is_finite || row.has_masks) || !std::isfinite(most)) return -1;
    if (row.temperature == 0.0f) return first_of(most);
    temperature_ = row.temperature;
    highest_ = most / temperature_;
    level_.weigh(logits, size_, temperature_, highest_, weights_, sums_);
    Edge edge;
    if (row.top_k > 0 || row.top_p < 1.0) edge = open_edge(row);
    const float least = highest_ + row.log_min_p;
    if (least > edge.last.score) edge.last = {least, kEveryToken};
    return draw(row.draw, edge);
  }

 private:
  float score(int64_t token) const { return logits_[token] / temperature_; }
  int64_t end_of(int64_t block) const { return std::min((block + 1) * kLogitBlock, size_); }

  int32_t first_of(float most) const {
    const int64_t block = std::find(maxima_, maxima_ + blocks_, most) - maxima_;
    return static_cast<int32_t>(std::find(logits_ + block * kLogitBlock, logits_ + end_of(block), most) - logits_);
  }

  // Returns the last token that top-k and top-p keep.
  Edge open_edge(const RowSampling& row) {
    int64_t count;
    double total = 0.0;
    const bool has_top_k = row.top_k > 0 && row.top_k < size_;
    if (has_top_k) {
      count = keep_most(row.top_k);
      if (row.top_p < 1.0) total = mass(0, count);
    } else {
      if (row.top_p >= 1.0) return {};
      for (int64_t block = 0; block < blocks_; ++block) total += static_cast<double>(sums_[block]);
      float depth = kDepth;
      do {
        count = gather(depth < kMostDepth ? highest_ - depth : -kInfinity);
        depth *= 2.0f;
      } while (count < size_ && depth <= 2.0f * kMostDepth && mass(0, count) < row.top_p * total);
    }
    if (row.top_p >= 1.0) return {*std::max_element(candidates_, candidates_ + count, is_before)};
    return {last_of_mass(count, row.top_p * total)};
  }

  // Collects the tokens whose score is at least `least`; returns their number.
  int64_t gather(float least) {
    int64_t count = 0;
    for (int64_t block = 0; block < blocks_; ++block) {
      if (maxima_[block] / temperature_ < least) continue;
      for (int64_t token = block * kLogitBlock; token < end_of(block); ++token) {
        candidates_[count] = {score(token), static_cast<int32_t>(token)};
        count += candidates_[count].score >= least;
      }
    }
    return count;
  }

  // Collects the `top_k` first tokens and those that equal the last of them; returns their number.
  int64_t keep_most(int64_t top_k) {
    float least = -kInfinity;
    if (top_k < blocks_) {  // so many blocks have a token above the smallest of their maxima
      float* order = reinterpret_cast<float*>(masses_);  // which are not needed yet
      std::copy(maxima_, maxima_ + blocks_, order);
      std::nth_element(order, order + top_k - 1, order + blocks_, std::greater<float>());
      least = order[top_k - 1] / temperature_;
    }
    const int64_t count = gather(least);
    Candidate *last = candidates_ + top_k - 1, *end = candidates_ + count;
    std::nth_element(candidates_, last, end, is_before);
    const float edge = last->score;
    return std::partition(last + 1, end, [&](const Candidate& each) { return each.score == edge; }) - candidates_;
  }

  double mass(int64_t first, int64_t last) const {
    double total = 0.0;
    for (int64_t i = first; i < last; ++i) total += static_cast<double>(weights_[candidates_[i].token]);
    return total;
  }

  // Returns the first token, in order, with which the weight of all before it reaches `wanted`.
  Candidate last_of_mass(int64_t count, double wanted) {
    int64_t first = 0, last = count;
    while (last - first > kFew) {
      const int64_t middle = first + (last - first) / 2;
      std::nth_element(candidates_ + first, candidates_ + middle, candidates_ + last, is_before);
      const double upper = mass(first, middle);
      if (upper >= wanted) {
        last = middle;
      } else {
        wanted -= upper;
        first = middle;
      }
    }
    std::sort(candidates_ + first, candidates_ + last, is_before);
    for (; first < last - 1; ++first) {
      wanted -= static_cast<double>(weights_[candidates_[first].token]);
      if (wanted <= 0.0) break;
    }
    return candidates_[first];
  }

  // Looks a number up in the cumulative distribution of the tokens that are kept, by ascending id: first its block.
  int32_t draw(double number, const Edge& edge) {
    const bool is_open = edge.last.score > -kInfinity;
    double total = 0.0;
    for (int64_t block = 0; block < blocks_; ++block) {
      masses_[block] = is_open ? kept_mass(block, edge) : static_cast<double>(sums_[block]);
      total += masses_[block];
    }
    double left = number * total;
    int64_t chosen = -1;
    for (int64_t block = 0; block < blocks_; ++block) {
      if (masses_[block] <= 0.0) continue;
      chosen = block;
      if (left < masses_[block]) break;
      left -= masses_[block];
    }
    if (chosen < 0) return -1;
    int64_t result = -1;  // the last possible token if rounding leaves a rest
    for (int64_t token = chosen * kLogitBlock; token < end_of(chosen); ++token) {
      const double weight = static_cast<double>(weights_[token]);
      if (weight <= 0.0 || (is_open && !edge.keeps(score(token), token))) continue;
      result = token;
      if (left < weight) break;
      left -= weight;
    }
    return static_cast<int32_t>(result);
  }

  double kept_mass(int64_t block, const Edge& edge) const {
    double total = 0.0;
    if (maxima_[block] / temperature_ < edge.last.score) return total;
    for (int64_t token = block * kLogitBlock; token < end_of(block); ++token) {
      if (edge.keeps(score(token), token)) total += static_cast<double>(weights_[token]);
    }
    return total;
  }

  const Level& level_;
  const int64_t size_, blocks_;
  const float* logits_ = nullptr;
  float temperature_ = 1.0f;
  float highest_ = 0.0f;   // score
  Candidate* candidates_;  // (size)
  float* weights_;         // (size): e to the power of a score less the highest
  double* masses_;         // (blocks): weight of the tokens that are kept
  float* maxima_;          // (blocks): logits
  float* sums_;            // (blocks): weights
};

}  // namespace

void run_sampling(Context& context, const SamplingCall& call) {
  const int64_t bytes = Sampler::bytes(call.size);
  char* memory = context.mixers.of<Memory>().numbers.reserve(bytes * context.pool.num_threads());
  auto choose = [&](int64_t row, int thread) {
    Sampler sampler(context.level, call.size, memory + thread * bytes);
    call.tokens[row] = sampler.choose(call.logits + row * call.stride, call.rows[row]);
  };
  const Phase phases[] = {phase_of(call.num_rows, choose)};
  context.pool.run(phases, 1);
}

}  // namespace greenroom
