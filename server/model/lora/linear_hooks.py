"""Hooks by which linear layers of transformers' modules add what the adapters of a step add.

They are there only in steps with adapters, and only on layers that one of these changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from server.kernels.low_rank import add_low_rank
from server.model.adapters.step_adapters import StepAdapters
from server.model.architecture import head_of
from server.model.attention.mla import LatentProjection
from server.model.quantised.linear import QuantisedLinear

LINEARS = (nn.Linear, QuantisedLinear)
Rows = npt.NDArray[np.int64]
LinearCalls = dict[nn.Module, set[int]]  # numbers of rows that a layer was called with


@contextmanager
def add_to_linears(
    adapters: StepAdapters,
    linears: Mapping[str, nn.Module],
    head: nn.Module | None = None,
    head_rows: Sequence[int] = (),
    rows_now: Callable[[], torch.Tensor | None] = lambda: None,
) -> Iterator[None]:
    """Make linear layers add what adapters add to them.

    Args:
        linears: the layers of a model that adapters may change, by name.
        head: a layer among them that sees only some tokens.
        head_rows: these tokens.
        rows_now: returns the tokens that the running module sees; None for all.
    """
    chosen = np.asarray(head_rows, dtype=np.int64)

    def rows_of(module: nn.Module) -> Rows | None:
        if module is head:
            return chosen
        rows = rows_now()
        return None if rows is None else rows.cpu().numpy()

    names = dict.fromkeys(name for adapter in adapters.adapters for name in adapter.linears)
    handles = [
        linears[name].register_forward_hook(partial(_add, adapters, name, rows_of), with_kwargs=True)
        for name in names
        if name in linears  # others are routers
        if not isinstance(linears[name], LatentProjection)  # attention adds to these
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(  # noqa: PLR0917  (torch gives its hooks the last four by position)
    adapters: StepAdapters,
    name: str,
    rows_of: Callable[[nn.Module], Rows | None],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: torch.Tensor,
) -> torch.Tensor:
    given: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
    x, y = given.flatten(0, -2), output.flatten(0, -2)
    factors = adapters.factors_of_linear(name, rows_of(module), x)
    add_low_rank(factors, [adapter.linears.get(name, ()) for adapter in adapters.adapters], x, y)
    return y.view(output.shape)


@contextmanager
def watch_linears(model: nn.Module) -> Iterator[LinearCalls]:
    """Record the numbers of rows that each linear layer is called with, -1 for one that returns something else."""
    seen: LinearCalls = {}

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
        is_linear = isinstance(output, torch.Tensor) and output.shape[:-1] == given.shape[:-1]
        seen.setdefault(module, set()).add(given.shape[:-1].numel() if is_linear else -1)

    handles = [
        module.register_forward_hook(watch, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, LINEARS)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def find_linears(model: PreTrainedModel, calls: LinearCalls, num_tokens: int | None) -> dict[str, nn.Module]:
    """Return the linear layers that adapters can add to, by name.

    Some models multiply by a layer's weights without calling it. Others call it with something else than tokens.

    Args:
        calls: recorded in a step of some tokens, of which the head saw one.
        num_tokens: of that step; None if layers may be called with any rows.
    """
    head = head_of(model)

    def takes_tokens(module: nn.Module) -> bool:
        if isinstance(module, LatentProjection):
            return True
        rows = calls.get(module, set())
        return bool(rows) and (-1 not in rows if num_tokens is None else rows == {1 if module is head else num_tokens})

    return {name: module for name, module in model.named_modules() if takes_tokens(module)}


def sizes_of(module: Any) -> tuple[int, int]:
    """Return inputs and outputs of a layer of ``find_linears``."""
    if isinstance(module, LatentProjection):
        return module.rank, module.expanded_dim
    return int(module.in_features), int(module.out_features)
