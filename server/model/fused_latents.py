"""Latent attention modules (MLA) of a CUDA device that project, prepare their rows in one launch, and attend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from server.kernels.native.structures.layers import NormKind
from server.kernels.triton.available import runs_on
from server.model.attention.mla import LatentProjection
from server.model.attention_trials import (
    AttentionCall,
    RecordedCall,
    angles_of,
    are_of_rows,
    hidden_of,
    is_near,
    record_calls,
)
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.latent_attention.parts import LatentAttentionParts
from server.model.hooks import AttentionOptions, current_hooks
from server.model.joined_linears import JoinedLinears
from server.model.transformers_hooks.probe import IsolatedTokens

if TYPE_CHECKING:
    from server.kernels.triton.latent_preparation import LatentRule, ProjectedLatents

log = logging.getLogger(__name__)

Attend = Callable[[LatentProjection, "ProjectedLatents", AttentionOptions], torch.Tensor]


class FusedLatentAttention:
    """The call of a latent attention module with projections of queries and latents.

    In a step whose hooks don't attend to projections, or whose adapters change one, the module runs as it is.

    Args:
        parts: of the module.
        options: that the module calls attention with.
        rule: of its queries and latents.
    """

    def __init__(self, parts: LatentAttentionParts, options: AttentionOptions, rule: LatentRule):
        assert parts.latent is not None
        self._parts, self._options, self._rule = parts, options, rule
        self._original = parts.module.forward
        linears = [parts.query if parts.query_down is None else parts.query_down, parts.latent]
        self.projections = JoinedLinears(linears)
        self._sizes = [linear.out_features for linear in linears]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        attend: Attend | None = getattr(current_hooks(), "attend_latents", None)
        if attend is None or self.projections.has_hooks:
            return self._original(*args, **kwargs)
        return self.run(attend, hidden_of(args, kwargs), angles_of(args, kwargs))

    def run(self, attend: Attend, hidden: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor] | None) -> Any:
        """Return what the module returns."""
        from server.kernels.triton.latent_preparation import ProjectedLatents  # noqa: PLC0415  may not be installed

        parts = self._parts
        query, latent = torch.split(self.projections(hidden.flatten(0, -2)), self._sizes, 1)
        if parts.query_norm is not None and parts.query_down is not None:
            query = parts.query(parts.query_norm.module(query))
        cosines, sines = (query, query) if angles is None else (part[0] for part in angles)
        output = attend(parts.expansion, ProjectedLatents(query, latent, cosines, sines, self._rule), self._options)
        return parts.output(output.view(*hidden.shape[:-1], -1)), None


def fuse_latents(
    model: nn.Module, device: torch.device | None, run: Callable[[], None], others: Collection[nn.Module] = ()
) -> int:
    """Let latent attention modules prepare queries and latents in one launch; return how many do.

    A module does if it is plain multi-head latent attention by its parts, and if what it calls attention with, and
    returns, is what these parts give by one of the known rules.

    Args:
        device: where Triton's kernels run; None for nowhere.
        run: runs some tokens through the model, each of which attends to itself alone.
        others: modules that stay as they are.
    """
    if device is None or not runs_on(device):
        return 0
    found = {
        module: parts for module in model.modules() if module not in others and (parts := _parts_of(module)) is not None
    }
    if not found:
        return 0
    count = 0
    for module, call in record_calls(found, run).items():
        fused = _fuse(found[module], call)
        if fused is not None:
            fused.projections.join()
            module.forward = fused
            count += 1
    log.info("%d latent attention layers prepare queries and latents in one launch", count)
    return count


def _parts_of(module: nn.Module) -> LatentAttentionParts | None:
    """Return the parts of a module without any that the kernel does not know."""
    from server.kernels.triton.latent_preparation import MOST_RANK  # noqa: PLC0415  may not be installed

    try:
        parts = LatentAttentionParts.find(module, keeps_state=False)
    except UnsupportedLayerError:
        return None
    if parts is None or parts.latent is None or parts.latent_norm is None or parts.expansion.rank > MOST_RANK:
        return None
    others = parts.gate, parts.indexer, parts.head_scales, parts.rope_norm
    is_plain = all(part is None for part in others) and parts.source < 0 and not parts.takes_raw
    if not is_plain or parts.has_gates_in_query or parts.query_scale != 1 or parts.latent_scale != 1:
        return None
    norm = parts.latent_norm
    is_known = norm.kind is NormKind.RMS and norm.bias is None and len(norm.weight) == parts.expansion.rank
    return parts if is_known else None


@torch.inference_mode()
def _fuse(parts: LatentAttentionParts, call: RecordedCall) -> FusedLatentAttention | None:
    """Return the module with the rule by which it gives what it gave in a call; None if there is none."""
    options = call.attention.options
    if options.chosen is not None or options.sinks is not None:
        return None
    for rule in _rules(parts, call):
        fused = FusedLatentAttention(parts, options, rule)
        trial = _Trial(call.attention)
        output, _ = fused.run(trial.attend, call.hidden, call.angles)
        if trial.agrees and is_near(output, call.output):
            return fused
    return None


class _Trial:
    """Attention of single tokens to themselves, which compares queries and expanded latents with those of a call."""

    def __init__(self, call: AttentionCall):
        self._call, self.agrees = call, False

    def attend(
        self, projection: LatentProjection, latents: ProjectedLatents, options: AttentionOptions
    ) -> torch.Tensor:
        from server.kernels.triton.decode_attention import PagedKeys  # noqa: PLC0415  may not be installed
        from server.kernels.triton.latent_preparation import prepare  # noqa: PLC0415  as above

        call, rank, nope_dim = self._call, projection.rank, latents.rule.nope_dim
        count, width = len(latents.query), rank + latents.rule.rope_dim
        keys = latents.latent.new_zeros(1, count, width)
        slots = torch.arange(count, dtype=torch.int32, device=keys.device)
        cache = PagedKeys(keys, keys, width, rank, is_latent=True)
        query, rows = prepare(latents, slots, cache, None, keeps_rows=True)
        expanded = projection.expand(keys[0, :, :rank]).view(count, len(query), -1).transpose(0, 1)
        rotated = keys[..., rank:].expand(len(query), -1, -1)
        pairs = (
            (latents.by_head[..., :nope_dim], call.query[..., :nope_dim]),
            (query[..., rank:], call.query[..., nope_dim:]),
            (torch.cat([expanded[..., :nope_dim], rotated], -1), call.key),
            (expanded[..., nope_dim:], call.value),
        )
        self.agrees = torch.equal(rows, keys) and all(is_near(own, other) for own, other in pairs)
        return IsolatedTokens().attend(projection.layer, call.query, call.key, call.value, options).contiguous()


def _rules(parts: LatentAttentionParts, call: RecordedCall) -> Iterator[LatentRule]:
    """Yield the rules that a module may follow."""
    from server.kernels.triton.heads import HALVES, HALVES_OF_PAIRS, NOT_ROTATED, PAIRS  # noqa: PLC0415  as above
    from server.kernels.triton.latent_preparation import LatentRule  # noqa: PLC0415  may not be installed

    norm, angles = parts.latent_norm, call.angles
    assert norm is not None
    device = call.attention.query.device
    sizes = parts.expansion.nope_dim, parts.rope_dim
    weights = norm.weight.to(device), norm.epsilon
    if angles is not None and are_of_rows(angles, call.attention.query.shape[1]) and parts.rope_dim % 2 == 0:
        for rotation, step in ((HALVES_OF_PAIRS, 1), (HALVES, 1), (PAIRS, 1), (PAIRS, 2)):
            if angles[0].shape[-1] >= step * parts.rope_dim // 2:
                yield LatentRule(rotation.value, step, *sizes, *weights)
    yield LatentRule(NOT_ROTATED.value, 1, *sizes, *weights)
