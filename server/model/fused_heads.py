"""Attention modules of a CUDA device that project, prepare their heads in one launch, and attend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from server.kernels.triton.available import runs_on
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
from server.model.blocks.grouped_attention.parts import GroupedAttentionParts
from server.model.blocks.norms import Norm
from server.model.hooks import AttentionOptions, current_hooks
from server.model.joined_linears import JoinedLinears
from server.model.transformers_hooks.probe import IsolatedTokens

if TYPE_CHECKING:
    from server.kernels.triton.head_preparation import HeadRule, ProjectedHeads

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
        from server.kernels.triton.head_preparation import ProjectedHeads  # noqa: PLC0415  may not be installed

        query, key, value = self._project(hidden.flatten(0, -2))
        cosines, sines = (query, query) if angles is None else (part[0] for part in angles)
        heads = ProjectedHeads(query, key, value, cosines, sines, self._rule)
        output = attend(self._module.layer_idx, heads, self._options)
        return self._parts.output(output.view(*hidden.shape[:-1], -1)), None

    def _project(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        parts = torch.split(self.projections(rows), self._sizes, 1)
        return [*parts, parts[-1]][:3]  # without a projection of their own, values are the keys


def fuse_heads(
    model: nn.Module, device: torch.device | None, run: Callable[[], None], others: Collection[nn.Module] = ()
) -> int:
    """Let attention modules prepare their heads in one launch; return how many do.

    A module does if it is grouped attention by its parts, and if what it calls attention with, and returns, is what
    these parts give by one of the known rules.

    Args:
        device: where Triton's kernels run; None for nowhere.
        run: runs some tokens through the model, each of which attends to itself alone.
        others: modules that stay as they are.
    """
    if device is None or not runs_on(device):
        return 0
    has_takers = any(getattr(module, TAKES_KEYS, False) for module in model.modules())
    found = {
        module: parts
        for module in model.modules()
        if module not in others and not (has_takers and getattr(module, GIVES_KEYS, False))
        if (parts := _parts_of(module)) is not None
    }
    count = 0
    for module, call in record_calls(found, run).items():
        fused = _fuse(found[module], call)
        if fused is not None:
            fused.projections.join()
            module.forward = fused
            count += 1
    log.info("%d attention layers prepare their heads in one launch", count)
    return count


def _parts_of(module: nn.Module) -> GroupedAttentionParts | None:
    if not hasattr(module, "layer_idx"):
        return None
    try:
        parts = GroupedAttentionParts.find(module, keeps_state=False)
    except UnsupportedLayerError:
        return None
    if parts is None or parts.gate is not None or parts.gate_bias is not None:
        return None
    return parts


@torch.inference_mode()
def _fuse(parts: GroupedAttentionParts, call: RecordedCall) -> FusedAttention | None:
    """Return the module with the rule by which it gives what it gave in a call; None if there is none."""
    query, options = call.attention.query, call.attention.options
    if options.chosen is not None or parts.query.out_features != len(query) * query.shape[-1]:
        return None
    for rule in _rules(parts, call):
        fused = FusedAttention(parts, options, rule)
        trial = _Trial(call.attention)
        output, _ = fused.run(trial.attend, call.hidden, call.angles)
        if trial.agrees and is_near(output, call.output):
            return fused
    return None


class _Trial:
    """Attention of single tokens to themselves, which compares queries, keys and values with those of a call."""

    def __init__(self, call: AttentionCall):
        self._call, self.agrees = call, False

    def attend(self, layer: int, heads: ProjectedHeads, options: AttentionOptions) -> torch.Tensor:
        from server.kernels.triton.decode_attention import PagedKeys  # noqa: PLC0415  may not be installed
        from server.kernels.triton.head_preparation import prepare  # noqa: PLC0415  as above

        call = self._call
        key_dim, value_dim, (kv_heads, count, _) = call.key.shape[-1], call.value.shape[-1], call.key.shape
        keys, values = (call.key.new_zeros(kv_heads, count, max(key_dim, value_dim)) for _ in range(2))
        cache = PagedKeys(keys, values, key_dim, value_dim, is_latent=False)
        slots = torch.arange(count, dtype=torch.int32, device=keys.device)
        query, key, value = prepare(heads, slots, cache, keeps_keys=True)
        pairs = (
            (query, call.query),
            (key, call.key),
            (value, call.value),
            (keys[..., :key_dim], call.key),
            (values[..., :value_dim], call.value),
        )
        self.agrees = all(is_near(own, other) for own, other in pairs)
        return IsolatedTokens().attend(layer, call.query, call.key, call.value, options).contiguous()


def _rules(parts: GroupedAttentionParts, call: RecordedCall) -> Iterator[HeadRule]:
    """Yield the rules that a module may follow."""
    from server.kernels.triton.head_preparation import HeadRule  # noqa: PLC0415  may not be installed
    from server.kernels.triton.heads import HALVES, NOT_ROTATED, PAIRS  # noqa: PLC0415  as above

    key_dim, device = call.attention.key.shape[-1], call.attention.key.device
    if (parts.query_norm is None) != (parts.key_norm is None):
        return
    norms: tuple[torch.Tensor | None, torch.Tensor | None, float] = None, None, 0.0
    value_norm = parts.value_norm
    if parts.query_norm is not None and parts.key_norm is not None:
        query, key = parts.query_norm, parts.key_norm
        if not _is_of_heads(query, key_dim) or not _is_of_heads(key, key_dim) or query.epsilon != key.epsilon:
            return
        norms = query.weight.to(device), key.weight.to(device), query.epsilon
    if value_norm is not None:
        is_alike = norms[0] is None or norms[2] == value_norm.epsilon
        if not is_alike or not _is_of_heads(value_norm, call.attention.value.shape[-1]):
            return
        norms = *norms[:2], value_norm.epsilon
    of_values = None if value_norm is None else value_norm.weight.to(device)
    angles = call.angles
    if angles is not None and are_of_rows(angles, call.attention.query.shape[1]):
        width = angles[0].shape[-1]
        kinds = [
            (HALVES, 1, width),
            (PAIRS, 1, width),
            (PAIRS, 2, width),
            (HALVES, 1, 2 * width),
            (PAIRS, 1, 2 * width),
        ]
        for rotation, step, rotated_dim in kinds:
            if rotated_dim <= key_dim and rotated_dim % 2 == 0:
                yield HeadRule(rotation.value, step, rotated_dim, *norms, value_norm=of_values)
    yield HeadRule(NOT_ROTATED.value, 1, 0, *norms, value_norm=of_values)


def _is_of_heads(norm: Norm, size: int) -> bool:
    return len(norm.weight) == size
