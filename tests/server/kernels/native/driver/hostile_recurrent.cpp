// Recurrent mixers of one sequence, all of whose numbers may be hostile.

#include <cstdlib>
#include <type_traits>

#include "hostile.h"
#include "layers/mixture.h"
#include "model/blocks/gated_delta_net/gated_delta_net.h"
#include "model/blocks/kimi_delta_attention/kimi_delta_attention.h"
#include "model/blocks/lightning_attention/lightning_attention.h"
#include "model/blocks/mamba1/mamba1.h"
#include "model/blocks/mamba2/mamba2.h"
#include "model/blocks/short_convolution/short_convolution.h"

namespace driver {
namespace {

// Numbers that a spec refers to.
struct Floats {
  const float** place;
  int64_t count;
};

// A count, or one that no accepted spec has, so that products of three do not overflow.
int64_t small(int64_t count) { return std::clamp<int64_t>(count, 0, 1 << 19); }

int64_t padded(int64_t count) { return round_up(small(count), kStateLanes); }

class AnyRecurrent {
 public:
  void run(Handle* handle) {
    const MixerKind kinds[] = {MixerKind::kGatedDeltaNet,      MixerKind::kShortConvolution, MixerKind::kMamba2,
                               MixerKind::kKimiDeltaAttention, MixerKind::kLightningAttention, MixerKind::kMamba1};
    layer_.mixer_kind = kinds[between(0, 5)];
    layer_.feed_forward_kind = FeedForwardKind::kNone;
    layer_.residual_scale = layer_.output_scale = 1.0f;
    layer_.mixer_residual = one_in(3) ? 2.0f : 0.0f;
    switch (layer_.mixer_kind) {
      case MixerKind::kGatedDeltaNet: return run_kind(handle, delta_net());
      case MixerKind::kShortConvolution: return run_kind(handle, short_convolution());
      case MixerKind::kMamba2: return run_kind(handle, mamba2());
      case MixerKind::kKimiDeltaAttention: return run_kind(handle, kimi_delta_attention());
      case MixerKind::kLightningAttention: return run_kind(handle, lightning_attention());
      default: return run_kind(handle, mamba1());
    }
  }

 private:
  GatedDeltaNet delta_net() {
    GatedDeltaNet spec{};
    spec.key_heads = maybe(heads_);
    spec.value_heads = maybe(heads_ * between(1, 2));
    spec.key_dim = maybe(size_);
    spec.value_dim = maybe(other_);
    const int64_t keys = heads_ * size_, heads = small(spec.value_heads), values = heads * other_;
    set_convolution(spec.convolution, 2 * keys + values);
    set_projections(spec.projections, {2 * keys + values, values, heads, heads}, values);
    return spec;
  }
  std::vector<Floats> floats_of(GatedDeltaNet& spec) {
    const int64_t heads = small(spec.value_heads);
    states_ = heads * small(spec.key_dim) * padded(spec.value_dim);
    return {{&spec.decay, heads}, {&spec.decay_bias, heads}, {&spec.norm, small(spec.value_dim)}};
  }

  ShortConvolution short_convolution() {
    ShortConvolution spec{};
    set_convolution(spec.convolution, size_);
    set_projections(spec.projections, {3 * size_}, size_);
    return spec;
  }
  std::vector<Floats> floats_of(ShortConvolution&) { return {}; }

  Mamba2 mamba2() {
    Mamba2 spec{};
    spec.groups = maybe(heads_);
    spec.heads = maybe(heads_ * between(1, 2));
    spec.head_dim = maybe(size_);
    spec.state_size = maybe(other_);
    const int64_t heads = small(spec.heads), inner = heads * size_, channels = inner + 2 * heads_ * other_;
    spec.norm_size = maybe(one_in(2) ? inner : size_);
    spec.longest_step = 1.0f;
    set_convolution(spec.convolution, channels);
    set_projections(spec.projections, {inner + channels + heads}, inner);
    return spec;
  }
  std::vector<Floats> floats_of(Mamba2& spec) {
    const int64_t heads = small(spec.heads), inner = heads * small(spec.head_dim);
    states_ = heads * small(spec.state_size) * padded(spec.head_dim);
    return {{&spec.decay, heads}, {&spec.step_bias, heads}, {&spec.direct, heads}, {&spec.norm, inner}};
  }

  KimiDeltaAttention kimi_delta_attention() {
    KimiDeltaAttention spec{};
    spec.heads = maybe(heads_);
    spec.head_dim = maybe(size_);
    spec.least_decay = one_in(2) ? -5.0f : 0.0f;
    const int64_t inner = heads_ * size_;
    set_convolution(spec.convolution, 3 * inner);
    const int64_t gates = one_in(2) ? inner : other_, decays = one_in(2) ? inner : other_;
    set_projections(spec.projections, {inner, inner, inner, gates, decays, heads_}, inner);
    if (gates != inner) spec.projections.seconds[3] = any_matrix(inner, gates, true);
    if (decays != inner) spec.projections.seconds[4] = any_matrix(inner, decays, true);
    return spec;
  }
  std::vector<Floats> floats_of(KimiDeltaAttention& spec) {
    const int64_t heads = small(spec.heads), size = small(spec.head_dim);
    states_ = heads * size * padded(size);
    return {{&spec.decay, heads}, {&spec.decay_bias, heads * size}, {&spec.norm, size}};
  }

  LightningAttention lightning_attention() {
    LightningAttention spec{};
    spec.heads = maybe(heads_);
    spec.head_dim = maybe(size_);
    spec.activation = static_cast<Activation>(maybe32(between(0, 4)));
    const int64_t inner = heads_ * size_;
    set_projections(spec.projections, {3 * inner, inner}, inner);
    return spec;
  }
  std::vector<Floats> floats_of(LightningAttention& spec) {
    const int64_t heads = small(spec.heads), size = small(spec.head_dim);
    states_ = heads * size * padded(size);
    return {{&spec.decay, heads}, {&spec.norm, heads * size}};
  }

  Mamba1 mamba1() {
    Mamba1 spec{};
    const int64_t channels = heads_ * size_;
    spec.state_size = maybe(other_);
    set_convolution(spec.convolution, channels);
    set_projections(spec.projections, {2 * channels}, channels);
    spec.select = any_matrix(heads_ + 2 * other_, channels, true);
    spec.to_steps = any_matrix(channels, heads_, true);
    has_norms_ = one_in(2);
    return spec;
  }
  std::vector<Floats> floats_of(Mamba1& spec) {
    const int64_t channels = small(spec.convolution.channels), states = small(spec.state_size);
    states_ = states * padded(channels);
    std::vector<Floats> found = {{&spec.step_bias, channels}, {&spec.decay, states_}, {&spec.direct, channels}};
    if (!has_norms_) return found;
    found.insert(found.end(), {{&spec.step_norm, small(spec.to_steps.inputs)},
                               {&spec.key_norm, states},
                               {&spec.query_norm, states}});
    return found;
  }

  void set_convolution(Convolution& spec, int64_t channels) {
    spec.channels = maybe(channels);
    spec.width = maybe(between(1, 5));
    spec.dilation = maybe32(between(1, 3));
    spec.has_silu = static_cast<int32_t>(between(0, 1));
  }

  void set_projections(Projections& spec, const std::vector<int64_t>& outputs, int64_t results) {
    spec.num_inputs = maybe(static_cast<int64_t>(outputs.size()));
    for (size_t i = 0; i < outputs.size(); ++i) spec.inputs[i] = any_matrix(outputs[i], hidden_, true);
    spec.output = any_matrix(hidden_, results, true);
  }

  static Convolution* convolution_of(LightningAttention&) { return nullptr; }
  template <typename Spec>
  static Convolution* convolution_of(Spec& spec) {
    return &spec.convolution;
  }

  static void set_states(ShortConvolution&, float*) {}
  template <typename Spec>
  static void set_states(Spec& spec, float* states) {
    spec.states = states;
  }

  template <typename Spec>
  void run_kind(Handle* handle, Spec spec) {
    Projections& projections = spec.projections;
    std::vector<Matrix*> matrices = {&projections.output};
    for (int i = 0; i < kMostProjections; ++i) {
      matrices.insert(matrices.end(), {&projections.inputs[i], &projections.seconds[i]});
    }
    if constexpr (std::is_same_v<Spec, Mamba1>) matrices.insert(matrices.end(), {&spec.select, &spec.to_steps});
    for (Matrix* matrix : matrices) {
      if (!matrix->outputs) continue;
      if (check_matrix(*matrix) || is_large(*matrix)) return;
      place(*matrix, memory_);
    }
    Convolution* convolution = convolution_of(spec);
    const float* some = floats(1);
    for (const Floats& each : floats_of(spec)) *each.place = some;  // so that its sizes are checked
    if (convolution) convolution->weight = some;
    layer_.mixer = &spec;
    if (greenroom_check_layer(&layer_, hidden_, 0) || states_ * 8 > kMostBytes) return;
    for (const Floats& each : floats_of(spec)) *each.place = floats(each.count);
    set_states(spec, floats(2 * states_));
    if (convolution) {
      convolution->weight = floats(convolution->width * convolution->channels);
      if (one_in(2)) convolution->bias = floats(convolution->channels);
      convolution->states = floats(2 * kept_inputs(*convolution) * convolution->channels);
    }
    if (one_in(2)) projections.biases[0] = floats(projections.inputs[0].outputs);
    if (one_in(2)) projections.output_bias = floats(hidden_);
    AnyStep any(memory_, hidden_, between(1, 20), 0, 0);
    ++num_accepted[4];
    if (greenroom_begin_layer(handle, &layer_, &any.call, 0)) std::abort();
    if (greenroom_finish_layer(handle, &layer_, &any.call, 0, nullptr)) std::abort();
  }

  float* floats(int64_t count) { return reinterpret_cast<float*>(any_bits(memory_, count * 4)); }

  const int64_t hidden_ = between(1, 70), heads_ = between(1, 3), size_ = between(1, 20), other_ = between(1, 20);
  int64_t states_ = 0;  // numbers of a sequence's states
  bool has_norms_ = false;
  Memory memory_;
  LayerSpec layer_{};
};

}  // namespace

void run_any_recurrent(Handle* handle) { AnyRecurrent().run(handle); }

}  // namespace driver
