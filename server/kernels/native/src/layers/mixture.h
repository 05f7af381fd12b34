// Feed-forward parts: a gated MLP, or experts that a router chooses, perhaps beside an MLP that all tokens share.
#pragma once

#include "layers/experts.h"
#include "layers/layer.h"
#include "layers/router.h"

namespace greenroom {

extern "C" {  // structures/layers.py
// An expert that every token runs through.
struct Mlp {
  ExpertShape shape;  // addresses
  Matrix weighting;   // (1, hidden); its sigmoid weights the result. No outputs: no weighting
  Norm input_norm;    // of the hidden states; none: the rows of the layer's inner norm
  Norm output_norm;
  float scale;        // factor of the result
};

struct Mixture {
  Router router;
  ExpertShape experts;  // offsets in a slot
  Mlp shared;
  Norm router_norm;   // of the hidden states for the router; none: the rows of the layer's inner norm
  Norm output_norm;   // of the experts' weighted sum
  Norm result_norm;   // of the result of each expert
  Matrix input_projection;   // (width, hidden), whose results experts take. No outputs: they take the layer's rows
  Matrix output_projection;  // (hidden, width), of the experts' weighted sum; there if the other one is
  Norm projected_norm;       // of the results of `input_projection`
  int32_t num_experts;
  int32_t has_shared;    // `shared` is there; if the router has shared rows, it is the first of as many MLPs
  float experts_scale;   // factor of the experts' weighted sum
  int32_t scales_input;  // the router's weights scale the inputs of experts instead of their results
  int32_t num_identities;  // rows of the router after the experts', whose result is the expert's input
  int32_t is_deferred;     // the experts' sum is added by a later layer (`adds_deferred`)
  int64_t shared_bytes;    // from each matrix of a shared MLP to that of the next one
};
}  // extern "C"

extern const FeedForwardOperations kMlp;
extern const FeedForwardOperations kExperts;

}  // namespace greenroom
