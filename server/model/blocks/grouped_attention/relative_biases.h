// Biases of the scores of attention by the distance from a token back to a key.
#pragma once

#include "formats/checks.h"
#include "model/blocks/grouped_attention/attention.h"

namespace greenroom {

extern "C" {  // structures/mixers.py
// A bias is a sum of profiles, numbers by distance, with weights that each token has for each head.
struct RelativeBiases {
  Matrix weights;          // (heads * num_profiles, hidden)
  const float* profiles;   // (num_profiles, extent + 2 * kCacheBlock): the furthest distance first, zeros around
  int64_t num_profiles;
  int64_t extent;          // distances that have a bias, from that of a token to itself on
  const float* scales;     // (heads * num_profiles), factors of the weights; or null
  float limit;             // largest norm of the weights of a head after that; 0: any
};
}  // extern "C"

inline const char* check_relative_biases(const RelativeBiases& spec, int64_t heads, int64_t hidden_size) {
  if (!is_count(spec.num_profiles) || !is_count(spec.extent) || !spec.profiles) return "relative biases without profiles";
  if (!(spec.limit >= 0.0f)) return "a negative limit of relative biases";
  return is_shaped(spec.weights, heads * spec.num_profiles, hidden_size) ? nullptr : "relative biases of other heads";
}

}  // namespace greenroom
