"""LatentAttentionMixer: multi-head latent attention as the native kernels run it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import addressof
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from server.kernels.formats.blocks import OUTPUTS
from server.kernels.native.linear import plain_matrix
from server.kernels.native.slot_format import PLAIN
from server.kernels.native.structures.adapters import LoraPlace
from server.kernels.native.structures.matrices import Format, Matrix
from server.kernels.native.structures.mixers import HeadScales, Indexer, LatentAttention, MixerKind, RopeKind
from server.model.attention.kv_cache import KVCache
from server.model.blocks.adapter_places import NativeTarget
from server.model.blocks.capture import LayerCapture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.latent_attention.declaration import LatentAttention as Declaration
from server.model.blocks.latent_attention.indexer import NativeIndexer, chosen_of
from server.model.blocks.latent_attention.rotation import Rotations, rotations
from server.model.blocks.linears import matrix_of, no_matrix
from server.model.blocks.mixer import ChosenKeys, MixerTrial, RotaryMixer
from server.model.blocks.rotated_rows import rows_of
from server.model.blocks.workspace import BLOCK
from server.model.quantised.latent_expansion import LatentExpansion
from server.model.quantised.linear import NAME, QuantisedLinear
from server.model.recurrent.states import StateCache

if TYPE_CHECKING:
    from server.model.blocks.latent_attention.parts import LatentAttentionParts

MATRICES = ("query", "query_down", "latent", "expansion", "output", "gate")  # in the order of an adapter's places

WITHOUT_BLOCKS = (Format.MXFP4, Format.FP4)  # of outputs; rows of heads are not prepared for their products


class LatentAttentionMixer(RotaryMixer):
    """Queries, a latent for all heads, rotary positions of a part of both, attention, and the output projection.

    Args:
        parts: of the family's module.
        declared: what its structure does not show.
        index: of the layer.
        indexer: that chooses its keys; None if its tokens attend to all that they see.

    Raises:
        UnsupportedLayerError: it computes something else.
    """

    kind = MixerKind.LATENT_ATTENTION

    def __init__(
        self, parts: LatentAttentionParts, declared: Declaration, index: int, indexer: NativeIndexer | None = None
    ):
        self.spec = spec = LatentAttention()
        self._parts = parts
        super().__init__(parts.module, index, spec)
        if declared.sinks is not None:
            sinks = parts.module.get_parameter(declared.sinks)
            if sinks.numel() != parts.heads:
                raise UnsupportedLayerError("its latents are attended to with sinks that are not one for each head")
            spec.sinks = self.keep(sinks.flatten())
        for number, name in enumerate(MATRICES):
            linear = getattr(parts, name)
            if name == "expansion":
                place = LoraPlace.MIXER + number
                sizes = linear.rank, linear.expanded_dim
                self.linears[linear] = NativeTarget(index, place, *sizes, is_absorbed=True)
            else:
                setattr(spec, name, no_matrix() if linear is None else matrix_of(linear))
                if linear is not None:
                    setattr(spec, f"{name}_bias", self.keep(linear.bias))
                    self.add_target(linear, number, input_scale=parts.input_scale if name == "query" else 1.0)
        spec.takes_raw, spec.has_gates_in_query = int(parts.takes_raw), int(parts.has_gates_in_query)
        self._indexer = indexer
        if indexer is not None:
            self._set_indexer(indexer)
            indexer.spec.rope_kind, indexer.spec.rotates_last = declared.index_rope, int(declared.index_rotates_last)
        if declared.window:
            self._set_window(declared.window)
        self._set_sizes(parts)
        self._set_expansion(parts)
        self._set_norms(parts)
        spec.scaling, spec.rope_kind = declared.scaling, declared.rope
        spec.scales_queries = int(temperature_of(parts.module) is not None)
        if parts.head_scales is not None:
            spec.head_scales = HeadScales(self.keep(parts.head_scales.scales), self.keep(parts.head_scales.offsets))
        self._is_sorted = (
            False  # the rotated part of captured keys has the first numbers of all pairs before the others
        )

    @property
    def name(self) -> str:
        return "latent attention"

    @property
    def chosen_keys(self) -> ChosenKeys | None:
        indexer = self._indexer
        return None if indexer is None else ChosenKeys(int(indexer.spec.top_k), indexer.chooses)

    @property
    def attention_layer(self) -> int:
        return int(self.module.layer_idx)

    @property
    def most_rotated(self) -> int:
        return int(self.spec.rope_dim)

    @property
    def reads_query_scales(self) -> bool:
        return bool(self.spec.scales_queries)

    def query_scale(self, position: int) -> float:
        found = temperature_of(self.module)
        if found is None:
            return 1.0
        factor, length = found
        return 1.0 + factor * math.log(1 + position // length)

    def query_scales(self, positions: Sequence[int]) -> torch.Tensor:
        scales, by_head = super().query_scales(positions), self._parts.head_scales
        return scales if by_head is None else scales * by_head.at(positions)

    def rotation_error(self, trial: MixerTrial) -> tuple[float, bool]:
        best = self._rotations(trial).best
        return best.error, best.kind != RopeKind.NONE

    def fit(self, trial: MixerTrial) -> None:
        found = self._rotations(trial)
        found.check(trial.tolerance)
        self.spec.rope_kind, self._is_sorted = found.best.kind, found.best.is_sorted
        if self._indexer is not None:
            rows = rows_of(trial)
            with torch.inference_mode():
                inputs = self._parts.query_inputs(rows)
                self._indexer.fit(self, trial, rows, inputs[..., : inputs.shape[-1] // (1 + self._parts.takes_raw)])

    def declare(self, declared: Declaration) -> Declaration:
        keeps_pairs = self.spec.rope_kind == RopeKind.INTERLEAVED and not self._is_sorted
        found = replace(declared, rope=RopeKind(self.spec.rope_kind), keeps_pairs=keeps_pairs)
        if self._indexer is None:
            return found
        own = self._indexer.spec
        return replace(found, index_rope=RopeKind(own.rope_kind), index_rotates_last=bool(own.rotates_last))

    def for_trial(self, captured: LayerCapture, num_tokens: int) -> TrialLatents:
        return TrialLatents(self.module, self.index, self.spec, captured, num_tokens, is_sorted=self._is_sorted)

    def for_choice(self, captured: LayerCapture, num_tokens: int) -> TrialLatents:
        """Return the same, which chooses keys instead of taking those of the capture."""
        own = self.module, self.index, self.spec, captured, num_tokens
        return TrialLatents(*own, is_sorted=self._is_sorted, chooses=True)

    def bind(self, kv_cache: KVCache, states: StateCache | None) -> None:
        del states
        spec, layer = self.spec, self.attention_layer
        cache = kv_cache.layers[layer]
        spec.cache, spec.cache_slots, spec.cache_dim = cache.keys.data_ptr(), cache.keys.shape[2], cache.shape.dim
        spec.cache_format, spec.group = PLAIN[cache.shape.dtype], kv_cache.group_of[layer]
        if self._parts.latent is None:
            source = kv_cache.layers[self._parts.source]
            spec.source, spec.source_dim = source.keys.data_ptr(), source.shape.dim

    def _rotations(self, trial: MixerTrial) -> Rotations:
        self.spec.rotary_dim = trial.positions.rotary_dim
        return rotations(self._parts, trial, self.query_scales(range(trial.num_tokens)))

    def _set_indexer(self, indexer: NativeIndexer) -> None:
        self.spec.indexer = indexer.address
        for number, linear in enumerate(() if indexer.parts is None else indexer.parts.linears, len(MATRICES)):
            self.add_target(linear, number, input_scale=self._parts.input_scale if number == len(MATRICES) else 1.0)

    def _set_window(self, window: int) -> None:
        """Let a token attend to the last latents alone."""
        if self._indexer is not None:
            raise UnsupportedLayerError("its latents are attended to with a window of another kind")
        self._window = Indexer(top_k=window, is_window=1)
        self.spec.indexer = addressof(self._window)

    def _set_norms(self, parts: LatentAttentionParts) -> None:
        spec = self.spec
        if parts.latent_norm is not None:
            spec.latent_norm = self.keep(parts.latent_norm.weight * parts.latent_scale)
            spec.latent_norm_epsilon = parts.latent_norm.epsilon
        if parts.rope_norm is not None:
            if parts.latent_norm is None or parts.rope_norm.epsilon != parts.latent_norm.epsilon:
                raise UnsupportedLayerError("the norms of its latents and of its rotated keys have different epsilons")
            spec.rope_norm = self.keep(parts.rope_norm.weight)
        if parts.query_norm is not None:
            spec.query_norm = self.keep(parts.query_norm.weight * parts.query_scale)
            spec.query_norm_epsilon = parts.query_norm.epsilon

    def _set_sizes(self, parts: LatentAttentionParts) -> None:
        spec, expansion = self.spec, parts.expansion
        spec.rank, spec.nope_dim, spec.value_dim = expansion.rank, expansion.nope_dim, expansion.value_dim
        spec.rope_dim, spec.heads = parts.rope_dim, parts.heads

    def _set_expansion(self, parts: LatentAttentionParts) -> None:
        """Take the expansion's two matrices, or copy its weights in the order in which it is absorbed."""
        spec, linear = self.spec, parts.expansion.linear
        if isinstance(linear, QuantisedLinear) and isinstance(linear.format, LatentExpansion):
            matrices = linear.format.parts(linear.places, NAME)
            has_blocks = matrices is not None and all(each.format not in WITHOUT_BLOCKS for each in matrices)
            if matrices is not None and has_blocks and not (spec.rank % OUTPUTS or spec.value_dim % OUTPUTS):
                for buffer in linear.buffers():
                    self.kept.hold(buffer)
                spec.to_keys, spec.to_values = matrices
                return
        if plain_matrix(linear.weight) is None:
            raise UnsupportedLayerError(f"its weights are {linear.weight.dtype}")
        weight = linear.weight.detach().view(spec.heads, spec.nope_dim + spec.value_dim, spec.rank)
        to_keys = weight[:, : spec.nope_dim].transpose(1, 2).contiguous()  # (heads, rank, nope_dim)
        to_values = weight[:, spec.nope_dim :].contiguous()  # (heads, value_dim, rank)
        for name, tensor in (("to_keys", to_keys), ("to_values", to_values)):
            self.kept.hold(tensor)
            setattr(spec, name, _matrix(tensor))


class TrialLatents(LatentAttentionMixer):
    """A copy of a latent attention with a cache of its own, whose tokens attend to the keys of a capture.

    Args:
        own: its structure.
        captured: a call of the layer.
        num_tokens: of the one sequence.
        is_sorted: whether the rotated part of captured keys has the first numbers of all pairs before the others.
        chooses: whether its indexer chooses keys, as many as that of the capture.
    """

    def __init__(
        self,
        module: Any,
        index: int,
        own: LatentAttention,
        captured: LayerCapture,
        num_tokens: int,
        *,
        is_sorted: bool = False,
        chooses: bool = False,
    ):
        spec = self.spec = LatentAttention.from_buffer_copy(own)
        super(LatentAttentionMixer, self).__init__(module, index, spec)
        num_blocks, dim = -(-num_tokens // BLOCK), spec.rank + spec.rope_dim
        if own.indexer and not Indexer.from_address(own.indexer).is_window:
            indexer = self._own_indexer = Indexer.from_buffer_copy(Indexer.from_address(own.indexer))
            own_pool = int(indexer.pool)
            self.chosen, indexer.top_k = chosen_of(captured, own_pool)
            if chooses:
                self.chosen = np.full_like(self.chosen, -1)
                dim += indexer.dim * (2 if own_pool else 1)
            indexer.chosen, indexer.chooses = self.chosen.ctypes.data, int(chooses)
            spec.indexer = addressof(indexer)
        self._latents = np.zeros((num_blocks, dim, BLOCK), dtype=np.float32)
        spec.cache, spec.cache_slots, spec.cache_dim = self._latents.ctypes.data, num_blocks * BLOCK, dim
        spec.cache_format, spec.group = Format.FLOAT32, 0
        if not spec.latent.outputs:
            assert captured.latents is not None
            self._source = _blocks_of(captured.latents, spec.rank, num_blocks, is_sorted=is_sorted)
            spec.source, spec.source_dim = self._source.ctypes.data, self._source.shape[1]


def _blocks_of(
    latents: torch.Tensor, rank: int, num_blocks: int, *, is_sorted: bool
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return captured latents with the rotated part of keys as the kernels keep them."""
    rotated = latents[:, rank:]
    if is_sorted:
        rotated = rotated.reshape(len(rotated), 2, -1).transpose(1, 2).flatten(1)
    rows = torch.zeros((num_blocks * BLOCK, latents.shape[1]))
    rows[: len(latents)] = torch.cat([latents[:, :rank], rotated], 1)
    return np.ascontiguousarray(rows.view(num_blocks, BLOCK, -1).transpose(1, 2).numpy())


def temperature_of(module: Any) -> tuple[float, int] | None:
    """Return the factor and the length by which a module scales its queries by their positions; None if it does not."""
    rope = getattr(getattr(module, "config", None), "rope_parameters", None) or {}
    factor, length = rope.get("llama_4_scaling_beta"), rope.get("original_max_position_embeddings")
    return (float(factor), int(length)) if factor and length else None


def _matrix(tensor: torch.Tensor) -> Matrix:
    """Return a matrix of all heads' outputs: ``(heads, outputs, inputs)``."""
    _, _, inputs = tensor.shape
    return Matrix(format=PLAIN[tensor.dtype], outputs=tensor.numel() // inputs, inputs=inputs, data=tensor.data_ptr())
