"""Routers of a CUDA device that choose and weight experts in one launch after their product."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from server.kernels.native.structures.layers import RouterKind
from server.kernels.triton.available import runs_on
from server.model.blocks.errors import UnsupportedLayerError
from server.model.declarations.declaration import Router
from server.model.fused.samples import is_near, sample_of

if TYPE_CHECKING:
    from server.kernels.triton.router_choice import RouterRule

log = logging.getLogger(__name__)

MATRIX_DIMENSIONS = 2
WEIGHT = "weight"  # attribute of a router: its matrix
ROWS = 4  # that a copy of a router is called with
LOGITS, WEIGHTS, CHOSEN = "logits", "weights", "chosen"


class FusedRouter:
    """The forward of a router that returns logits, weights and choices.

    Tensors are those that the module has when it is called, so that variants may replace them.

    Args:
        correction: the name of what is added to scores for the choice.
        is_wide: logits are computed in float32.
        parts: what the module returns, in order.
        dtype: of weights.
    """

    def __init__(
        self, module: Any, rule: RouterRule, correction: str | None, parts: Sequence[str], dtype: torch.dtype,
        *, is_wide: bool,
    ):  # fmt: skip
        self._module, self._rule, self._correction, self._parts = module, rule, correction, parts
        self._dtype, self._is_wide = dtype, is_wide

    def __call__(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        from server.kernels.triton.router_choice import choose  # noqa: PLC0415  Triton may not be installed

        logits = _logits_of(self._module, hidden_states, is_wide=self._is_wide)
        correction = None if self._correction is None else getattr(self._module, self._correction)
        chosen, weights = choose(logits, correction, self._rule, self._dtype)
        made = {LOGITS: logits, WEIGHTS: weights, CHOSEN: chosen}
        return tuple(made[part] for part in self._parts)


def fuse_routers(routers: Mapping[nn.Module, Router], dtype: torch.dtype, device: torch.device | None) -> int:
    """Let the routers of a model choose in one launch; return how many do.

    A router does if it is a module with a matrix of its own that returns logits, weights and choices, and if it makes
    them itself as was declared, which a copy of it with other weights shows.

    Args:
        routers: what was declared of them, by the modules that own their matrices.
        dtype: of the model.
        device: where Triton's kernels run; None for nowhere.
    """
    if device is None or not runs_on(device):
        return 0
    count = fuse_all(
        {module: each for module, each in routers.items() if each.weight is not None}, _fuse, dtype, device
    )
    log.info("%d routers choose in one launch", count)
    return count


def fuse_all(
    routers: Mapping[nn.Module, Router],
    fuse: Callable[[nn.Module, Router, torch.dtype], Callable[..., Any]],
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """Replace the forward of each router that takes rows alone and has a fused one; return how many do.

    Args:
        routers: what was declared of them, by module.
        fuse: makes the forward of a module that is called with rows of a dtype; raises ``UnsupportedLayerError`` if
            there is none.
        dtype: of the model.
    """
    count = 0
    for module, declared in routers.items():
        is_there = any(parameter.device.type == device.type for parameter in module.parameters())
        if not is_there or len(inspect.signature(module.forward).parameters) != 1:
            continue
        try:
            module.forward = fuse(module, declared, dtype)
        except (UnsupportedLayerError, RuntimeError) as error:  # torch's, of a module that takes rows of another type
            log.debug("a %s chooses by torch: %s", type(module).__name__, error)
            continue
        count += 1
    return count


@torch.inference_mode()
def _fuse(module: Any, declared: Router, dtype: torch.dtype) -> FusedRouter:
    """Return a router's forward in one launch.

    Args:
        dtype: of the rows that it is called with.

    Raises:
        UnsupportedLayerError: it is no router, or chooses in another way.
    """
    owner, _, weight = (declared.weight or "").rpartition(".")
    correction = (declared.correction or "").removeprefix(f"{owner}.") or None
    if isinstance(module, nn.Linear | nn.Embedding) or weight != WEIGHT or (correction and "." in correction):
        raise UnsupportedLayerError("its matrix or correction has another place")
    rule = rule_of(declared, len(module.weight))
    output = module(torch.zeros((1, module.weight.shape[1]), device=module.weight.device, dtype=dtype))
    parts = parts_of(output, 1, len(module.weight))
    made = dict(zip(parts, output, strict=True))
    is_wide = made[LOGITS].dtype == torch.float32
    sample = sample_of(module)
    rows = sample_rows(sample.weight)
    check_choices(FusedRouter(sample, rule, correction, parts, torch.float32, is_wide=True)(rows), sample(rows), parts)
    return FusedRouter(module, rule, correction, parts, made[WEIGHTS].dtype, is_wide=is_wide)


def rule_of(declared: Router, num_experts: int) -> RouterRule:
    """Return a router's rule for the kernel.

    Raises:
        UnsupportedLayerError: the kernel does not have it.
    """
    from server.kernels.triton.router_choice import MOST_EXPERTS, RouterRule  # noqa: PLC0415  may not be installed

    is_known = declared.kind is not RouterKind.SPARSE_MIXER and not declared.has_table and not declared.num_shared
    if not is_known or num_experts > MOST_EXPERTS:
        raise UnsupportedLayerError(f"no kernel has {declared.kind.name} for {num_experts} experts")
    return RouterRule(
        int(declared.kind), declared.top_k, declared.groups, declared.top_groups, declared.is_by_best,
        declared.is_normalised, declared.scale,
    )  # fmt: skip


def sample_rows(weight: torch.Tensor) -> torch.Tensor:
    """Return rows for a copy with such a matrix."""
    random = torch.Generator().manual_seed(1)
    return torch.randn((ROWS, weight.shape[1]), generator=random).to(weight.device)


def parts_of(output: Any, num_rows: int, num_experts: int) -> list[str]:
    """Return what the tensors are that a router returns.

    Raises:
        UnsupportedLayerError: it is none.
    """
    parts = []
    for each in output if isinstance(output, tuple) else ():
        if not isinstance(each, torch.Tensor) or each.ndim != MATRIX_DIMENSIONS or len(each) != num_rows:
            break
        parts.append(CHOSEN if not each.is_floating_point() else LOGITS if each.shape[1] == num_experts else WEIGHTS)
    if sorted(parts) != sorted((LOGITS, WEIGHTS, CHOSEN)) or len(parts) != len(output):
        raise UnsupportedLayerError("it does not return logits, weights and choices")
    return parts


def _logits_of(module: Any, hidden_states: torch.Tensor, *, is_wide: bool) -> torch.Tensor:
    weight, bias = module.weight, module._parameters.get("bias")  # noqa: SLF001  as above
    rows = hidden_states.reshape(-1, weight.shape[1])
    if is_wide:
        rows, weight, bias = rows.float(), weight.float(), None if bias is None else bias.float()
    return F.linear(rows, weight, bias)


def check_choices(own: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], parts: Sequence[str]) -> None:
    """Compare what a copy of a router returns with what its module does.

    Raises:
        UnsupportedLayerError: they differ.
    """
    found, expected = (dict(zip(parts, each, strict=True)) for each in (own, wanted))
    (chosen, own_order), (others, order) = found[CHOSEN].sort(1), expected[CHOSEN].sort(1)
    if not torch.equal(chosen.long(), others.long()):
        raise UnsupportedLayerError("it chooses in another way")
    own_weights, weights = found[WEIGHTS].gather(1, own_order), expected[WEIGHTS].gather(1, order)
    if not is_near(found[LOGITS], expected[LOGITS]) or not is_near(own_weights, weights):
        raise UnsupportedLayerError("it weights in another way")
