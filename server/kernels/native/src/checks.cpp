#include "checks.h"

#include <algorithm>

namespace greenroom {
namespace {

constexpr int64_t kMost = int64_t{1} << 30;  // of any count, so that a product of two and a size does not overflow
constexpr int64_t kDecoded = 16;             // codes that are decoded at a time, and share a scale
constexpr int64_t kAlignment = 4;            // of offsets in a slot

bool is_count(int64_t number) { return number > 0 && number <= kMost; }
bool is_plain(Format format) { return format >= Format::kFloat32 && format <= Format::kFloat16; }
bool is_scale(Format format) { return is_plain(format) || format == Format::kE8M0 || format == Format::kFp8; }
int64_t bytes_of_scale(Format format) { return is_plain(format) ? bytes_of(format) : 1; }

// True if groups of inputs consist of complete steps, or one group covers all inputs.
bool has_steps(const Matrix& matrix, int64_t step) {
  return is_count(matrix.column_block) && (matrix.column_block % step == 0 || matrix.column_block >= matrix.inputs);
}

const char* check_blocks(const Matrix& matrix) {
  if (!is_count(matrix.row_block)) return "a matrix without a block of outputs that share a scale";
  if (!has_steps(matrix, kDecoded)) return "a matrix whose groups of inputs are not multiples of 16";
  if (!is_scale(matrix.scale_format)) return "a matrix whose scales have no known format";
  if (matrix.zeros && matrix.format != Format::kInt8) return "a matrix with zeros of no known format";
  if (matrix.format != Format::kFp4) return nullptr;
  return matrix.inputs % 2 || matrix.inputs % matrix.column_block ? "a 4-bit matrix with an incomplete group" : nullptr;
}

const char* check_int4(const Matrix& matrix) {
  if (matrix.block <= 0 || matrix.block % (2 * kDecoded)) return "a 4-bit matrix whose blocks are not multiples of 32";
  if (!has_steps(matrix, 2)) return "a 4-bit matrix whose groups of inputs are odd";
  const bool is_known = matrix.scale_format == Format::kFloat32 || matrix.scale_format == Format::kBFloat16;
  return is_known ? nullptr : "a 4-bit matrix whose scales have no known format";
}

// Checks that a part lies in a slot.
bool is_inside(const void* offset, int64_t bytes, int64_t slot_bytes) {
  const auto begin = static_cast<int64_t>(reinterpret_cast<intptr_t>(offset));
  return begin >= 0 && begin <= slot_bytes && bytes <= slot_bytes - begin && begin % kAlignment == 0;
}

// Checks a matrix and the place of its parts. Null in a slot is an offset for codes and scales only.
const char* check_placed(const Matrix& matrix, int64_t slot_bytes) {
  if (const char* reason = check_matrix(matrix)) return reason;
  const Extents extents = extents_of(matrix);
  if (!slot_bytes) return matrix.data && (matrix.scales || !extents.scales) ? nullptr : "a matrix without memory";
  const bool are_inside = is_inside(matrix.data, extents.data, slot_bytes) &&
                          is_inside(matrix.scales, extents.scales, slot_bytes) &&
                          (!matrix.zeros || is_inside(matrix.zeros, extents.zeros, slot_bytes)) &&
                          (!matrix.rest || is_inside(matrix.rest, extents.rest, slot_bytes)) &&
                          (!matrix.divisor || is_inside(matrix.divisor, extents.divisor, slot_bytes)) &&
                          (!matrix.order || is_inside(matrix.order, extents.order, slot_bytes));
  return are_inside ? nullptr : "a matrix that is larger than its slot";
}

// Checks a matrix of a layer, whose memory has an address.
bool is_shaped(const Matrix& matrix, int64_t outputs, int64_t inputs) {
  return !check_placed(matrix, 0) && matrix.outputs == outputs && matrix.inputs == inputs;
}

bool is_bias_inside(int64_t offset, int64_t outputs, Format format, int64_t slot_bytes) {
  if (offset < 0) return offset == -1;
  if (!slot_bytes) return true;
  return is_inside(reinterpret_cast<const void*>(static_cast<intptr_t>(offset)), outputs * bytes_of(format), slot_bytes);
}

const char* check_attention(const LayerSpec& layer, int64_t hidden_size) {
  if (!is_count(layer.heads) || !is_count(layer.kv_heads) || layer.heads % layer.kv_heads) {
    return "a number of heads that its keys and values can't be shared by";
  }
  if (!is_count(layer.key_dim) || !is_count(layer.value_dim)) return "heads without a size";
  if (!is_shaped(layer.query, layer.heads * layer.key_dim, hidden_size) ||
      !is_shaped(layer.key, layer.kv_heads * layer.key_dim, hidden_size) ||
      !is_shaped(layer.value, layer.kv_heads * layer.value_dim, hidden_size) ||
      !is_shaped(layer.output, hidden_size, layer.heads * layer.value_dim)) {
    return "projections that don't fit its heads";
  }
  if (layer.rope_kind < RopeKind::kNone || layer.rope_kind > RopeKind::kInterleaved) return "an unknown kind of positions";
  if (layer.rope_kind != RopeKind::kNone && (layer.rotary_dim < 0 || layer.rotary_dim > layer.key_dim)) {
    return "rotary positions that are larger than a head";
  }
  if (layer.window < 0) return "a negative window";
  if (!is_plain(layer.cache_format)) return "a cache of no known format";
  if (!layer.key_cache) return nullptr;
  const bool has_room = layer.cache_dim >= layer.key_dim && layer.cache_dim >= layer.value_dim && layer.cache_slots >= 0;
  return has_room && layer.value_cache ? nullptr : "a cache that its heads don't fit";
}

}  // namespace

Extents extents_of(const Matrix& matrix) {
  const int64_t outputs = matrix.outputs, inputs = matrix.inputs;
  Extents extents{outputs * inputs, 0, 0, 0, matrix.divisor ? int64_t{4} : 0, matrix.order ? inputs * 4 : 0};
  const int64_t block_groups = divide_up(outputs, kBlock) * divide_up(inputs, kGroup);
  switch (matrix.format) {
    case Format::kFloat32:
    case Format::kBFloat16:
    case Format::kFloat16:
      extents.data *= bytes_of(matrix.format);
      break;
    case Format::kQ8:
    case Format::kQ4:
      extents.data = block_groups * kBlock * kGroup / (matrix.format == Format::kQ8 ? 1 : 2);
      extents.scales = block_groups * kBlock * 2;
      break;
    case Format::kMxfp4:
      extents.data /= 2;
      extents.scales = outputs * (inputs / kGroup);
      break;
    case Format::kInt4: {
      const int64_t pairs = divide_up(inputs, matrix.column_block) * outputs * 2;
      extents.data = divide_up(outputs, matrix.block) * inputs * (matrix.block / 2);
      extents.scales = pairs * bytes_of(matrix.scale_format);
      extents.rest = matrix.rest ? pairs * 2 : 0;
      break;
    }
    default: {
      const int64_t scales = divide_up(outputs, matrix.row_block) * divide_up(inputs, matrix.column_block);
      extents.data /= matrix.format == Format::kFp4 ? 2 : 1;
      extents.scales = scales * bytes_of_scale(matrix.scale_format);
      extents.zeros = matrix.zeros ? scales * 2 : 0;
    }
  }
  return extents;
}

const char* check_matrix(const Matrix& matrix) {
  if (!is_count(matrix.outputs) || !is_count(matrix.inputs)) return "a matrix without outputs or inputs";
  if (matrix.is_transposed && !is_plain(matrix.format)) return "a transposed matrix of codes";
  switch (matrix.format) {
    case Format::kFloat32:
    case Format::kBFloat16:
    case Format::kFloat16:
    case Format::kQ8:
    case Format::kQ4:
      return nullptr;
    case Format::kMxfp4:
      return matrix.inputs % kGroup ? "an MXFP4 matrix with an incomplete group" : nullptr;
    case Format::kFp8:
    case Format::kInt8:
    case Format::kFp4:
      return check_blocks(matrix);
    case Format::kInt4:
      return check_int4(matrix);
    default:
      return "a matrix of no known format";
  }
}

const char* check_router(const Router& router, int64_t hidden_size) {
  const Matrix& matrix = router.matrix;
  if (!is_shaped(matrix, matrix.outputs, hidden_size)) return "a router that doesn't fit its hidden states";
  if (router.kind < RouterKind::kSoftMaxFirst || router.kind > RouterKind::kSigmoid) return "an unknown kind of router";
  if (router.top_k < 1 || router.top_k > matrix.outputs) return "a router that chooses more experts than there are";
  if (router.num_groups == 1) return nullptr;
  // A group is chosen by its two best experts.
  if (router.num_groups < 1 || matrix.outputs % router.num_groups || matrix.outputs / router.num_groups < 2) {
    return "groups that its experts can't be divided into";
  }
  const int64_t size = matrix.outputs / router.num_groups;
  const bool is_possible = router.top_groups >= 1 && router.top_groups <= router.num_groups;
  return is_possible && router.top_k <= router.top_groups * size ? nullptr : "groups with too few experts to choose";
}

const char* check_experts(const ExpertShape& shape, int64_t hidden_size, int64_t slot_bytes) {
  if (shape.num_parts < 1 || shape.num_parts > kMostParts) return "experts in too many parts";
  const Gate& gate = shape.gate;
  if (gate.activation < Activation::kSilu || gate.activation > Activation::kQuickGelu) return "an unknown activation";
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

const char* check_layer(const LayerSpec& layer, int64_t hidden_size, int64_t slot_bytes) {
  if (!is_count(hidden_size)) return "hidden states without a size";
  if (const char* reason = check_attention(layer, hidden_size)) return reason;
  if (layer.has_router) {
    if (const char* reason = check_router(layer.router, hidden_size)) return reason;
    if (layer.router.matrix.outputs != layer.num_experts) return "a router of other experts";
    if (!slot_bytes) return "experts without a slot";
    if (const char* reason = check_experts(layer.experts, hidden_size, slot_bytes)) return reason;
  }
  if (!layer.has_dense) return nullptr;
  if (const char* reason = check_experts(layer.dense, hidden_size, 0)) return reason;
  const bool has_gate = layer.dense_gate.outputs;
  return has_gate && !is_shaped(layer.dense_gate, 1, hidden_size) ? "a shared expert that is weighted otherwise" : nullptr;
}

}  // namespace greenroom
