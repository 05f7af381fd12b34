"""Attention modules of a CUDA device that project, prepare their heads in one launch, and attend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from server.kernels.native.structures.mixers import RopeKind
from server.kernels.triton.available import runs_on
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.grouped_attention.clips import clip_of
from server.model.blocks.grouped_attention.declaration import GroupedAttention
from server.model.blocks.grouped_attention.mixer import VALUE_SCALE
from server.model.blocks.grouped_attention.parts import GroupedAttentionParts
from server.model.blocks.workspace import PairAngles
from server.model.declarations.declaration import Declaration
from server.model.declarations.layers import mixers_of
from server.model.fused.joined_linears import JoinedLinears
from server.model.fused.recorded_calls import RecordedCall, angles_of, hidden_of, record_calls, step_of
from server.model.hooks import AttentionOptions, current_hooks

if TYPE_CHECKING:
    from server.model.blocks.grouped_attention.triton_step import HeadRule, ProjectedHeads

log = logging.getLogger(__name__)

# Attributes of modules that use another layer's keys and values, and of those that may give theirs (Gemma 4).
TAKES_KEYS, GIVES_KEYS = "is_kv_shared_layer", "store_full_length_kv"

Attend = Callable[[int, "ProjectedHeads", AttentionOptions], torch.Tensor]


class FusedAttention:
    """The call of an attention module with projections of queries, keys and values.

    In a step whose hooks don't attend to projections, or whose adapters change one, the module runs as it is.

    Args:
        parts: of the module.
        options: that the module calls attention with.
        rule: of its heads.
    """

    def __init__(self, parts: GroupedAttentionParts, options: AttentionOptions, rule: HeadRule):
        self._module, self._parts, self._options, self._rule = parts.module, parts, options, rule
        self._original = parts.module.forward
        linears = [linear for linear in (parts.query, parts.key, parts.value) if linear is not None]
        self.projections = JoinedLinears(linears)
        self._sizes = [linear.out_features for linear in linears]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        attend: Attend | None = getattr(current_hooks(), "attend_projected", None)
        if attend is None or self.projections.has_hooks:
            return self._original(*args, **kwargs)
        return self.run(attend, hidden_of(args, kwargs), angles_of(args, kwargs))

    def run(self, attend: Attend, hidden: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor] | None) -> Any:
        """Return what the module returns."""
        from server.model.blocks.grouped_attention.triton_step import ProjectedHeads  # noqa: PLC0415  may not be installed

        query, key, value = self._project(hidden.flatten(0, -2))
        cosines, sines = (query, query) if angles is None else (part[0] for part in angles)
        heads = ProjectedHeads(query, key, value, cosines, sines, self._rule)
        output = attend(self._module.layer_idx, heads, self._options)
        return self._parts.output(output.view(*hidden.shape[:-1], -1)), None

    def _project(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        parts = torch.split(self.projections(rows), self._sizes, 1)
        return [*parts, parts[-1]][:3]  # without a projection of their own, values are the keys


def fuse_heads(
    model: PreTrainedModel,
    declared: Declaration | None,
    device: torch.device | None,
    run: Callable[[], None],
    others: Collection[nn.Module] = (),
) -> int:
    """Let attention modules prepare their heads in one launch; return how many do.

    A module does if it is declared as grouped attention without parts that the kernel does not know.

    Args:
        declared: what the model is, if that is known.
        device: where Triton's kernels run; None for nowhere.
        run: runs some tokens through the model, each of which attends to itself alone.
        others: modules that stay as they are.
    """
    if declared is None or device is None or not runs_on(device):
        return 0
    has_takers = any(getattr(module, TAKES_KEYS, False) for module in model.modules())
    attentions = mixers_of(model, declared, GroupedAttention)
    found = {
        module: parts
        for module, attention in attentions.items()
        if module not in others and not (has_takers and getattr(module, GIVES_KEYS, False))
        if (parts := _parts_of(module, attention)) is not None
    }
    count = 0
    for module, call in record_calls(found, run).items():
        attention = attentions[module]
        columns = declared.rotary[attention.rotary].columns if declared.rotary else PairAngles.ALL
        rule = _rule(found[module], attention.rope, columns, call)
        if rule is not None:
            fused = FusedAttention(found[module], call.options, rule)
            fused.projections.join()
            module.forward = fused
            count += 1
    log.info("%d attention layers prepare their heads in one launch", count)
    return count


def _parts_of(module: nn.Module, declared: GroupedAttention) -> GroupedAttentionParts | None:
    """Return the parts of a module without any that the kernel does not know."""
    try:
        parts = GroupedAttentionParts.find(module, keeps_state=False)
    except UnsupportedLayerError:
        return None
    if parts is None or parts.key is None or parts.convolutions or parts.mixing is not None:
        return None
    others = parts.gate, parts.gate_bias, parts.indexer, parts.pools, parts.relative, parts.result_norm
    is_plain = all(part is None for part in (*others, declared.query_scale)) and not declared.norms_rotated
    return parts if is_plain and not clip_of(module) and getattr(module, VALUE_SCALE, 1.0) == 1 else None


def _rule(parts: GroupedAttentionParts, rope: RopeKind, columns: PairAngles, call: RecordedCall) -> HeadRule | None:
    """Return the rule of a module's heads; None if the kernel does not know it."""
    from server.kernels.triton.rotation import HALVES, NOT_ROTATED, PAIRS  # noqa: PLC0415  as above
    from server.model.blocks.grouped_attention.triton_step import HeadRule  # noqa: PLC0415  may not be installed

    heads, _, key_dim = call.query.shape
    options, rotated, step = call.options, 0, 1
    if options.chosen is not None or options.bias is not None or parts.query.out_features != heads * key_dim:
        return None
    rotation = {RopeKind.NONE: NOT_ROTATED, RopeKind.HALVES: HALVES, RopeKind.INTERLEAVED: PAIRS}[rope]
    if rope is not RopeKind.NONE:
        rotated, step = call.num_rotated(columns), step_of(columns)
        if not 0 < rotated <= key_dim:
            return None
    norms = parts.query_norm, parts.key_norm, parts.value_norm
    sizes = key_dim, key_dim, call.value.shape[-1]
    if (parts.query_norm is None) != (parts.key_norm is None):
        return None
    if any(norm is not None and len(norm.weight) != size for norm, size in zip(norms, sizes, strict=True)):
        return None
    epsilons = {norm.epsilon for norm in norms if norm is not None}
    if len(epsilons) > 1:
        return None
    query, key, value = (None if norm is None else norm.weight.to(call.key.device) for norm in norms)
    return HeadRule(rotation.value, step, rotated, query, key, max(epsilons, default=0.0), value_norm=value)
