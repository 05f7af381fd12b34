"""CudaGroupedAttention: grouped-query attention on a CUDA device, whose heads are prepared in one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from server.kernels.native.structures.mixers import RopeKind
from server.model.blocks.cuda import CudaAttention, CudaPlace, check_known
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.grouped_attention.clips import clip_of
from server.model.blocks.grouped_attention.declaration import GroupedAttention
from server.model.blocks.grouped_attention.mixer import VALUE_SCALE
from server.model.hooks import AttentionOptions

if TYPE_CHECKING:
    from server.model.blocks.grouped_attention.parts import GroupedAttentionParts
    from server.model.blocks.grouped_attention.triton_step import HeadRule, ProjectedHeads

GIVES_KEYS = "store_full_length_kv"  # attribute of modules whose keys and values others may take (Gemma 4)

Attend = Callable[[int, "ProjectedHeads", AttentionOptions], torch.Tensor]


class CudaGroupedAttention(CudaAttention):
    """Projections of queries, keys and values, a launch for norms, rotation and the cache, and attention.

    Args:
        parts: of the module.
        declared: what they do not show.
        place: of the layer.

    Raises:
        UnsupportedLayerError: it has parts that the kernel does not know.
    """

    attends = "attend_projected"

    def __init__(self, parts: GroupedAttentionParts, declared: GroupedAttention, place: CudaPlace):
        _check(parts, declared, place)
        linears = [linear for linear in (parts.query, parts.key, parts.value) if linear is not None]
        super().__init__(parts.module, linears)
        self._parts, self._rule = parts, _rule(parts, declared, place)
        self._sizes = [linear.out_features for linear in linears]
        sinks = None if declared.sinks is None else parts.module.get_parameter(declared.sinks).detach().flatten()
        self._options = AttentionOptions(
            declared.scaling, declared.window or None, declared.is_chunked, sinks, declared.softcap or None
        )

    def run(self, attend: Attend, rows: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        from server.model.blocks.grouped_attention.triton_step import ProjectedHeads  # noqa: PLC0415  may not be installed

        query, key, value = self._project(rows)
        cosines, sines = (query, query) if angles is None else (part[0] for part in angles)
        heads = ProjectedHeads(query, key, value, cosines, sines, self._rule)
        return attend(self._module.layer_idx, heads, self._options)

    @property
    def project(self) -> nn.Module:
        output: nn.Module = self._parts.output
        return output

    def _project(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        parts = torch.split(self.projections(rows), self._sizes, 1)
        return [*parts, parts[-1]][:3]  # without a projection of their own, values are the keys


def _check(parts: GroupedAttentionParts, declared: GroupedAttention, place: CudaPlace) -> None:
    """Raise ``UnsupportedLayerError`` if an attention has parts that the kernel does not know."""
    module = parts.module
    check_known(
        {
            "one projection of queries and keys": parts.key is None,
            "gates": declared.gate or parts.gate is not None,
            "indexers": parts.indexer or parts.pools,
            "relative biases": parts.relative,
            "experts of heads": parts.experts,
            "convolutions": parts.convolutions,
            "mixed heads": parts.mixing,
            "limits of heads": parts.limits or clip_of(module),
            "norms of results": parts.result_norm,
            "sinks by token": parts.sink is not None,
            "factors of values": getattr(module, VALUE_SCALE, 1.0) != 1,
            "factors of queries by position": declared.query_scale,
            "norms after the rotation": declared.norms_rotated,
            "other rows for keys": declared.takes_other_rows,
            "keys that other layers take": place.shares_keys and getattr(module, GIVES_KEYS, False),
        }
    )


def _rule(parts: GroupedAttentionParts, declared: GroupedAttention, place: CudaPlace) -> HeadRule:
    """Return the rule of an attention's heads.

    Raises:
        UnsupportedLayerError: the kernel does not know it.
    """
    from server.kernels.triton.rotation import HALVES, NOT_ROTATED, PAIRS  # noqa: PLC0415  as above
    from server.model.blocks.grouped_attention.triton_step import HeadRule  # noqa: PLC0415  may not be installed

    assert parts.key is not None
    key_dim = int(parts.module.head_dim)
    heads, kv_heads = (each.out_features // key_dim for each in (parts.query, parts.key))
    value_dim = (parts.key if parts.value is None else parts.value).out_features // kv_heads
    if heads * value_dim != parts.output.in_features:
        raise UnsupportedLayerError("no kernel has queries with gates")
    rotation = {RopeKind.NONE: NOT_ROTATED, RopeKind.HALVES: HALVES, RopeKind.INTERLEAVED: PAIRS}[declared.rope]
    rotated, step = 0, 1
    if declared.rope is not RopeKind.NONE:
        if place.table is None or not 0 < place.table.num_rotated <= key_dim:
            raise UnsupportedLayerError("no kernel reads its cosines and sines")
        rotated, step = place.table.num_rotated, place.table.step
    norms = parts.query_norm, parts.key_norm, parts.value_norm
    sizes = key_dim, key_dim, value_dim
    epsilons = {norm.epsilon for norm in norms if norm is not None}
    are_of_heads = all(norm is None or len(norm.weight) == size for norm, size in zip(norms, sizes, strict=True))
    if (parts.query_norm is None) != (parts.key_norm is None) or not are_of_heads or len(epsilons) > 1:
        raise UnsupportedLayerError("no kernel has its norms of heads")
    query, key, value = (None if norm is None else norm.weight.to(place.device) for norm in norms)
    return HeadRule(rotation.value, step, rotated, query, key, max(epsilons, default=0.0), value_norm=value)
