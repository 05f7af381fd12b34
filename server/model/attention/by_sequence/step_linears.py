"""StepLinears: linear layers of a module that runs sequence by sequence, which take the rows of all sequences at once.

Their weights are read once in a step, instead of once for each sequence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from server.model.quantised.linear import QuantisedLinear

LINEARS = (nn.Linear, QuantisedLinear)


class StepLinears:
    """The linear layers that take the module's own rows, and the one that returns its result.

    Args:
        module: whose layers they may be.
    """

    def __init__(self, module: nn.Module):
        self._known = [each for each in module.modules() if isinstance(each, LINEARS)]
        self._first: list[nn.Module] = []
        self._last: nn.Module | None = None
        self.rows = torch.empty(0)  # of the step, those of the running call

    @contextmanager
    def watch(self, rows: torch.Tensor) -> Iterator[list[Any]]:
        """Find the layers in a call of the module with ``rows (1, tokens, hidden)``; the list takes its output."""
        calls = Counter[nn.Module]()
        found: list[nn.Module] = []
        outputs: dict[nn.Module, torch.Tensor] = {}

        def after(layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            calls[layer] += 1
            outputs[layer] = output
            if torch.equal(args[0], rows):
                found.append(layer)

        hooks = [layer.register_forward_hook(after) for layer in self._known]
        results = list[Any]()
        try:
            yield results
        finally:
            for hook in hooks:
                hook.remove()
        first = results[0][0] if isinstance(results[0], tuple) else results[0]
        self._first = [layer for layer in found if calls[layer] == 1]
        self._last = next((layer for layer, output in outputs.items() if output is first and calls[layer] == 1), None)

    @contextmanager
    def of_step(self, rows: torch.Tensor) -> Iterator[None]:
        """Compute the first layers for ``rows (1, tokens, hidden)``; their calls return the results of ``self.rows``.

        The last layer returns its input, for ``finish``. Hooks of adapters see each call; the last layer runs in the
        calls if it has such hooks.
        """
        last = None if self._last is None or self._last._forward_hooks else self._last  # noqa: SLF001
        for layer in self._first:
            layer.forward = partial(self._result, layer.forward(rows)[0])
        if last is not None:
            last.forward = _given
        try:
            yield
        finally:
            for layer in (*self._first, *filter(None, [last])):
                del layer.forward

    def finish(self, output: Any) -> Any:
        """Run the last layer on what the calls returned, joined, if it did not run in them."""
        last = self._last
        if last is None or last._forward_hooks:  # noqa: SLF001
            return output
        return (last(output[0]), *output[1:]) if isinstance(output, tuple) else last(output)

    def _result(self, results: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return results.index_select(0, self.rows).view(*rows.shape[:-1], -1)


def _given(rows: torch.Tensor) -> torch.Tensor:
    return rows
