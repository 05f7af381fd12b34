"""LayerRecorder: records the input and output of each block in a pass of a model's decoder layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.norms import is_norm

NORMS_AROUND = 2  # of a module that holds a mixer and the norms on both sides of it


class SubLayer(nn.Module):
    """One of the blocks that a decoder layer consists of, where it has several (LongCat): the modules that it calls.

    Args:
        children: by name in the layer.
    """

    def __init__(self, children: Sequence[tuple[str, nn.Module]]):
        super().__init__()
        for name, child in children:
            self.add_module(name.replace(".", "_"), child)


def children_of(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of a layer by name; of a child that holds two norms and one other part (DBRX), its children."""
    for name, child in layer.named_children():
        inner = [*child.named_children()]
        if len(inner) == NORMS_AROUND + 1 and sum(is_norm(each) for _, each in inner) == NORMS_AROUND:
            yield from ((f"{name}.{own}", each) for own, each in inner)
        else:
            yield name, child


class LayerRecorder:
    """Follows the calls of one decoder layer after the other, and divides those that consist of several blocks.

    Such a layer has its parts in lists. A block ends where the first part of the next one is called, whose input is the
    hidden states between both.
    """

    def __init__(self) -> None:
        self._layer: Any = None
        self._known: dict[nn.Module, Sequence[tuple[str, int, nn.Module]]] = {}

    def parts_of(self, layer: nn.Module) -> Sequence[tuple[str, int, nn.Module]]:
        """Return the parts of a layer: name, number of the block, -1 if that is not known, and the module."""
        if layer not in self._known:  # hooks of norms would record what shows that they are norms
            self._known[layer] = self._find_parts(layer)
        return self._known[layer]

    @staticmethod
    def _find_parts(layer: nn.Module) -> Sequence[tuple[str, int, nn.Module]]:
        lists = [child for child in layer.children() if isinstance(child, nn.ModuleList)]
        if len({len(each) for each in lists}) != 1 or len(lists[0]) == 1:
            return [(name, 0, child) for name, child in children_of(layer)]
        parts: list[tuple[str, int, nn.Module]] = []
        for name, child in layer.named_children():
            if isinstance(child, nn.ModuleList):
                parts += [(f"{name}.{block}", block, each) for block, each in enumerate(child)]
            else:
                parts.append((name, -1, child))
        return parts

    def begin(self, layer: nn.Module, hidden: torch.Tensor, positions: Any) -> None:
        """Begin a layer.

        Args:
            hidden: its input, ``(1, tokens, hidden)``.
            positions: cosines and sines that it takes.
        """
        self._layer, self.positions = layer, positions
        parts = self.parts_of(layer)
        self._parts = {module: (name, block) for name, block, module in parts}
        self._num_blocks = 1 + max((block for _, block, _ in parts), default=0)
        self.block, self.given = 0, hidden[0].float().clone()
        self._called: dict[nn.Module, int] = {}

    def is_next(self, module: nn.Module) -> bool:
        """Return whether a part that is called begins the next block."""
        return self._parts[module][1] > self.block

    def divide(self, hidden: torch.Tensor) -> None:
        """Begin the next block of the layer, whose input is the output of the last one."""
        self.block, self.given = self.block + 1, hidden[0].float().clone()

    def count(self, module: nn.Module) -> None:
        """Count a part as one of the block that runs."""
        self._called[module] = self.block

    def blocks(self) -> Sequence[nn.Module]:
        """Return the blocks of the layer that has run: the layer itself, if it is one.

        Raises:
            UnsupportedLayerError: it did not call all of its parts in their order.
        """
        if self._num_blocks == 1:
            return [self._layer]
        by_block: list[list[tuple[str, nn.Module]]] = [[] for _ in range(self._num_blocks)]
        for module, (name, block) in self._parts.items():
            found = self._called.get(module)
            if found is None or block not in (-1, found):
                raise UnsupportedLayerError(f"its layers call their part {name} in another order")
            by_block[found].append((name, module))
        return [SubLayer(children) for children in by_block]
