"""Latent attention modules (MLA) of a CUDA device that project, prepare their rows in one launch, and attend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from server.kernels.native.structures.layers import NormKind
from server.kernels.native.structures.mixers import RopeKind
from server.kernels.triton.available import runs_on
from server.model.attention.mla import LatentProjection
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.latent_attention.declaration import LatentAttention
from server.model.blocks.latent_attention.mixer import temperature_of
from server.model.blocks.latent_attention.parts import LatentAttentionParts
from server.model.blocks.workspace import PairAngles
from server.model.declarations.declaration import Declaration
from server.model.declarations.layers import mixers_of
from server.model.fused.joined_linears import JoinedLinears
from server.model.fused.recorded_calls import RecordedCall, angles_of, hidden_of, record_calls, step_of
from server.model.hooks import AttentionOptions, current_hooks

if TYPE_CHECKING:
    from server.model.blocks.latent_attention.triton_step import LatentRule, ProjectedLatents

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
        from server.model.blocks.latent_attention.triton_step import ProjectedLatents  # noqa: PLC0415  may not be installed

        parts = self._parts
        query, latent = torch.split(self.projections(hidden.flatten(0, -2)), self._sizes, 1)
        if parts.query_norm is not None and parts.query_down is not None:
            query = parts.query(parts.query_norm.module(query))
        cosines, sines = (query, query) if angles is None else (part[0] for part in angles)
        output = attend(parts.expansion, ProjectedLatents(query, latent, cosines, sines, self._rule), self._options)
        return parts.output(output.view(*hidden.shape[:-1], -1)), None


def fuse_latents(
    model: PreTrainedModel,
    declared: Declaration | None,
    device: torch.device | None,
    run: Callable[[], None],
    others: Collection[nn.Module] = (),
) -> int:
    """Let latent attention modules prepare queries and latents in one launch; return how many do.

    A module does if it is declared as multi-head latent attention without parts that the kernel does not know.

    Args:
        declared: what the model is, if that is known.
        device: where Triton's kernels run; None for nowhere.
        run: runs some tokens through the model, each of which attends to itself alone.
        others: modules that stay as they are.
    """
    if declared is None or device is None or not runs_on(device):
        return 0
    attentions = mixers_of(model, declared, LatentAttention)
    found = {
        module: parts
        for module, attention in attentions.items()
        if module not in others and (parts := _parts_of(module, attention)) is not None
    }
    if not found:
        return 0
    count = 0
    with _numbered_keys(found.values()):
        calls = record_calls(found, run)
    for module, call in calls.items():
        attention = attentions[module]
        columns = declared.rotary[attention.rotary].columns if declared.rotary else PairAngles.ALL
        rule = _rule(found[module], attention.rope, columns, call)
        if rule is not None:
            fused = FusedLatentAttention(found[module], call.options, rule)
            fused.projections.join()
            module.forward = fused
            count += 1
    log.info("%d latent attention layers prepare queries and latents in one launch", count)
    return count


def _parts_of(module: nn.Module, declared: LatentAttention) -> LatentAttentionParts | None:
    """Return the parts of a module without any that the kernel does not know."""
    from server.model.blocks.latent_attention.triton_step import MOST_RANK  # noqa: PLC0415  may not be installed

    try:
        parts = LatentAttentionParts.find(module, keeps_state=False)
    except UnsupportedLayerError:
        return None
    if parts is None or parts.latent is None or parts.latent_norm is None or parts.expansion.rank > MOST_RANK:
        return None
    others = parts.gate, parts.indexer, parts.head_scales, parts.rope_norm, declared.sinks, temperature_of(module)
    is_plain = all(part is None for part in others) and parts.source < 0 and not parts.takes_raw
    if not is_plain or parts.has_gates_in_query or parts.query_scale != 1 or parts.latent_scale != 1:
        return None
    norm = parts.latent_norm
    is_known = norm.kind is NormKind.RMS and norm.bias is None and len(norm.weight) == parts.expansion.rank
    return parts if is_known and not declared.takes_choice else None


@contextmanager
def _numbered_keys(found: Iterable[LatentAttentionParts]) -> Iterator[None]:
    """Let projections give 1, 2, 3 ... as the rotated part of keys, whose order shows at position 0."""

    def number(rank: int) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
        def give(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
            numbers = torch.arange(1, output.shape[-1] - rank + 1, device=output.device).to(output.dtype)
            return torch.cat([output[..., :rank], numbers.expand(*output.shape[:-1], -1)], -1)

        return give

    handles = [
        parts.latent.register_forward_hook(number(parts.expansion.rank)) for parts in found if parts.latent is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rule(parts: LatentAttentionParts, rope: RopeKind, columns: PairAngles, call: RecordedCall) -> LatentRule | None:
    """Return the rule of a module's queries and latents; None if the kernel does not know it.

    Args:
        call: with ``_numbered_keys``.
    """
    from server.kernels.triton.rotation import HALVES, HALVES_OF_PAIRS, NOT_ROTATED, PAIRS  # noqa: PLC0415  as above
    from server.model.blocks.latent_attention.triton_step import LatentRule  # noqa: PLC0415  may not be installed

    norm, sizes = parts.latent_norm, (parts.expansion.nope_dim, parts.rope_dim)
    assert norm is not None
    rotation, step = NOT_ROTATED, 1
    if rope is not RopeKind.NONE:
        if call.num_rotated(columns) != parts.rope_dim:
            return None
        first, second, *_ = call.key[0, 0, parts.expansion.nope_dim :].tolist()
        are_sorted = second > 2.5 * first  # 3 after 1, instead of 2
        pairs = HALVES_OF_PAIRS if are_sorted else PAIRS
        rotation, step = pairs if rope is RopeKind.INTERLEAVED else HALVES, step_of(columns)
    return LatentRule(rotation.value, step, *sizes, norm.weight.to(call.key.device), norm.epsilon)
