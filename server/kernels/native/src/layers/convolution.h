// Causal convolutions of each channel, with the last inputs as the state of a sequence.
#pragma once

#include "layers/step.h"

namespace greenroom {

inline constexpr int64_t kMostTaps = 16;
inline constexpr int32_t kMostDilation = 64;

extern "C" {  // structures/mixers.py
struct Convolution {
  const float* weight;  // (width, channels): a tap's weights, the oldest first
  const float* bias;    // (channels) or null
  float* states;        // (rows, kept, channels): the last inputs, the oldest first; see `kept_inputs`
  int64_t width;
  int64_t channels;
  int32_t has_silu;
  int32_t dilation;     // tokens between two taps
};
}  // extern "C"

// What each token adds to the weights of its taps.
struct TokenTaps {
  const float* taps;  // (heads, width) of a token, the newest tap first; null if weights are the same for all tokens
  int64_t stride;     // from token to token
  int64_t heads;      // of equally many channels
  float scale;
  float* weights;     // (threads, numbers), memory for the weights of a token, (width, channels)
  int64_t numbers;    // of a thread, the same for all convolutions that share the memory
};

// Inputs of a sequence that its next tokens read.
inline int64_t kept_inputs(const Convolution& spec) { return (spec.width - 1) * spec.dilation; }

const char* check_convolution(const Convolution& spec);

// The tiles of a convolution in a step: one a token, and then one a sequence, for its new state.
class ConvolutionStep {
 public:
  // Rows of `x` and `y` are `stride` apart; they are not the same memory.
  ConvolutionStep(const Level& level, const Convolution& spec, const StepCall& step, const float* x, int64_t x_stride,
                  float* y, int64_t y_stride, const TokenTaps& taps = {})
      : level_(level), spec_(spec), step_(step), x_(x), y_(y), x_stride_(x_stride), y_stride_(y_stride), taps_(taps) {}

  int64_t num_tiles() const { return step_.tokens + step_.num_sequences; }
  void operator()(int64_t tile, int thread) const;

 private:
  // Returns an input of a sequence by its place among this step's, negative before; null for zeros.
  const float* input(const StepSequence& sequence, int64_t place) const;

  // Returns the weights of a token.
  const float* weights_of(int64_t token, int thread) const;

  const Level& level_;
  const Convolution& spec_;
  const StepCall& step_;
  const float* x_;
  float* y_;
  int64_t x_stride_, y_stride_;
  TokenTaps taps_;
};

}  // namespace greenroom
