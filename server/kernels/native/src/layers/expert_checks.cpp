#include "formats/checks.h"
#include "layers/experts.h"

namespace greenroom {
namespace {

bool is_bias_inside(int64_t offset, int64_t outputs, Format format, int64_t slot_bytes) {
  if (offset < 0) return offset == -1;
  if (!slot_bytes) return true;
  return is_inside(reinterpret_cast<const void*>(static_cast<intptr_t>(offset)), outputs * bytes_of(format), slot_bytes);
}

}  // namespace

const char* check_experts(const ExpertShape& shape, int64_t hidden_size, int64_t slot_bytes) {
  if (shape.num_parts < 1 || shape.num_parts > kMostParts) return "experts in too many parts";
  const Gate& gate = shape.gate;
  if (gate.activation < Activation::kSilu || gate.activation > Activation::kLimitedSilu) return "an unknown activation";
  const bool has_caps = gate.has_gate && gate.alpha > 0.0f && gate.limit > 0.0f;
  if (gate.activation == Activation::kSoftCapped && !has_caps) return "an activation without its caps";
  const bool has_limit = gate.has_gate && gate.limit > 0.0f;
  if (gate.activation == Activation::kLimitedSilu && !has_limit) return "an activation without its limit";
  const bool is_apart = shape.num_parts > 1;  // gate and up, one after the other
  if (is_apart && (!gate.has_gate || gate.is_interleaved)) return "experts in parts that are not gate and up";
  int64_t width = 0;
  for (int part = 0; part < shape.num_parts; ++part) {
    if (const char* reason = check_placed(shape.first[part], slot_bytes)) return reason;
    if (shape.first[part].inputs != hidden_size) return "experts that don't fit its hidden states";
    width += shape.first[part].outputs;
  }
  if (const char* reason = check_placed(shape.second, slot_bytes)) return reason;
  if (shape.second.outputs != hidden_size) return "experts that don't fit its hidden states";
  if (width != shape.second.inputs * (gate.has_gate ? 2 : 1)) return "experts whose matrices don't fit each other";
  if (!is_plain(shape.bias_format) || !is_bias_inside(shape.first_bias, width, shape.bias_format, slot_bytes) ||
      !is_bias_inside(shape.second_bias, hidden_size, shape.bias_format, slot_bytes)) {
    return "biases that are larger than their slot";
  }
  return nullptr;
}

}  // namespace greenroom
