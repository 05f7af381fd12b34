"""GroupedAttentionMixer: grouped-query attention as the native kernels run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from server.kernels.native.slot_format import PLAIN
from server.kernels.native.structures.matrices import Format, Matrix
from server.kernels.native.structures.mixers import GateKind, GroupedAttention, MixerKind, RopeKind
from server.model.attention.kv_cache import KVCache, KVShape
from server.model.blocks.capture import LayerCapture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.grouped_attention.clips import REACHED, clip_of
from server.model.blocks.grouped_attention.declaration import GroupedAttention as Declaration
from server.model.blocks.grouped_attention.head_experts import NativeHeadExperts
from server.model.blocks.grouped_attention.head_mixing import NativeHeadMixing
from server.model.blocks.grouped_attention.indexer import NativeKeyBlockIndexer, TrialKeyBlockIndexer
from server.model.blocks.grouped_attention.pool_indexer import NativePoolIndexer, PoolChoice, TrialPoolIndexer
from server.model.blocks.grouped_attention.query_scale import query_scale_of
from server.model.blocks.grouped_attention.relative_biases import NativeRelativeBiases
from server.model.blocks.grouped_attention.rotation import fit_rotation, rotations
from server.model.blocks.grouped_attention.token_convolution import TokenConvolution
from server.model.blocks.linears import matrix_of, no_matrix
from server.model.blocks.mixer import ChosenKeys, LayerPlace, MixerTrial, RotaryMixer
from server.model.blocks.norms import Norm
from server.model.blocks.residual_convolution import NativeConvolution
from server.model.blocks.workspace import BLOCK
from server.model.recurrent.states import StateCache, StateShapes

if TYPE_CHECKING:
    from server.model.blocks.grouped_attention.parts import GroupedAttentionParts
    from server.model.blocks.grouped_attention.relative_biases import RelativeParts

RELATIVE, TAPS, SINK, DELAYED = 7, 8, 10, 11  # places among an adapter's, after those of an indexer
MATRICES = ("query", "key", "value", "output", "gate")  # in the order of an adapter's places
MIXING = 0  # number of the mixing among the convolutions of the layer, and before that of values
VALUE_SCALE = "v_scale"  # attribute: factor of values


class GroupedAttentionMixer(RotaryMixer):
    """Queries, keys and values, norms of heads, rotary positions, attention, and the output projection.

    Args:
        parts: of the family's module.
        declared: what its structure does not show.
        place: of the layer.

    Raises:
        UnsupportedLayerError: it computes something else.
    """

    kind = MixerKind.GROUPED_ATTENTION

    def __init__(self, parts: GroupedAttentionParts, declared: Declaration, place: LayerPlace):
        self.spec, self._dtype = GroupedAttention(), place.dtype
        super().__init__(parts.module, place.index, self.spec)
        spec = self.spec
        self._set_matrices(parts)
        self._experts = None if parts.experts is None else NativeHeadExperts(parts.experts)
        if self._experts is not None:
            spec.experts = self._experts.address
            self.add_target(self._experts.parts.router, MATRICES.index("gate"))  # there are no gates beside it
        self._clip = clip_of(parts.module)
        spec.clip = min(self._clip, REACHED)  # as in captures
        self._mixing = None if parts.mixing is None else NativeHeadMixing(parts.mixing, MIXING)
        self._set_heads(parts)
        self._set_head_norms(parts.query_norm, parts.key_norm)
        self._set_gate(parts)
        spec.gate_kind = declared.gate or spec.gate_kind
        self._set_values(parts)
        self._set_results(parts)
        self._scale_of = query_scale_of(declared.query_scale, parts.module)
        spec.scales_queries = int(self._scale_of is not None)
        spec.scaling, spec.softcap = declared.scaling, declared.softcap
        spec.rope_kind, spec.norms_rotated = declared.rope, int(declared.norms_rotated)
        spec.window, spec.is_chunked = declared.window, int(declared.is_chunked)
        spec.looks_ahead = int(spec.window and not spec.is_chunked)  # within an image
        if declared.sinks is not None:
            sinks = parts.module.get_parameter(declared.sinks)
            if sinks.numel() != spec.heads:
                raise UnsupportedLayerError("its sinks are not one for each head")
            spec.sinks = self.keep(sinks.flatten())
        self._pools = None if parts.pools is None else NativePoolIndexer(parts.pools)
        if self._pools is not None:
            self._pools.spec.rope_kind = declared.index_rope
            spec.pools = self._pools.address
            self.add_target(self._pools.parts.both, len(MATRICES))
        self._indexer = None if parts.indexer is None else NativeKeyBlockIndexer(parts.indexer)
        if self._indexer is not None:
            self._indexer.spec.rope_kind = declared.index_rope
            self._set_indexer(self._indexer)
        self._relative = None if parts.relative is None else NativeRelativeBiases(parts.relative)
        if self._relative is not None and parts.relative is not None:
            self._set_relative(self._relative, parts.relative)
        self._convolutions = [NativeConvolution(each, number) for number, each in enumerate(parts.convolutions)]
        if self._convolutions:
            spec.key_convolution, spec.value_convolution = (each.address for each in self._convolutions)
        self._set_taps(parts)
        self._set_limits(parts)
        self._set_mixing(parts)
        if parts.sink is not None:
            spec.sink = matrix_of(parts.sink)
            self.add_target(parts.sink, SINK)
        spec.has_own_inputs = int(declared.takes_other_rows)

    def _set_matrices(self, parts: GroupedAttentionParts) -> None:
        for number, name in enumerate(MATRICES):
            linear = getattr(parts, name)
            if linear is None:
                setattr(self.spec, name, no_matrix())
                continue
            setattr(self.spec, name, matrix_of(linear))
            setattr(self.spec, f"{name}_bias", self.keep(linear.bias))
            self.add_target(linear, number)

    @property
    def name(self) -> str:
        return "attention"

    @property
    def chosen_keys(self) -> ChosenKeys | None:
        if self._pools is not None:
            return ChosenKeys(self._pools.most_keys, are_own=True)
        indexer = self._indexer
        return None if indexer is None else ChosenKeys(int(indexer.spec.top_k * indexer.spec.block_size), are_own=True)

    @property
    def attention_layer(self) -> int:
        return int(self.module.layer_idx)

    @property
    def states(self) -> StateShapes:
        return {key: shape for each in self._stateful for key, shape in each.states.items()}

    @property
    def _stateful(self) -> list[NativeConvolution | NativeHeadMixing]:
        return [*self._convolutions, *([] if self._mixing is None else [self._mixing])]

    @property
    def most_rotated(self) -> int:
        return int(self.spec.key_dim)

    @property
    def reads_query_scales(self) -> bool:
        return bool(self.spec.scales_queries)

    def query_scale(self, position: int) -> float:
        return 1.0 if self._scale_of is None else self._scale_of(position)

    def rotation_error(self, trial: MixerTrial) -> tuple[float, bool]:
        return rotations(self, trial)[0].as_pair()

    def fit(self, trial: MixerTrial) -> None:
        fit_rotation(self, trial)
        if self._indexer is not None:
            self._indexer.fit(self, trial)
        if self._pools is not None:
            self._pools.fit(self, trial)
        if self.spec.gate_kind == GateKind.NONE:
            return
        errors = {}
        for kind in (GateKind.SIGMOID, GateKind.SOFTPLUS):
            self.spec.gate_kind = kind
            errors[kind] = trial.error(self.for_trial(trial.captured, trial.num_tokens))
        self.spec.gate_kind = min(errors, key=lambda kind: errors[kind])

    def declare(self, declared: Declaration) -> Declaration:
        own, indexer = self.spec, self._indexer or self._pools
        return replace(
            declared,
            rope=RopeKind(own.rope_kind),
            norms_rotated=bool(own.norms_rotated),
            gate=GateKind(own.gate_kind),
            index_rope=RopeKind.NONE if indexer is None else RopeKind(indexer.spec.rope_kind),
        )

    def for_trial(self, captured: LayerCapture, num_tokens: int) -> TrialAttention:
        indexer = None if self._indexer is None else self._indexer.for_trial(num_tokens)
        choice = None if self._pools is None else self._pools.choice_of(captured)
        return self._trial(num_tokens, indexer, None if choice is None else self._trial_pools(choice, is_given=True))

    def for_choice(self, num_tokens: int, choice: int | PoolChoice) -> TrialAttention:
        """Return the same, whose indexer chooses so many single keys, or as many pools as in a choice."""
        if isinstance(choice, PoolChoice):
            return self._trial(num_tokens, None, self._trial_pools(choice, is_given=False))
        assert self._indexer is not None
        return self._trial(num_tokens, self._indexer.for_trial(num_tokens, choice), None)

    def _trial(
        self, num_tokens: int, indexer: TrialKeyBlockIndexer | None, pools: TrialPoolIndexer | None
    ) -> TrialAttention:
        own = self.module, self.index, self.spec, num_tokens
        return TrialAttention(*own, scale_of=self._scale_of, indexer=indexer, pools=pools)

    def _trial_pools(self, choice: PoolChoice, *, is_given: bool) -> TrialPoolIndexer:
        assert self._pools is not None
        return TrialPoolIndexer(self._pools.spec, choice, int(self.spec.rotary_dim), is_given=is_given)

    def for_queries(self, num_tokens: int) -> TrialAttention:
        """Return an attention for a trial whose keys are the queries of this one, of all experts if they make them."""
        return TrialAttention.of_queries(self, num_tokens)

    def own_queries(self, keys: torch.Tensor, captured: LayerCapture) -> torch.Tensor:
        """Return the queries among the keys of such an attention, ``(heads, tokens, key_dim)``.

        Args:
            captured: the call of the layer.
        """
        if self._experts is not None:
            rows = next(each.given for each in captured.calls if each.module is self.module)
            return self._experts.chosen_of(keys, rows)
        return keys[::2] if self.spec.has_gates_in_query else keys[: self.spec.heads]

    def bind(self, kv_cache: KVCache, states: StateCache | None) -> None:
        layer, spec = self.attention_layer, self.spec
        for each in self._stateful:
            each.bind(states)
        cache = kv_cache.layers[layer]
        spec.key_cache, spec.value_cache = cache.keys.data_ptr(), cache.values.data_ptr()
        spec.cache_slots, spec.cache_dim = cache.keys.shape[2], cache.shape.dim
        spec.cache_format = PLAIN[cache.shape.dtype]
        spec.group, spec.clip = kv_cache.group_of[layer], self._clip
        for indexer in (self._indexer, self._pools):
            if indexer is not None and cache.index is not None:
                indexer.bind(cache.index)

    @property
    def kept_of_tokens(self) -> KVShape | None:
        if self._pools is None and self._relative is None:
            return None
        spec = self.spec
        own = int(spec.kv_heads), int(spec.key_dim), int(spec.value_dim), self._dtype
        return KVShape(*own, index_dim=0 if self._pools is None else self._pools.kept_numbers(int(spec.rotary_dim)))

    def _set_indexer(self, indexer: NativeKeyBlockIndexer) -> None:
        self.spec.indexer = indexer.address
        for number, linear in enumerate(indexer.parts.linears, len(MATRICES)):
            self.add_target(linear, number)

    def _set_relative(self, relative: NativeRelativeBiases, parts: RelativeParts) -> None:
        if parts.weights.out_features != self.spec.heads * parts.num_profiles:
            raise UnsupportedLayerError("its relative biases are not those of its heads")
        self.spec.relative, self.spec.looks_ahead = relative.address, 0
        self.add_target(parts.weights, RELATIVE)

    def _set_heads(self, parts: GroupedAttentionParts) -> None:
        spec = self.spec
        spec.key_dim = int(getattr(parts.module, "head_dim", 0))
        projections = [each for each in (parts.query, parts.key) if each is not None]
        if not 0 < spec.key_dim <= min(each.out_features for each in projections):
            raise UnsupportedLayerError(f"its heads have {spec.key_dim} numbers")
        if parts.key is None:
            self._set_joined_heads(parts)
            return
        spec.heads, spec.kv_heads = (linear.out_features // spec.key_dim for linear in (parts.query, parts.key))
        spec.value_dim = spec.key_dim if parts.value is None else parts.value.out_features // spec.kv_heads
        if parts.mixing is not None:
            spec.value_dim = len(parts.mixing.delay.weight[0]) // spec.kv_heads
        if spec.value_dim == spec.key_dim and parts.output.in_features * 2 == parts.query.out_features:
            spec.heads, spec.has_gates_in_query = spec.heads // 2, 1  # which a trial of its queries confirms
            spec.gate_kind = GateKind.SIGMOID
        if spec.heads % spec.kv_heads or parts.output.in_features != spec.heads * spec.value_dim:
            raise UnsupportedLayerError("the sizes of its heads and projections differ")

    def _set_joined_heads(self, parts: GroupedAttentionParts) -> None:
        """Set the heads of an attention with one projection of queries, keys and values."""
        spec = self.spec
        spec.has_keys_in_query, spec.value_dim = 1, spec.key_dim
        if parts.experts is not None:
            spec.kv_heads = parts.query.out_features // spec.key_dim // 2
            spec.heads = spec.kv_heads * parts.experts.top_k
            return
        spec.heads = parts.output.in_features // spec.key_dim
        spec.kv_heads = (parts.query.out_features // spec.key_dim - spec.heads) // 2
        sizes = parts.output.in_features, parts.query.out_features
        heads = spec.heads, spec.heads + 2 * spec.kv_heads
        if spec.kv_heads <= 0 or spec.heads % spec.kv_heads or sizes != tuple(each * spec.key_dim for each in heads):
            raise UnsupportedLayerError("the sizes of its heads and projections differ")
        if parts.gate is not None or parts.query_norm is not None:
            raise UnsupportedLayerError("one projection of queries, keys and values has gates or norms of heads")

    def _set_gate(self, parts: GroupedAttentionParts) -> None:
        """Set gates that have a projection of their own; ``fit`` finds their function."""
        spec, gate, bias = self.spec, parts.gate, parts.gate_bias
        if gate is None:
            return
        spec.gate_kind = GateKind.SIGMOID
        if gate.out_features not in (spec.heads, spec.heads * spec.value_dim):
            raise UnsupportedLayerError(f"its attention has {gate.out_features} gates for {spec.heads} heads")
        if bias is not None:
            if gate.bias is not None or bias.numel() != spec.heads:
                raise UnsupportedLayerError("its gates have biases that are not one for each head")
            spec.gate_bias = self.keep(bias.detach().flatten().repeat_interleave(gate.out_features // spec.heads))

    def _set_values(self, parts: GroupedAttentionParts) -> None:
        spec, norm = self.spec, parts.value_norm
        spec.value_scale = float(getattr(parts.module, VALUE_SCALE, 1.0))
        if norm is None:
            return
        if len(norm.weight) != spec.value_dim or (spec.key_norm and norm.epsilon != parts.key_epsilon):
            raise UnsupportedLayerError("its values are normed in another way than its keys")
        spec.value_norm, spec.head_norm_epsilon = self.keep(norm.weight), norm.epsilon

    def _set_taps(self, parts: GroupedAttentionParts) -> None:
        """Set what each token adds to the taps of its convolutions."""
        changed = [each for each in parts.convolutions if isinstance(each, TokenConvolution)]
        if not changed:
            return
        if len(changed) != len(parts.convolutions) or len({each.scale for each in changed}) > 1:
            raise UnsupportedLayerError("its tokens change the taps of keys or of values alone")
        self.spec.key_taps, self.spec.value_taps = (matrix_of(each.taps) for each in changed)
        self.spec.taps_scale = changed[0].scale
        for number, each in enumerate(changed, TAPS):
            self.add_target(each.taps, number)

    def _set_limits(self, parts: GroupedAttentionParts) -> None:
        spec = self.spec
        if not parts.limits:
            return
        if len({each.limit for each in parts.limits}) > 1 or parts.query_norm is not None:
            raise UnsupportedLayerError("its queries and its keys have different limits")
        query, key = parts.limits
        spec.norm_limit = query.limit
        spec.query_scales, spec.key_scales = self.keep(query.scales), self.keep(key.scales)

    def _set_mixing(self, parts: GroupedAttentionParts) -> None:
        """Set the mixing of heads, and the values that come from the token before."""
        spec, mixing = self.spec, parts.mixing
        spec.delayed = no_matrix()
        if mixing is None or self._mixing is None:
            return
        spec.mixing, spec.key_scales = self._mixing.address, self.keep(mixing.key_factors)
        spec.delayed, spec.value_bias = matrix_of(mixing.delayed), None  # since the convolution adds biases
        self.add_target(mixing.delayed, DELAYED)
        self._convolutions = [NativeConvolution(mixing.delay, MIXING + 1)]
        spec.value_convolution = self._convolutions[0].address

    def _set_results(self, parts: GroupedAttentionParts) -> None:
        spec, norm = self.spec, parts.result_norm
        if norm is None:
            return
        if len(norm.weight) != spec.value_dim or norm.epsilon != parts.key_epsilon:
            raise UnsupportedLayerError("the results of its heads are normed in another way than its keys")
        spec.result_norm = self.keep(norm.weight)

    def _set_head_norms(self, query: Norm | None, key: Norm | None) -> None:
        if query is None or key is None:
            if query is not key:
                raise UnsupportedLayerError("only its queries or only its keys are normed")
            return
        spec = self.spec
        if query.epsilon != key.epsilon:
            raise UnsupportedLayerError("its norms have different epsilons")
        sizes = len(query.weight), len(key.weight)
        if sizes == (spec.heads * spec.key_dim, spec.kv_heads * spec.key_dim) and sizes[0] != spec.key_dim:
            spec.norms_together = 1
        elif sizes != (spec.key_dim, spec.key_dim):
            raise UnsupportedLayerError("its heads' norms have another size")
        spec.query_norm, spec.key_norm = self.keep(query.weight), self.keep(key.weight)
        spec.head_norm_epsilon = query.epsilon


class TrialAttention(GroupedAttentionMixer):
    """A copy of an attention with a cache of its own.

    Args:
        own: its structure.
        num_tokens: of the one sequence.
        scale_of: returns the factor of the queries at a position.
        indexer: of the attention, whose tokens attend to all keys here.
        pools: an indexer of pools.
    """

    def __init__(
        self,
        module: Any,
        index: int,
        own: GroupedAttention,
        num_tokens: int,
        *,
        scale_of: Callable[[int], float] | None = None,
        indexer: TrialKeyBlockIndexer | None = None,
        pools: TrialPoolIndexer | None = None,
    ):
        spec = self.spec = GroupedAttention.from_buffer_copy(own)
        super(GroupedAttentionMixer, self).__init__(module, index, spec)
        self._scale_of, self.indexer, self.pools = scale_of, indexer, pools
        spec.indexer = None if indexer is None else indexer.address
        spec.pools = None if pools is None else pools.address
        self._num_tokens, num_blocks = num_tokens, -(-num_tokens // BLOCK)
        shape = KVShape(spec.kv_heads, spec.key_dim, spec.value_dim, torch.float32)
        self._keys, self._values = (
            np.zeros((spec.kv_heads, num_blocks, shape.dim, BLOCK), dtype=np.float32) for _ in range(2)
        )
        spec.key_cache, spec.value_cache = self._keys.ctypes.data, self._values.ctypes.data
        spec.cache_slots, spec.cache_dim = num_blocks * BLOCK, shape.dim
        spec.cache_format, spec.group = Format.FLOAT32, 0

    @classmethod
    def of_queries(cls, mixer: GroupedAttentionMixer, num_tokens: int) -> TrialAttention:
        """Return an attention whose keys are another's queries, and which adds nothing."""
        own, trial = mixer.spec, GroupedAttention.from_buffer_copy(mixer.spec)
        if own.has_gates_in_query:  # gates follow each head's queries, as if they were those of other heads
            trial.heads, trial.has_gates_in_query = 2 * own.heads, 0
        elif own.has_keys_in_query:  # so do keys and values behind all queries
            trial.heads, trial.has_keys_in_query = own.heads + 2 * own.kv_heads, 0
        query: Matrix = own.query
        query_bias: int | None = own.query_bias
        if mixer._experts is not None:  # noqa: SLF001
            query, query_bias = mixer._experts.spec.query, None  # noqa: SLF001
            trial.experts, trial.query, trial.query_bias, trial.has_keys_in_query = None, query, None, 0
            trial.heads = query.outputs // own.key_dim
        if mixer._mixing is not None:  # noqa: SLF001
            query, query_bias = mixer._mixing.projection()  # noqa: SLF001  with keys behind the queries
            trial.query, trial.query_bias, trial.heads = query, query_bias, own.heads + own.kv_heads
        trial.gate, trial.gate_kind, trial.result_norm = no_matrix(), GateKind.NONE, None
        trial.relative = trial.key_convolution = trial.value_convolution = None
        trial.sink = trial.key_taps = trial.value_taps = trial.delayed = no_matrix()
        trial.key_scales, trial.has_own_inputs = own.query_scales, 0
        size = trial.heads * own.key_dim
        nothing = torch.zeros((query.inputs, size), dtype=torch.float32)
        trial.key, trial.key_bias, trial.key_norm = query, query_bias, own.query_norm
        trial.value, trial.value_bias, trial.value_norm = query, query_bias, None
        trial.kv_heads, trial.value_dim = trial.heads, own.key_dim
        trial.output = Matrix(format=Format.FLOAT32, outputs=query.inputs, inputs=size, data=nothing.data_ptr())
        found = cls(mixer.module, mixer.index, trial, num_tokens, scale_of=mixer._scale_of)  # noqa: SLF001
        found.kept.hold(nothing)
        return found

    @property
    def keys(self) -> torch.Tensor:
        """The keys of the last run after the rotation, float32 ``(kv_heads, tokens, key_dim)``."""
        by_token = torch.from_numpy(self._keys).transpose(2, 3).flatten(1, 2)  # (kv_heads, places, dim)
        return by_token[:, : self._num_tokens, : self.spec.key_dim]
