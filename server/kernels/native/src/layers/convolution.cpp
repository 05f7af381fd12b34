#include "layers/convolution.h"

#include <cstring>

#include "formats/checks.h"

namespace greenroom {

const float* ConvolutionStep::input(const StepSequence& sequence, int64_t place) const {
  if (place >= 0) return x_ + (sequence.first_row + place) * x_stride_;
  if (sequence.state_from < 0) return nullptr;
  const int64_t kept = kept_inputs(spec_);
  return spec_.states + (sequence.state_from * kept + kept + place) * spec_.channels;
}

const float* ConvolutionStep::weights_of(int64_t token, int thread) const {
  if (!taps_.taps) return spec_.weight;
  const int64_t width = spec_.width, channels = spec_.channels, of_head = channels / taps_.heads;
  float* weights = taps_.weights + thread * taps_.numbers;
  const float* own = taps_.taps + token * taps_.stride;
  for (int64_t tap = 0; tap < width; ++tap) {
    for (int64_t i = 0; i < channels; ++i) {
      weights[tap * channels + i] = spec_.weight[tap * channels + i] + taps_.scale * own[i / of_head * width + width - 1 - tap];
    }
  }
  return weights;
}

void ConvolutionStep::operator()(int64_t tile, int thread) const {
  const int64_t kept = kept_inputs(spec_);
  if (tile < step_.tokens) {
    const StepSequence& sequence = sequence_of(step_, tile);
    const float* rows[kMostTaps];
    const int64_t oldest = tile - sequence.first_row - kept;
    for (int64_t tap = 0; tap < spec_.width; ++tap) rows[tap] = input(sequence, oldest + tap * spec_.dilation);
    level_.convolve(rows, weights_of(tile, thread), spec_.bias, spec_.width, spec_.channels, spec_.has_silu, y_ + tile * y_stride_);
    return;
  }
  const StepSequence& sequence = step_.sequences[tile - step_.tokens];
  float* to = spec_.states + sequence.state_to * kept * spec_.channels;
  const size_t bytes = static_cast<size_t>(spec_.channels) * sizeof(float);
  for (int64_t i = 0; i < kept; ++i, to += spec_.channels) {
    const float* from = input(sequence, sequence.num_tokens - kept + i);
    if (from) {
      std::memcpy(to, from, bytes);
    } else {
      std::memset(to, 0, bytes);
    }
  }
}

const char* check_convolution(const Convolution& spec) {
  if (!is_count(spec.channels) || spec.width < 1 || spec.width > kMostTaps) return "a convolution of impossible size";
  if (spec.dilation < 1 || spec.dilation > kMostDilation) return "a convolution whose taps are impossibly far apart";
  return spec.weight ? nullptr : "a convolution without weights";
}

}  // namespace greenroom
