#include "structures.h"

#include <cstddef>
#include <iterator>
#include <type_traits>
#include <utility>

#include "formats/table.h"
#include "layers/block_indexer.h"
#include "layers/compressed_attention.h"
#include "layers/decode_run.h"
#include "layers/gated_delta_net.h"
#include "layers/grouped_attention.h"
#include "layers/head.h"
#include "layers/indexer.h"
#include "layers/kimi_delta_attention.h"
#include "layers/latent_attention.h"
#include "layers/lightning_attention.h"
#include "layers/linear.h"
#include "layers/mamba1.h"
#include "layers/mamba2.h"
#include "layers/mixture.h"
#include "layers/short_convolution.h"
#include "sampling/sampling.h"

namespace greenroom {
namespace {

struct Anything {
  template <typename T>
  operator T() const;
};

template <typename Type, size_t... Is>
auto can_hold(std::index_sequence<Is...>) -> decltype(Type{(static_cast<void>(Is), Anything{})...}, std::true_type{});
template <typename Type>
std::false_type can_hold(...);

// The number of members of a structure; each element of an array counts.
template <typename Type, size_t N = 0>
constexpr size_t num_members() {
  if constexpr (decltype(can_hold<Type>(std::make_index_sequence<N + 1>{}))::value) {
    return num_members<Type, N + 1>();
  } else {
    return N;
  }
}

template <typename Type>
struct Fields;  // the fields of a structure, or the enumerators of an enumeration

template <typename Enum>
constexpr Field number(const char* name, Enum value) {
  return {name, static_cast<int64_t>(value), 0};
}

struct FormatFields {
  Field rows[kNumFormats];
};

template <size_t... kNumbers>
constexpr FormatFields format_fields(std::index_sequence<kNumbers...>) {
  return {{number(kFormats[kNumbers].name, kFormats[kNumbers].format)...}};
}

constexpr FormatFields kFormatFields = format_fields(std::make_index_sequence<kNumFormats>{});

template <>
struct Fields<Format> {
  static constexpr auto& kAll = kFormatFields.rows;
};

enum class Size : int32_t {};

template <>
struct Fields<Size> {
  static constexpr Field kAll[] = {
      number("GROUP", kGroup), number("BLOCK", kBlock), number("DECODED", kDecoded), number("CODED_INPUTS", kCodedInputs),
      number("MOST_CODED_INPUTS", kMostCodedInputs), number("MOST_PARTS", kMostParts),
      number("CACHE_BLOCK", kCacheBlock), number("MOST_PROJECTIONS", kMostProjections),
      number("STATE_LANES", kStateLanes)};
};

template <>
struct Fields<Activation> {
  static constexpr Field kAll[] = {
      number("SILU", Activation::kSilu), number("GELU", Activation::kGelu),
      number("GELU_TANH", Activation::kGeluTanh), number("RELU", Activation::kRelu),
      number("RELU_SQUARED", Activation::kReluSquared), number("CLAMPED_SWISH", Activation::kClampedSwish),
      number("QUICK_GELU", Activation::kQuickGelu), number("SOFT_CAPPED", Activation::kSoftCapped)};
};

template <>
struct Fields<RopeKind> {
  static constexpr Field kAll[] = {
      number("NONE", RopeKind::kNone), number("HALVES", RopeKind::kHalves),
      number("INTERLEAVED", RopeKind::kInterleaved)};
};

template <>
struct Fields<RouterKind> {
  static constexpr Field kAll[] = {
      number("SOFTMAX_FIRST", RouterKind::kSoftMaxFirst), number("TOP_FIRST", RouterKind::kTopFirst),
      number("SIGMOID", RouterKind::kSigmoid), number("TOP_SIGMOID", RouterKind::kTopSigmoid),
      number("SPARSE_MIXER", RouterKind::kSparseMixer), number("SQRT_SOFTPLUS", RouterKind::kSqrtSoftPlus)};
};

template <>
struct Fields<GateKind> {
  static constexpr Field kAll[] = {
      number("NONE", GateKind::kNone), number("SIGMOID", GateKind::kSigmoid), number("SOFTPLUS", GateKind::kSoftPlus)};
};

template <>
struct Fields<NormKind> {
  static constexpr Field kAll[] = {
      number("NONE", NormKind::kNone), number("RMS", NormKind::kRms), number("LAYER", NormKind::kLayer),
      number("READY", NormKind::kReady)};
};

template <>
struct Fields<MixerKind> {
  static constexpr Field kAll[] = {
      number("EXTERNAL", MixerKind::kExternal), number("GROUPED_ATTENTION", MixerKind::kGroupedAttention),
      number("LATENT_ATTENTION", MixerKind::kLatentAttention),
      number("GATED_DELTA_NET", MixerKind::kGatedDeltaNet), number("SHORT_CONVOLUTION", MixerKind::kShortConvolution),
      number("MAMBA2", MixerKind::kMamba2), number("NONE", MixerKind::kNone),
      number("KIMI_DELTA_ATTENTION", MixerKind::kKimiDeltaAttention),
      number("LIGHTNING_ATTENTION", MixerKind::kLightningAttention), number("MAMBA1", MixerKind::kMamba1),
      number("COMPRESSED_ATTENTION", MixerKind::kCompressedAttention)};
};

template <>
struct Fields<FeedForwardKind> {
  static constexpr Field kAll[] = {number("MLP", FeedForwardKind::kMlp), number("EXPERTS", FeedForwardKind::kExperts),
                                   number("NONE", FeedForwardKind::kNone)};
};

#define FIELD(field) {#field, offsetof(Type, field), sizeof(Type::field)}

template <>
struct Fields<Matrix> {
  using Type = Matrix;
  static constexpr Field kAll[] = {
      FIELD(format), FIELD(is_transposed), FIELD(outputs), FIELD(inputs), FIELD(data), FIELD(scales),
      FIELD(zeros), FIELD(rest), FIELD(divisor), FIELD(order), FIELD(row_block), FIELD(column_block),
      FIELD(scale_format), FIELD(block)};
};

template <>
struct Fields<LinearCall> {
  using Type = LinearCall;
  static constexpr Field kAll[] = {
      FIELD(matrix), FIELD(bias), FIELD(x), FIELD(y), FIELD(rows), FIELD(x_stride), FIELD(y_stride),
      FIELD(bias_format), FIELD(x_format), FIELD(y_format), FIELD(is_exact)};
};

template <>
struct Fields<Gate> {
  using Type = Gate;
  static constexpr Field kAll[] = {
      FIELD(activation), FIELD(has_gate), FIELD(is_interleaved), FIELD(alpha), FIELD(limit)};
};

template <>
struct Fields<ExpertShape> {
  using Type = ExpertShape;
  static constexpr Field kAll[] = {
      FIELD(first), FIELD(second), FIELD(first_bias), FIELD(second_bias), FIELD(gate), FIELD(num_parts),
      FIELD(bias_format)};
};

template <>
struct Fields<ExpertBatch> {
  using Type = ExpertBatch;
  static constexpr Field kAll[] = {
      FIELD(slots), FIELD(starts), FIELD(choices), FIELD(x), FIELD(outputs), FIELD(num_experts), FIELD(top_k),
      FIELD(x_stride), FIELD(x_format), FIELD(is_exact), FIELD(lora)};
};

template <>
struct Fields<Combination> {
  using Type = Combination;
  static constexpr Field kAll[] = {
      FIELD(outputs), FIELD(weights), FIELD(absent), FIELD(y), FIELD(tokens), FIELD(top_k), FIELD(hidden),
      FIELD(y_stride), FIELD(num_absent), FIELD(weights_format), FIELD(y_format)};
};

template <>
struct Fields<Router> {
  using Type = Router;
  static constexpr Field kAll[] = {
      FIELD(matrix), FIELD(bias), FIELD(correction), FIELD(expert_scales), FIELD(kind), FIELD(top_k), FIELD(num_groups),
      FIELD(top_groups), FIELD(is_normalised), FIELD(scale), FIELD(near), FIELD(is_by_best),
      FIELD(table), FIELD(table_rows), FIELD(num_shared)};
};

template <>
struct Fields<GroupedAttention> {
  using Type = GroupedAttention;
  static constexpr Field kAll[] = {
      FIELD(query), FIELD(key), FIELD(output), FIELD(value), FIELD(gate), FIELD(query_bias), FIELD(key_bias),
      FIELD(value_bias), FIELD(output_bias), FIELD(gate_bias), FIELD(query_norm), FIELD(key_norm),
      FIELD(value_norm), FIELD(sinks), FIELD(indexer), FIELD(pools), FIELD(relative), FIELD(key_convolution),
      FIELD(value_convolution), FIELD(key_cache), FIELD(value_cache), FIELD(cache_slots), FIELD(cache_dim),
      FIELD(heads), FIELD(kv_heads), FIELD(key_dim), FIELD(value_dim), FIELD(rotary_dim), FIELD(window),
      FIELD(is_chunked), FIELD(norms_together), FIELD(norms_rotated), FIELD(scales_queries), FIELD(looks_ahead),
      FIELD(has_gates_in_query), FIELD(has_keys_in_query), FIELD(rope), FIELD(group), FIELD(rope_kind), FIELD(gate_kind),
      FIELD(cache_format), FIELD(head_norm_epsilon), FIELD(value_scale), FIELD(scaling), FIELD(softcap), FIELD(clip)};
};

template <>
struct Fields<RelativeBiases> {
  using Type = RelativeBiases;
  static constexpr Field kAll[] = {FIELD(weights), FIELD(profiles), FIELD(num_profiles), FIELD(extent)};
};

template <>
struct Fields<Norm> {
  using Type = Norm;
  static constexpr Field kAll[] = {FIELD(weight), FIELD(bias), FIELD(epsilon), FIELD(kind)};
};

template <>
struct Fields<HeadScales> {
  using Type = HeadScales;
  static constexpr Field kAll[] = {FIELD(scales), FIELD(offsets)};
};

template <>
struct Fields<BlockIndexer> {
  using Type = BlockIndexer;
  static constexpr Field kAll[] = {
      FIELD(query), FIELD(key), FIELD(query_norm), FIELD(key_norm), FIELD(cache), FIELD(chosen), FIELD(heads), FIELD(dim),
      FIELD(block_size), FIELD(top_k), FIELD(num_local), FIELD(rope_kind), FIELD(unused)};
};

template <>
struct Fields<PoolIndexer> {
  using Type = PoolIndexer;
  static constexpr Field kAll[] = {
      FIELD(query), FIELD(key), FIELD(query_norm), FIELD(key_norm), FIELD(cache), FIELD(chosen), FIELD(heads), FIELD(dim),
      FIELD(pool), FIELD(top_k), FIELD(rope_kind), FIELD(is_given)};
};

template <>
struct Fields<Indexer> {
  using Type = Indexer;
  static constexpr Field kAll[] = {
      FIELD(query), FIELD(key), FIELD(weights), FIELD(pool_gate), FIELD(pool_bias), FIELD(key_norm), FIELD(query_input_norm),
      FIELD(head_scales), FIELD(chosen),
      FIELD(heads), FIELD(dim), FIELD(top_k), FIELD(rope_kind), FIELD(chooses), FIELD(is_window), FIELD(takes_hidden),
      FIELD(rotates_last), FIELD(pool)};
};

template <>
struct Fields<LatentAttention> {
  using Type = LatentAttention;
  static constexpr Field kAll[] = {
      FIELD(query_down), FIELD(query), FIELD(latent), FIELD(to_keys), FIELD(to_values), FIELD(output), FIELD(gate),
      FIELD(query_down_bias), FIELD(query_bias), FIELD(latent_bias), FIELD(output_bias), FIELD(gate_bias),
      FIELD(query_norm), FIELD(latent_norm), FIELD(rope_norm), FIELD(sinks), FIELD(head_scales), FIELD(indexer), FIELD(cache),
      FIELD(source), FIELD(source_dim), FIELD(cache_slots), FIELD(cache_dim), FIELD(heads), FIELD(rank), FIELD(nope_dim), FIELD(rope_dim), FIELD(rotary_dim),
      FIELD(value_dim), FIELD(rope), FIELD(group), FIELD(scales_queries), FIELD(takes_raw), FIELD(has_gates_in_query),
      FIELD(rope_kind), FIELD(cache_format), FIELD(query_norm_epsilon), FIELD(latent_norm_epsilon), FIELD(scaling)};
};

template <>
struct Fields<Compressor> {
  using Type = Compressor;
  static constexpr Field kAll[] = {FIELD(key), FIELD(gate), FIELD(bias), FIELD(norm), FIELD(dim), FIELD(epsilon), FIELD(unused)};
};

template <>
struct Fields<CompressedAttention> {
  using Type = CompressedAttention;
  static constexpr Field kAll[] = {
      FIELD(query_down), FIELD(query), FIELD(key), FIELD(groups), FIELD(output), FIELD(keys), FIELD(index),
      FIELD(index_query), FIELD(index_weights), FIELD(query_norm), FIELD(head_norm), FIELD(key_norm), FIELD(sinks),
      FIELD(chosen), FIELD(cache), FIELD(cache_slots), FIELD(cache_dim), FIELD(heads), FIELD(dim), FIELD(rotary_dim),
      FIELD(num_groups), FIELD(window), FIELD(period), FIELD(top_k), FIELD(index_heads), FIELD(overlaps), FIELD(chooses),
      FIELD(rope), FIELD(group), FIELD(rope_kind), FIELD(cache_format), FIELD(query_epsilon), FIELD(head_epsilon),
      FIELD(key_epsilon), FIELD(scaling)};
};

template <>
struct Fields<Projections> {
  using Type = Projections;
  static constexpr Field kAll[] = {
      FIELD(inputs), FIELD(seconds), FIELD(biases), FIELD(output), FIELD(output_bias), FIELD(places), FIELD(num_inputs)};
};

template <>
struct Fields<Convolution> {
  using Type = Convolution;
  static constexpr Field kAll[] = {
      FIELD(weight), FIELD(bias), FIELD(states), FIELD(width), FIELD(channels), FIELD(has_silu), FIELD(dilation)};
};

template <>
struct Fields<GatedDeltaNet> {
  using Type = GatedDeltaNet;
  static constexpr Field kAll[] = {
      FIELD(projections), FIELD(convolution), FIELD(decay), FIELD(decay_bias), FIELD(norm), FIELD(states),
      FIELD(key_heads), FIELD(value_heads), FIELD(key_dim), FIELD(value_dim), FIELD(norm_epsilon),
      FIELD(has_sigmoid_gates)};
};

template <>
struct Fields<KimiDeltaAttention> {
  using Type = KimiDeltaAttention;
  static constexpr Field kAll[] = {
      FIELD(projections), FIELD(convolution), FIELD(decay), FIELD(decay_bias), FIELD(norm), FIELD(states), FIELD(heads),
      FIELD(head_dim), FIELD(norm_epsilon), FIELD(least_decay)};
};

template <>
struct Fields<LightningAttention> {
  using Type = LightningAttention;
  static constexpr Field kAll[] = {
      FIELD(projections), FIELD(decay), FIELD(norm), FIELD(states), FIELD(heads), FIELD(head_dim), FIELD(norm_epsilon),
      FIELD(activation)};
};

template <>
struct Fields<ShortConvolution> {
  using Type = ShortConvolution;
  static constexpr Field kAll[] = {FIELD(projections), FIELD(convolution)};
};

template <>
struct Fields<Mamba1> {
  using Type = Mamba1;
  static constexpr Field kAll[] = {
      FIELD(projections), FIELD(convolution), FIELD(select), FIELD(to_steps), FIELD(step_norm), FIELD(key_norm),
      FIELD(query_norm), FIELD(step_bias), FIELD(decay), FIELD(direct), FIELD(states), FIELD(state_size),
      FIELD(norm_epsilon), FIELD(unused)};
};

template <>
struct Fields<Mamba2> {
  using Type = Mamba2;
  static constexpr Field kAll[] = {
      FIELD(projections), FIELD(convolution), FIELD(decay), FIELD(step_bias), FIELD(direct), FIELD(norm), FIELD(states),
      FIELD(heads), FIELD(groups), FIELD(head_dim), FIELD(state_size), FIELD(norm_size), FIELD(norm_epsilon),
      FIELD(least_step), FIELD(longest_step), FIELD(unused)};
};

template <>
struct Fields<Mlp> {
  using Type = Mlp;
  static constexpr Field kAll[] = {FIELD(shape), FIELD(weighting), FIELD(input_norm), FIELD(output_norm), FIELD(scale)};
};

template <>
struct Fields<Mixture> {
  using Type = Mixture;
  static constexpr Field kAll[] = {
      FIELD(router), FIELD(experts), FIELD(shared), FIELD(router_norm), FIELD(output_norm), FIELD(num_experts),
      FIELD(has_shared), FIELD(experts_scale), FIELD(scales_input), FIELD(num_identities), FIELD(is_deferred),
      FIELD(shared_bytes)};
};

template <>
struct Fields<NormGate> {
  using Type = NormGate;
  static constexpr Field kAll[] = {FIELD(down), FIELD(up)};
};

template <>
struct Fields<StreamGates> {
  using Type = StreamGates;
  static constexpr Field kAll[] = {FIELD(down), FIELD(up)};
};

template <>
struct Fields<NgramEmbeddings> {
  using Type = NgramEmbeddings;
  static constexpr Field kAll[] = {
      FIELD(table), FIELD(key), FIELD(value), FIELD(convolution), FIELD(key_norm), FIELD(stream_norm), FIELD(value_norm),
      FIELD(multipliers), FIELD(sizes), FIELD(offsets), FIELD(states), FIELD(num_streams), FIELD(most), FIELD(heads),
      FIELD(end), FIELD(epsilon)};
};

template <>
struct Fields<StreamMix> {
  using Type = StreamMix;
  static constexpr Field kAll[] = {
      FIELD(logits), FIELD(bias), FIELD(norm), FIELD(gates), FIELD(norm_epsilon), FIELD(epsilon), FIELD(result_epsilon),
      FIELD(magnitude),
      FIELD(scales), FIELD(num_streams), FIELD(iterations), FIELD(is_last)};
};

template <>
struct Fields<LayerSpec> {
  using Type = LayerSpec;
  static constexpr Field kAll[] = {
      FIELD(input_norm), FIELD(mixer_norm), FIELD(inner_norm), FIELD(output_norm), FIELD(input_gate), FIELD(inner_gate),
      FIELD(mixer_streams), FIELD(inner_streams), FIELD(ngrams), FIELD(mixer_convolution), FIELD(inner_convolution),
      FIELD(mixer), FIELD(feed_forward), FIELD(next_mixture), FIELD(mixer_kind),
      FIELD(feed_forward_kind), FIELD(index), FIELD(is_parallel),
      FIELD(residual_scale), FIELD(output_scale), FIELD(mixer_residual), FIELD(inner_residual),
      FIELD(adds_deferred)};
};

template <>
struct Fields<ExpertSets> {
  using Type = ExpertSets;
  static constexpr Field kAll[] = {
      FIELD(set_of_sequence), FIELD(routers), FIELD(places), FIELD(numbers), FIELD(num_sets), FIELD(width)};
};

template <>
struct Fields<StepPredictions> {
  using Type = StepPredictions;
  static constexpr Field kAll[] = {FIELD(chosen), FIELD(parts), FIELD(num_parts)};
};

template <>
struct Fields<StepSequence> {
  using Type = StepSequence;
  static constexpr Field kAll[] = {FIELD(first_row), FIELD(num_tokens), FIELD(first_position), FIELD(first_block),
                                   FIELD(state_from), FIELD(state_to)};
};

template <>
struct Fields<StepCall> {
  using Type = StepCall;
  static constexpr Field kAll[] = {
      FIELD(hidden), FIELD(sequences), FIELD(block_tables), FIELD(cosines), FIELD(sines), FIELD(normed),
      FIELD(chosen), FIELD(weights), FIELD(slots), FIELD(counts), FIELD(sets), FIELD(tokens),
      FIELD(num_sequences), FIELD(hidden_size), FIELD(most_top_k), FIELD(most_experts), FIELD(predictions), FIELD(lora),
      FIELD(query_scales), FIELD(streams), FIELD(token_ids), FIELD(newest), FIELD(has_own_angles), FIELD(is_exact)};
};

template <>
struct Fields<HeadCall> {
  using Type = HeadCall;
  static constexpr Field kAll[] = {
      FIELD(matrix), FIELD(bias), FIELD(norm), FIELD(streams), FIELD(hidden), FIELD(rows), FIELD(normed), FIELD(logits),
      FIELD(num_rows), FIELD(num_logits), FIELD(hidden_size), FIELD(vocabulary), FIELD(scale), FIELD(softcap),
      FIELD(is_exact),
      FIELD(lora)};
};

template <>
struct Fields<LoraPart> {
  using Type = LoraPart;
  static constexpr Field kAll[] = {
      FIELD(down), FIELD(up), FIELD(rank), FIELD(inputs), FIELD(outputs), FIELD(first_output), FIELD(format),
      FIELD(is_transposed), FIELD(scale), FIELD(module), FIELD(vector)};
};

template <>
struct Fields<LoraParts> {
  using Type = LoraParts;
  static constexpr Field kAll[] = {FIELD(parts), FIELD(count)};
};

template <>
struct Fields<LoraPlace> {
  static constexpr Field kAll[] = {
      number("MIXER", LoraPlace::kMixer), number("ROUTER", LoraPlace::kRouter),
      number("DENSE_FIRST", LoraPlace::kDenseFirst), number("DENSE_SECOND", LoraPlace::kDenseSecond),
      number("DENSE_GATE", LoraPlace::kDenseGate), number("INPUT_GATE", LoraPlace::kInputGate),
      number("INNER_GATE", LoraPlace::kInnerGate), number("NGRAM_KEY", LoraPlace::kNgramKey),
      number("NGRAM_VALUE", LoraPlace::kNgramValue), number("HEAD", LoraPlace::kHead), number("COUNT", LoraPlace::kCount)};
};

template <>
struct Fields<LoraLayer> {
  using Type = LoraLayer;
  static constexpr Field kAll[] = {FIELD(places), FIELD(first), FIELD(second)};
};

template <>
struct Fields<LoraRouter> {
  using Type = LoraRouter;
  static constexpr Field kAll[] = {
      FIELD(candidates), FIELD(top_k), FIELD(is_signed), FIELD(temperature), FIELD(unused)};
};

template <>
struct Fields<LoraRouting> {
  using Type = LoraRouting;
  static constexpr Field kAll[] = {FIELD(routers), FIELD(router_of_token), FIELD(totals), FIELD(counts)};
};

template <>
struct Fields<RowSampling> {
  using Type = RowSampling;
  static constexpr Field kAll[] = {
      FIELD(draw), FIELD(top_p), FIELD(temperature), FIELD(log_min_p), FIELD(top_k), FIELD(has_masks)};
};

template <>
struct Fields<SamplingCall> {
  using Type = SamplingCall;
  static constexpr Field kAll[] = {
      FIELD(logits), FIELD(rows), FIELD(tokens), FIELD(num_rows), FIELD(size), FIELD(stride)};
};

template <>
struct Fields<DecodeResults> {
  using Type = DecodeResults;
  static constexpr Field kAll[] = {FIELD(sampling), FIELD(chosen), FIELD(counts)};
};

template <>
struct Fields<DecodeRun> {
  using Type = DecodeRun;
  static constexpr Field kAll[] = {
      FIELD(layers), FIELD(num_layers), FIELD(step), FIELD(sequences), FIELD(token_ids), FIELD(head), FIELD(embedding),
      FIELD(embedding_norm), FIELD(even), FIELD(odd), FIELD(num_streams), FIELD(embedding_scale), FIELD(unused)};
};

template <>
struct Fields<LoraStep> {
  using Type = LoraStep;
  static constexpr Field kAll[] = {
      FIELD(layers), FIELD(factors), FIELD(num_adapters), FIELD(num_layers), FIELD(routing)};
};

template <>
struct Fields<LoraExperts> {
  using Type = LoraExperts;
  static constexpr Field kAll[] = {
      FIELD(first), FIELD(second), FIELD(factors), FIELD(num_adapters), FIELD(numbers), FIELD(routing)};
};

// `elements` are those of arrays, without the first of each.
template <typename Type, size_t elements = 0>
constexpr Layout layout(const char* name) {
  constexpr size_t kCount = std::size(Fields<Type>::kAll);
  if constexpr (std::is_class_v<Type>) {
    static_assert(num_members<Type>() == kCount + elements, "a field of the structure has no row");
  }
  return {name, sizeof(Type), Fields<Type>::kAll, static_cast<int64_t>(kCount)};
}

constexpr Layout kLayouts[] = {
    layout<Format>("Format"), layout<Size>("Size"), layout<Activation>("Activation"), layout<RopeKind>("RopeKind"),
    layout<RouterKind>("RouterKind"), layout<GateKind>("GateKind"), layout<NormKind>("NormKind"),
    layout<Norm>("Norm"), layout<Matrix>("Matrix"), layout<LinearCall>("LinearCall"),
    layout<Gate>("Gate"), layout<ExpertShape, kMostParts - 1>("ExpertShape"), layout<ExpertBatch>("ExpertBatch"),
    layout<Combination>("Combination"), layout<Router>("Router"), layout<MixerKind>("MixerKind"),
    layout<FeedForwardKind>("FeedForwardKind"), layout<GroupedAttention>("GroupedAttention"),
    layout<RelativeBiases>("RelativeBiases"), layout<HeadScales>("HeadScales"), layout<BlockIndexer>("BlockIndexer"),
    layout<PoolIndexer>("PoolIndexer"), layout<Indexer>("Indexer"), layout<LatentAttention>("LatentAttention"),
    layout<Compressor>("Compressor"), layout<CompressedAttention>("CompressedAttention"),
    layout<Projections, 3 * (kMostProjections - 1)>("Projections"), layout<Convolution>("Convolution"),
    layout<GatedDeltaNet>("GatedDeltaNet"), layout<KimiDeltaAttention>("KimiDeltaAttention"),
    layout<LightningAttention>("LightningAttention"),
    layout<ShortConvolution>("ShortConvolution"), layout<Mamba1>("Mamba1"), layout<Mamba2>("Mamba2"), layout<Mlp>("Mlp"),
    layout<Mixture>("Mixture"), layout<NormGate>("NormGate"), layout<StreamGates>("StreamGates"),
    layout<NgramEmbeddings>("NgramEmbeddings"), layout<StreamMix, 2>("StreamMix"), layout<LayerSpec>("LayerSpec"), layout<ExpertSets>("ExpertSets"),
    layout<StepPredictions>("StepPredictions"), layout<StepSequence>("StepSequence"), layout<StepCall>("StepCall"), layout<HeadCall>("HeadCall"),
    layout<LoraPlace>("LoraPlace"), layout<LoraPart>("LoraPart"), layout<LoraParts>("LoraParts"), layout<LoraLayer, static_cast<size_t>(LoraPlace::kCount) - 1>("LoraLayer"),
    layout<LoraRouter>("LoraRouter"), layout<LoraRouting>("LoraRouting"), layout<LoraStep>("LoraStep"),
    layout<LoraExperts>("LoraExperts"), layout<RowSampling>("RowSampling"), layout<SamplingCall>("SamplingCall"), layout<DecodeResults>("DecodeResults"),
    layout<DecodeRun>("DecodeRun")};

}  // namespace

Layouts layouts() { return {kLayouts, static_cast<int64_t>(std::size(kLayouts))}; }

}  // namespace greenroom
