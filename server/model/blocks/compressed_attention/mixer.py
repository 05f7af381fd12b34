"""CompressedAttentionMixer: attention to compressed keys as the native kernels run it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from server.kernels.native.slot_format import PLAIN
from server.kernels.native.structures.matrices import Format
from server.kernels.native.structures.mixers import CompressedAttention, Compressor, MixerKind, RopeKind
from server.model.attention.kv_cache import KVCache
from server.model.blocks.capture import LayerCapture
from server.model.blocks.compressed_attention.declaration import CompressedAttention as Declaration
from server.model.blocks.compressed_attention.index_choice import IndexChoice
from server.model.blocks.compressed_attention.short_periods import BIAS, FEW, NARROW, PERIOD, SHORT, TOP_K, WINDOW
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.linears import matrix_of, no_matrix
from server.model.blocks.mixer import MixerTrial, RotaryMixer
from server.model.blocks.rotated_rows import rows_in
from server.model.blocks.workspace import BLOCK
from server.model.recurrent.states import StateCache

if TYPE_CHECKING:
    from server.model.blocks.compressed_attention.parts import CompressedAttentionParts, CompressorParts

LEAST_MARGIN = 3.0  # of the error of other ways to rotate, by that of the best


class CompressedAttentionMixer(RotaryMixer):
    """Queries and one key for all heads, attention to the last keys and to compressed ones, and the output projections.

    Args:
        parts: of the family's module.
        index: of the layer.

    Raises:
        UnsupportedLayerError: it computes something else.
    """

    kind = MixerKind.COMPRESSED_ATTENTION

    def __init__(self, parts: CompressedAttentionParts, index: int):
        self.spec = spec = CompressedAttention()
        self._parts = parts
        super().__init__(parts.module, index, spec)
        linears: list[Any] = [parts.query, parts.query_down, parts.key, parts.output]  # by adapters' places
        for name, linear in zip(("query", "query_down", "key", "output"), linears, strict=True):
            setattr(spec, name, matrix_of(linear))
        spec.groups = matrix_of(parts.groups)
        spec.keys, spec.index = self._compressor(parts.compressor), self._compressor(None)
        spec.index_query = spec.index_weights = no_matrix()
        if parts.compressor is not None:
            linears += [parts.compressor.key, parts.compressor.gate]
            spec.period = getattr(parts.compressor.module, PERIOD)
            spec.overlaps = int(parts.compressor.overlaps)
        if parts.index is not None:
            if parts.index.compressor.overlaps != parts.compressor.overlaps:  # type: ignore[union-attr]
                raise UnsupportedLayerError("its index keys are made of other tokens than its compressed keys")
            spec.index = self._compressor(parts.index.compressor)
            spec.index_query, spec.index_weights = matrix_of(parts.index.query), matrix_of(parts.index.weights)
            spec.index_heads, spec.top_k = parts.index.weights.out_features, getattr(parts.index.module, TOP_K)
            linears += [parts.index.compressor.key, parts.index.compressor.gate, parts.index.query, parts.index.weights]
        for number, linear in enumerate(linears):
            self.add_target(linear, number)
        spec.query_norm, spec.query_epsilon = self.keep(parts.query_norm.weight), parts.query_norm.epsilon
        spec.head_norm, spec.head_epsilon = self.keep(parts.head_norm.weight), parts.head_norm.epsilon
        spec.key_norm, spec.key_epsilon = self.keep(parts.key_norm.weight), parts.key_norm.epsilon
        spec.sinks = self.keep(getattr(parts.module, "sinks", None))
        spec.dim = parts.key.out_features
        spec.heads = parts.query.out_features // spec.dim
        spec.num_groups = spec.heads * spec.dim // parts.groups.in_features
        spec.window, spec.scaling = int(getattr(parts.module, WINDOW)), float(parts.module.scaling)
        spec.chooses = 1

    @property
    def name(self) -> str:
        return "compressed attention"

    @property
    def attention_layer(self) -> int:
        return int(self.module.layer_idx)

    @property
    def most_rotated(self) -> int:
        index = self._parts.index
        return int(self.spec.dim if index is None else min(self.spec.dim, index.compressor.dim))

    def rotation_error(self, trial: MixerTrial) -> tuple[float, bool]:
        (error, kind), *_ = self._rotations(trial)
        return error, kind is not RopeKind.NONE

    def fit(self, trial: MixerTrial) -> None:
        (error, kind), *others = self._rotations(trial)
        if not error < trial.tolerance:
            raise UnsupportedLayerError(f"its layers compute something else, off by {error:.1e} of what they add")
        if any(other < min(trial.tolerance, LEAST_MARGIN * error) for other, _ in others):
            raise UnsupportedLayerError("its keys are rotated too little to show how")
        self.spec.rope_kind = kind
        if self._parts.index is not None:
            own = TrialKeys(self, trial.num_tokens, None)
            trial.run(own)
            self._choice(trial.captured).check(own.chosen, trial.tolerance)

    def declare(self, declared: Declaration) -> Declaration:
        return replace(declared, rope=RopeKind(self.spec.rope_kind))

    def for_trial(self, captured: LayerCapture, num_tokens: int) -> TrialKeys:
        choice = None if self._parts.index is None else self._choice(captured)
        return TrialKeys(self, num_tokens, choice)

    def bind(self, kv_cache: KVCache, states: StateCache | None) -> None:
        del states
        spec, layer = self.spec, self.attention_layer
        cache = kv_cache.layers[layer]
        spec.cache, spec.cache_slots, spec.cache_dim = cache.keys.data_ptr(), cache.keys.shape[2], cache.shape.dim
        spec.cache_format, spec.group = PLAIN[cache.shape.dtype], kv_cache.group_of[layer]

    def _compressor(self, parts: CompressorParts | None) -> Compressor:
        if parts is None:
            return Compressor(key=no_matrix(), gate=no_matrix())
        bias = self.keep(getattr(parts.module, BIAS))
        norm = self.keep(parts.norm.weight)
        return Compressor(matrix_of(parts.key), matrix_of(parts.gate), bias, norm, parts.dim, parts.norm.epsilon)

    def _rotations(self, trial: MixerTrial) -> list[tuple[float, RopeKind]]:
        """Return the error of each kind of rotary positions, the least first.

        Results are rotated back by the token's own position, so they show how its keys were rotated by theirs.
        """
        self.spec.rotary_dim = trial.positions.rotary_dim
        found, before = [], self.spec.rope_kind
        is_one_pair = self.spec.rotary_dim == 2  # noqa: PLR2004  of which both kinds make the same
        for kind in (RopeKind.INTERLEAVED, RopeKind.HALVES, RopeKind.NONE):
            if (kind is not RopeKind.NONE and not trial.positions.is_rotary) or (
                kind is RopeKind.HALVES and is_one_pair
            ):
                continue
            self.spec.rope_kind = kind
            found.append((trial.error(self.for_trial(trial.captured, trial.num_tokens)), kind))
        self.spec.rope_kind = before
        return sorted(found, key=lambda each: each[0])

    def _choice(self, captured: LayerCapture) -> IndexChoice:
        return IndexChoice.of(self._parts, rows_in(captured))


class TrialKeys(CompressedAttentionMixer):
    """A copy of an attention with a cache of its own, and periods as short as those of a capture.

    Args:
        own: the attention.
        num_tokens: of the one sequence.
        choice: the compressed keys that its tokens attend to; None to choose them.
    """

    def __init__(self, own: CompressedAttentionMixer, num_tokens: int, choice: IndexChoice | None):
        spec = self.spec = CompressedAttention.from_buffer_copy(own.spec)
        super(CompressedAttentionMixer, self).__init__(own.module, own.index, spec)
        spec.window = min(spec.window, NARROW)
        spec.period, spec.top_k = min(spec.period, SHORT), min(spec.top_k, FEW)
        self.chosen = np.full((num_tokens, max(1, spec.top_k)), -1, dtype=np.int32)
        if choice is not None:
            self.chosen = np.ascontiguousarray(choice.chosen)
        spec.chosen, spec.chooses = self.chosen.ctypes.data, int(choice is None)
        num_blocks = -(-num_tokens // BLOCK)
        dim = spec.dim + 2 * (spec.keys.key.outputs + spec.index.key.outputs)
        self._keys = np.zeros((num_blocks, dim, BLOCK), dtype=np.float32)
        spec.cache, spec.cache_slots, spec.cache_dim = self._keys.ctypes.data, num_blocks * BLOCK, dim
        spec.cache_format, spec.group = Format.FLOAT32, 0
