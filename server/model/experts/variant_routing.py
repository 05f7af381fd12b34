"""Runs the routers of variants in the modules of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from server.model.expert_variant import ExpertVariant
from server.model.experts.router import RouterWeights
from server.model.experts.step_variants import StepVariants

OfRows = Callable[[torch.Tensor], AbstractContextManager[Any]]

GROUPS = ("n_group", "num_group", "n_groups")
COUNTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")  # attributes of routers


@contextmanager
def variant_routers(
    model: nn.Module,
    routers: Mapping[int, RouterWeights],
    variants: StepVariants,
    of_rows: OfRows = nullcontext,
) -> Iterator[None]:
    """Run the router of each variant on the rows of its sequences, within the context.

    Args:
        model: the model that the routers' names belong to.
        routers: by layer.
        of_rows: returns the context in which a router runs that sees only some rows.
    """
    with ExitStack() as stack:
        for layer, router in routers.items():
            if any(layer in variant.layers and variant.layers[layer].router for variant in variants.variants):
                module = model.get_submodule(owner_of(router))
                stack.enter_context(replaced_forward(module, _RoutedBySet(module, router, layer, variants, of_rows)))
        yield


def owner_of(router: RouterWeights) -> str:
    """Return the name of the module that holds a router's matrix."""
    return router.names["weight"].rpartition(".")[0]


def unchangeable(model: nn.Module, router: RouterWeights) -> str | None:
    """Return the reason why a router can't have another number of rows; None if it can."""
    owner = owner_of(router)
    others = [name for name in router.names.values() if name.rpartition(".")[0] != owner]
    if others:
        return f"{others[0]} is not part of its router"
    module = model.get_submodule(owner)
    groups = [name for name in GROUPS if isinstance(count := getattr(module, name, None), int) and count > 1]
    return f"its router chooses among {groups[0]} groups of equal size" if groups else None


@contextmanager
def replaced_tensors(module: nn.Module, router: RouterWeights, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Give a router's module other tensors within the context.

    Args:
        tensors: by role (``weight``, ``bias``, ``correction``).
    """
    own: Any = module
    num_experts = router.weight.shape[0]
    counts = {name: value for name in COUNTS if (value := getattr(own, name, None)) == num_experts}
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for role, tensor in tensors.items():
            name = router.names[role].rpartition(".")[2]
            place = own._parameters if name in own._parameters else own._buffers  # noqa: SLF001
            before.append((place, name, place[name]))
            old = place[name]
            value = tensor.to(old.dtype).view(*old.shape[:-1], -1) if old.ndim > tensor.ndim else tensor.to(old.dtype)
            place[name] = nn.Parameter(value, requires_grad=False) if place is own._parameters else value  # noqa: SLF001
        if "weight" in tensors:
            for name in counts:
                setattr(own, name, tensors["weight"].shape[0])
        yield
    finally:
        for place, name, value in before:
            place[name] = value
        for name, value in counts.items():
            setattr(own, name, value)


class _RoutedBySet:
    """A router's forward that runs each set's rows with the set's own router."""

    def __init__(self, module: nn.Module, router: RouterWeights, layer: int, variants: StepVariants, of_rows: OfRows):
        self._module, self._router, self._layer, self._variants = module, router, layer, variants
        self._of_rows = of_rows
        self._forward = module.forward

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        sets = torch.from_numpy(self._variants.sets_of_rows(self._layer, len(rows))).to(rows.device)
        leading = hidden_states.ndim - 1
        parts: list[tuple[torch.Tensor, Any]] = []
        for number in sorted(set(sets.tolist())):
            index = (sets == number).nonzero()[:, 0]
            given = rows[index].view(*[1] * (leading - 1), len(index), -1)
            with replaced_tensors(self._module, self._router, self._tensors(number)), self._of_rows(index):
                parts.append((index, self._forward(given, *args, **kwargs)))
        return _join(parts, len(rows))

    def _tensors(self, number: int) -> Mapping[str, torch.Tensor]:
        variant: ExpertVariant | None = self._variants.variants[number - 1] if number else None
        layer = None if variant is None else variant.layers.get(self._layer)
        return {} if layer is None else layer.router


@contextmanager
def replaced_forward(module: Any, forward: Any) -> Iterator[None]:
    """Call ``forward`` in the place of a module's own, within the context; contexts may be nested."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _join(parts: Sequence[tuple[torch.Tensor, Any]], num_rows: int) -> Any:
    """Put results of some rows each together, as results of all rows; narrower ones are padded with -infinity."""
    first = parts[0][1]
    if isinstance(first, tuple):
        return tuple(_join([(index, result[i]) for index, result in parts], num_rows) for i in range(len(first)))
    if not isinstance(first, torch.Tensor):
        return first
    has_batch = first.ndim > 1 and first.shape[0] == 1 and first.shape[1] == len(parts[0][0]) and first.ndim > 2  # noqa: PLR2004
    pieces = [(index, result[0] if has_batch else result) for index, result in parts]
    width = max(piece.shape[-1] for _, piece in pieces)
    shape = (num_rows, *pieces[0][1].shape[1:-1], width)
    fill = float("-inf") if first.is_floating_point() else 0
    joined = torch.full(shape, fill, dtype=first.dtype, device=first.device)
    for index, piece in pieces:
        joined[index, ..., : piece.shape[-1]] = piece
    return joined.unsqueeze(0) if has_batch else joined
