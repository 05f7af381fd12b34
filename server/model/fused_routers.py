"""Routers of a CUDA device that choose and weight experts in one launch after their product."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from server.kernels.native.structures.layers import Router, RouterKind
from server.kernels.triton.available import runs_on
from server.model.blocks.errors import UnsupportedLayerError
from server.model.native_layers.router_kinds import LEAST_AGREEMENT, ROWS, SPREADS, TOLERANCES, Trial, find_router_kind

if TYPE_CHECKING:
    from server.kernels.triton.router_choice import RouterRule

log = logging.getLogger(__name__)

MATRIX_DIMENSIONS = 2
SCALE = "routed_scaling_factor"  # attribute of a router
SCALE_ERROR = 1e-3  # of a scale that a trial found
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


def fuse_routers(model: nn.Module, device: torch.device | None) -> int:
    """Let the routers of a model choose in one launch; return how many do.

    A router does if it is a module with a matrix of its own that returns logits, weights and choices, and if one of the
    known ways to choose gives what it gives for random rows.

    Args:
        device: where Triton's kernels run; None for nowhere.
    """
    if device is None or not runs_on(device):
        return 0
    count = fuse_all(model, _matrix_of, _fuse, device)
    log.info("%d routers choose in one launch", count)
    return count


def fuse_all(
    model: nn.Module,
    find: Callable[[nn.Module], Any],
    fuse: Callable[[nn.Module, Any, torch.dtype], Callable[..., Any]],
    device: torch.device,
) -> int:
    """Replace the forward of each module that takes rows alone and has a fused one; return how many do.

    Args:
        find: returns a module's matrix of experts, or its linear layer; None if it can be no router.
        fuse: makes the forward of a module, what ``find`` returned, and the model's dtype; raises
            ``UnsupportedLayerError`` if it is of another kind.
    """
    count, dtype = 0, next(parameter.dtype for parameter in model.parameters())
    for module in model.modules():
        found = find(module)
        weight = found.weight if isinstance(found, nn.Linear) else found
        if weight is None or weight.device.type != device.type:
            continue
        if len(inspect.signature(module.forward).parameters) != 1:
            continue
        try:
            module.forward = fuse(module, found, dtype)
        except (UnsupportedLayerError, RuntimeError) as error:  # torch's, of a module that takes rows of another type
            log.debug("a %s chooses by torch: %s", type(module).__name__, error)
            continue
        count += 1
    return count


def _matrix_of(module: nn.Module) -> torch.Tensor | None:
    weight = module._parameters.get("weight")  # noqa: SLF001  as of routers, which have no public type
    is_matrix = weight is not None and weight.ndim == MATRIX_DIMENSIONS
    return weight if is_matrix and not isinstance(module, nn.Linear | nn.Embedding) else None


@torch.inference_mode()
def _fuse(module: Any, weight: torch.Tensor, dtype: torch.dtype) -> FusedRouter:
    """Return a router's forward in one launch.

    Args:
        dtype: of the rows that it is called with.

    Raises:
        UnsupportedLayerError: it is no router, or chooses in another way.
    """
    from server.kernels.triton.router_choice import MOST_EXPERTS, RouterRule  # noqa: PLC0415  may not be installed

    rows = _trial_rows(weight, dtype)
    output = module(rows)
    parts = parts_of(output, len(rows), len(weight))
    found = dict(zip(parts, output, strict=True))
    logits, weights, chosen = found[LOGITS], found[WEIGHTS], found[CHOSEN]
    is_wide, top_k = logits.dtype == torch.float32, chosen.shape[1]
    if len(weight) > MOST_EXPERTS or not are_near(_logits_of(module, rows, is_wide=is_wide), logits, dtype):
        raise UnsupportedLayerError("its logits are other than those of a linear layer")
    names = [
        name
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if tensor.numel() == len(weight) and name not in {"weight", "bias"}
    ]
    correction = names[0] if names else None
    shape = Router()
    shape.matrix.outputs, shape.top_k = len(weight), top_k
    values = None if correction is None else getattr(module, correction).cpu().double().flatten()
    trial = Trial(logits.cpu().double(), chosen.cpu(), weights.cpu().double())
    kind = find_router_kind(shape, module, values, trial, dtype)
    if kind.kind == RouterKind.SPARSE_MIXER:
        raise UnsupportedLayerError("no kernel has the sparse mixer")
    scales = [scale for scale in (1.0, getattr(module, SCALE, 1.0)) if abs(kind.scale - scale) <= SCALE_ERROR * scale]
    if not scales:
        raise UnsupportedLayerError(f"it scales weights by {kind.scale}")
    rule = RouterRule(
        int(kind.kind), top_k, int(kind.num_groups), int(kind.top_groups), bool(kind.is_by_best),
        bool(kind.is_normalised), scales[0],
    )  # fmt: skip
    fused = FusedRouter(module, rule, correction, parts, weights.dtype, is_wide=is_wide)
    check_choices(dict(zip(parts, fused(rows), strict=True)), found, dtype)
    return fused


def _trial_rows(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return rows so scaled that their scores are flat, moderate and peaked."""
    matrix, generator = weight.double().cpu(), torch.Generator().manual_seed(0)
    wanted = torch.tensor(SPREADS, dtype=torch.float64).repeat_interleave(ROWS).unsqueeze(1)
    rows = torch.randn((len(wanted), matrix.shape[1]), generator=generator, dtype=torch.float64)
    return (rows * wanted / (rows @ matrix.T).std(1, keepdim=True).clamp_min(1e-30)).to(weight.device, dtype)


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


def check_choices(own: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Compare choices and weights with those of the module.

    Raises:
        UnsupportedLayerError: they differ.
    """
    found, own_order = own[CHOSEN].cpu().sort(1)
    expected, order = wanted[CHOSEN].cpu().sort(1)
    is_same = (found == expected).all(1)
    given = own[WEIGHTS].cpu().double().gather(1, own_order)[is_same]
    weights = wanted[WEIGHTS].cpu().double().gather(1, order)[is_same]
    if float(is_same.double().mean()) < LEAST_AGREEMENT[dtype] or not are_near(given, weights, dtype):
        raise UnsupportedLayerError("it chooses in another way")


def are_near(own: torch.Tensor, other: torch.Tensor, dtype: torch.dtype) -> bool:
    error = (own.double() - other.double()).abs().max() / other.double().abs().max().clamp_min(1e-30)
    return float(error) <= TOLERANCES[dtype]
