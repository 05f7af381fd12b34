"""Adds what the adapters of a step add to routers that are modules of transformers.

Such a module returns the experts that it chose, and not the product that adapters add to. So the product is found
within the module's forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from server.kernels.low_rank import add_low_rank
from server.model.adapters.step_adapters import StepAdapters
from server.model.experts.router import RouterWeights
from server.model.experts.step_variants import StepVariants
from server.model.experts.variant_routing import OfRows, owner_of, replaced_forward, variant_routers
from server.model.lora.linear_hooks import LINEARS

AfterProduct = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
RouterCalls = dict[nn.Module, list[list[int]]]  # of each call: the rows of each product by the module's own matrix
MATRIX_DIMENSIONS = 2


class _Products(TorchFunctionMode):
    """Calls ``after`` with the input, the matrix and the output of each ``linear`` with matrices of some width."""

    def __init__(self, width: int, after: AfterProduct):
        super().__init__()
        self._width, self._after = width, after

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.linear and args[1].ndim == MATRIX_DIMENSIONS and args[1].shape[1] == self._width:
            self._after(args[0], args[1], output)
        return output


@contextmanager
def watch_routers(model: nn.Module) -> Iterator[RouterCalls]:
    """Record the products by matrices of their own in modules that are no linear layers."""
    seen: RouterCalls = {}
    with ExitStack() as stack:
        for module in model.modules():
            own: Any = module
            weight = own._parameters.get("weight")  # noqa: SLF001
            if weight is None or weight.ndim != MATRIX_DIMENSIONS or isinstance(module, (*LINEARS, nn.Embedding)):
                continue
            stack.enter_context(replaced_forward(module, _Watched(own, seen.setdefault(module, []))))
        yield seen


def find_routers_with_products(
    model: nn.Module, routers: Mapping[int, RouterWeights], calls: RouterCalls, num_tokens: int | None
) -> dict[str, int]:
    """Return the layer of each router that adapters can add to, by the name of its module.

    Args:
        routers: by layer.
        calls: recorded in a step of some tokens.
        num_tokens: of that step; None if layers may be called with any rows.
    """
    found = {}
    for layer, router in routers.items():
        name = owner_of(router)
        seen = calls.get(model.get_submodule(name), []) if router.names["weight"] == f"{name}.weight" else []
        if seen and all(len(rows) == 1 and rows[0] == (num_tokens or rows[0]) for rows in seen):
            found[name] = layer
    return found


@contextmanager
def routed_by_weights(
    model: nn.Module,
    routers: Mapping[int, RouterWeights],
    layers: Mapping[str, int],
    variants: StepVariants | None,
    adapters: StepAdapters | None,
) -> Iterator[None]:
    """Run the routers of a step with what its variants and adapters change of them, within the context.

    Args:
        model: the model that the routers' names belong to.
        routers: by layer.
        layers: see ``RouterAdditions``.
    """
    with ExitStack() as stack:
        additions = None if adapters is None else RouterAdditions(adapters, model, layers)
        if additions is not None:
            stack.enter_context(additions.added())
        if variants is not None:
            of_rows: OfRows = nullcontext if additions is None else additions.of_rows
            stack.enter_context(variant_routers(model, routers, variants, of_rows))
        yield


class RouterAdditions:
    """Makes routers add what the adapters of a step add to them.

    Args:
        layers: the layer of each router that adapters can add to, by the name of its module.
    """

    def __init__(self, adapters: StepAdapters, model: nn.Module, layers: Mapping[str, int]):
        used = {name for adapter in adapters.adapters for name in adapter.linears}
        self._adapters, self._model = adapters, model
        self._layers = {name: layer for name, layer in layers.items() if name in used}
        self._chosen: torch.Tensor | None = None  # rows that the running router sees; None for all

    @contextmanager
    def added(self) -> Iterator[None]:
        """Make the routers add what the adapters add, within the context."""
        with ExitStack() as stack:
            for name, layer in self._layers.items():
                module: Any = self._model.get_submodule(name)
                products = _Products(module.weight.shape[1], partial(self._add, name, layer))
                stack.enter_context(replaced_forward(module, partial(_run, products, module.forward)))
            yield

    @contextmanager
    def of_rows(self, rows: torch.Tensor) -> Iterator[None]:
        """Say that routers see only some rows of their layers, within the context."""
        self._chosen = rows
        try:
            yield
        finally:
            self._chosen = None

    def _add(self, name: str, layer: int, given: torch.Tensor, matrix: torch.Tensor, output: torch.Tensor) -> None:
        x, y = given.flatten(0, -2), output.flatten(0, -2)
        rows = self._adapters.rows_of_router(layer)
        if self._chosen is not None:
            chosen = self._chosen.cpu().numpy()
            rows = chosen if rows is None else rows[chosen]
        factors = self._adapters.factors_of_linear(name, rows, x)
        parts = [adapter.linears.get(name, ()) for adapter in self._adapters.adapters]
        width = max(part.first_output + len(part.up) for of_one in parts for part in of_one)
        added = y.new_zeros(len(y), width)
        add_low_rank(factors, parts, x, added)
        count = min(width, matrix.shape[0])  # the router of a variant has as many outputs as it has experts
        y[:, :count] += added[:, :count]


def _run(products: _Products, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with products:
        return forward(*args, **kwargs)


class _Watched:
    """A module's forward, whose products are recorded."""

    def __init__(self, module: Any, calls: list[list[int]]):
        self._forward, self._shape, self._calls = module.forward, module.weight.shape, calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._calls.append([])
        return _run(_Products(self._shape[1], self._record), self._forward, *args, **kwargs)

    def _record(self, given: torch.Tensor, matrix: torch.Tensor, output: torch.Tensor) -> None:
        del output
        if matrix.shape == self._shape:
            self._calls[-1].append(given.shape[:-1].numel())
