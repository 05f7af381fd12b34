"""CudaLatentAttention: multi-head latent attention on a CUDA device, whose rows are prepared in one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from server.kernels.native.structures.layers import NormKind
from server.kernels.native.structures.mixers import RopeKind
from server.model.attention.mla import LatentProjection
from server.model.blocks.cuda import CudaAttention, CudaPlace, check_known
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.latent_attention.declaration import LatentAttention
from server.model.blocks.latent_attention.mixer import temperature_of
from server.model.hooks import AttentionOptions

if TYPE_CHECKING:
    from server.model.blocks.latent_attention.parts import LatentAttentionParts
    from server.model.blocks.latent_attention.triton_step import LatentRule, ProjectedLatents

Attend = Callable[[LatentProjection, "ProjectedLatents", AttentionOptions], torch.Tensor]


class CudaLatentAttention(CudaAttention):
    """Projections of queries and latents, a launch for the norm, rotation and the cache, and attention.

    Args:
        parts: of the module.
        declared: what they do not show.
        place: of the layer.

    Raises:
        UnsupportedLayerError: it has parts that the kernel does not know.
    """

    attends = "attend_latents"

    def __init__(self, parts: LatentAttentionParts, declared: LatentAttention, place: CudaPlace):
        _check(parts, declared)
        assert parts.latent is not None
        linears = [parts.query if parts.query_down is None else parts.query_down, parts.latent]
        super().__init__(parts.module, linears)
        self._parts, self._rule = parts, _rule(parts, declared, place)
        self._sizes = [linear.out_features for linear in linears]
        self._options = AttentionOptions(declared.scaling, declared.window or None)

    def run(self, attend: Attend, rows: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        from server.model.blocks.latent_attention.triton_step import ProjectedLatents  # noqa: PLC0415  may not be installed

        parts = self._parts
        query, latent = torch.split(self.projections(rows), self._sizes, 1)
        if parts.query_norm is not None and parts.query_down is not None:
            query = parts.query(parts.query_norm.module(query))
        cosines, sines = (query, query) if angles is None else (part[0] for part in angles)
        return attend(parts.expansion, ProjectedLatents(query, latent, cosines, sines, self._rule), self._options)

    @property
    def project(self) -> nn.Module:
        return self._parts.output


def _check(parts: LatentAttentionParts, declared: LatentAttention) -> None:
    """Raise ``UnsupportedLayerError`` if an attention has parts that the kernel does not know."""
    from server.model.blocks.latent_attention.triton_step import MOST_RANK  # noqa: PLC0415  may not be installed

    norm, rank = parts.latent_norm, parts.expansion.rank
    is_plain = norm is not None and norm.kind is NormKind.RMS and norm.bias is None and len(norm.weight) == rank
    check_known(
        {
            "latents of another layer": parts.latent is None or parts.source >= 0,
            "its norm of latents": not is_plain,
            "latents of so many numbers": rank > MOST_RANK,
            "gates": parts.gate is not None or parts.has_gates_in_query,
            "chosen keys": parts.indexer or declared.takes_choice,
            "factors of heads": parts.head_scales,
            "norms of rotated keys": parts.rope_norm,
            "sinks": declared.sinks,
            "factors of queries by position": temperature_of(parts.module),
            "queries of raw rows": parts.takes_raw,
            "factors of queries or latents": (parts.query_scale, parts.latent_scale) != (1, 1),
        }
    )


def _rule(parts: LatentAttentionParts, declared: LatentAttention, place: CudaPlace) -> LatentRule:
    """Return the rule of an attention's queries and latents.

    The cache has rotated numbers in the module's order, as the module runs where adapters change a projection.

    Raises:
        UnsupportedLayerError: the kernel does not know it.
    """
    from server.kernels.triton.rotation import HALVES, HALVES_OF_PAIRS, NOT_ROTATED, PAIRS  # noqa: PLC0415  as above
    from server.model.blocks.latent_attention.triton_step import LatentRule  # noqa: PLC0415  may not be installed

    norm = parts.latent_norm
    assert norm is not None
    pairs = PAIRS if declared.keeps_pairs else HALVES_OF_PAIRS
    rotation = {RopeKind.NONE: NOT_ROTATED, RopeKind.HALVES: HALVES, RopeKind.INTERLEAVED: pairs}[declared.rope]
    table, step = place.table, 1
    if declared.rope is not RopeKind.NONE:
        if table is None or table.num_rotated != parts.rope_dim:
            raise UnsupportedLayerError("no kernel reads its cosines and sines")
        step = table.step
    weight = norm.weight.to(place.device)
    return LatentRule(rotation.value, step, parts.expansion.nope_dim, parts.rope_dim, weight, norm.epsilon)
