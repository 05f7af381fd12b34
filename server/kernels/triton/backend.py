"""TritonBackend: runs a layer's experts on the slots of a device's arena, in two or three launches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch
import triton

from server.kernels.backend import ExpertBackend, PartialRun, ReadyExperts, Rooms, SortedRows
from server.kernels.batch_invariant import is_batch_invariant
from server.kernels.formats.file_blocks.codebooks import codebook_on
from server.kernels.native.structures.experts import ExpertShape
from server.kernels.triton import experts as kernels
from server.kernels.triton.grouping import group_choices
from server.kernels.triton.launch import ExpertLaunch, Tiles
from server.kernels.upload import upload

FEW_ROWS = 4  # choices an expert, on average, up to which a program for each is faster; calculated, never measured


class TritonBackend:
    """See ``ExpertBackend`` and ``TableBackend``.

    A step with few choices for each expert of the layer reads an expert's weights once for each choice, one with many
    once for each tile of choices. Which of both it is depends on the number of tokens alone; batch-invariant steps
    always are of the first kind.

    Args:
        shape: the result of ``expert_shape`` for the layer, none of which ``unsupported`` names.
        num_experts: of the layer.
        fallback: runs steps whose adapters add to products of experts.
        scales_input: the router's weights scale an expert's input rows instead of its results.
    """

    def __init__(
        self,
        shape: ExpertShape,
        num_experts: int,
        fallback: ExpertBackend,
        *,
        scales_input: bool = False,
        tiles: Tiles | None = None,
    ):
        self._launch = ExpertLaunch.of(shape, scales_input=scales_input)
        self._num_experts, self._fallback, self._tiles = num_experts, fallback, tiles or Tiles.of(self._launch)

    def run_unweighted(
        self, rows: SortedRows, batches: Iterable[ReadyExperts], between: Callable[[], None], *, is_exact: bool
    ) -> int:
        """See ``ExpertBackend``; rows in the CPU's memory are not this backend's."""
        return self._fallback.run_unweighted(rows, batches, between, is_exact=is_exact)

    def run(self, rows: SortedRows, batches: Iterable[ReadyExperts], between: Callable[[], None]) -> torch.Tensor:
        """See ``ExpertBackend``. Launches of a batch run while further experts are loaded."""
        if rows.additions is not None:
            return self._fallback.run(rows, batches, between)
        layer = self._layer(rows.hidden_states, rows.weights, len(rows.spans))
        layer.number(rows)
        for ready in batches:
            between()
            layer.run_first(ready)
            if ready.gives_back:
                layer.run_second()
        return layer.finish()

    def begin(
        self,
        hidden_states: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        num_experts: int,
        *,
        rooms: Rooms | None = None,
    ) -> PartialRun:
        """See ``TableBackend``."""
        layer = self._layer(hidden_states, weights, num_experts, rooms)
        layer.choose(chosen.contiguous().view(-1))
        return layer

    def run_by_table(
        self,
        hidden_states: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        slots: torch.Tensor,
        arena: torch.Tensor,
    ) -> torch.Tensor:
        """See ``TableBackend``."""
        layer = self._layer(hidden_states, weights, len(slots))
        layer.choose(chosen.contiguous().view(-1))
        layer.run_by_table(slots, arena)
        return layer.finish()

    def _layer(
        self, hidden_states: torch.Tensor, weights: torch.Tensor, num_experts: int, rooms: Rooms | None = None
    ) -> _Layer:
        is_few = is_batch_invariant() or weights.numel() <= FEW_ROWS * self._num_experts
        kind = _FewRows if is_few else _ManyRows
        return kind(self._launch, self._tiles, hidden_states, weights, num_experts=num_experts, rooms=rooms or Rooms())


class _Layer(ABC):
    """One run of a layer: its buffers on the device, and what has been computed of it.

    Args:
        num_experts: that choices may be of.
        rooms: for what is kept until the end of the run.
    """

    def __init__(
        self,
        launch: ExpertLaunch,
        tiles: Tiles,
        hidden_states: torch.Tensor,
        weights: torch.Tensor,
        *,
        num_experts: int,
        rooms: Rooms,
    ):
        self.launch, self.tiles, self.num_experts, self._rooms = launch, tiles, max(1, num_experts), rooms
        self.x = hidden_states.contiguous()
        self.weights = weights.contiguous()
        self.num_tokens, self.top_k = weights.shape
        self.num_choices = weights.numel()
        self._number_of: dict[Any, int] = {}
        self._numbers = np.empty(0, np.int32)  # of each choice's expert
        self._experts: torch.Tensor | None = None  # the same on the device
        self.hidden = rooms.take("hidden", self.x, (self.num_choices, launch.intermediate), self.x.dtype)
        self._arena: tuple[torch.Tensor, int] | None = None
        self._pending: list[tuple[int, int]] = []  # expert and slot of those whose second product is to come
        self._pending_table: torch.Tensor | None = None  # their slots, if one batch has them all
        self._products: torch.Tensor | None = None

    def number(self, rows: SortedRows) -> None:
        """Number the experts that are chosen."""
        self._number_of = {key: number for number, key in enumerate(rows.spans)}
        self._numbers = np.full(self.num_choices, -1, np.int32)
        for number, (start, end) in enumerate(rows.spans.values()):
            self._numbers[rows.order[start:end]] = number

    def choose(self, chosen: torch.Tensor) -> None:
        """Take the router's choices from the device."""
        self._experts = self._own_choices(chosen)

    def run_slots(self, slots: torch.Tensor, arena: torch.Tensor) -> None:
        """See ``PartialRun``."""
        self.run_by_table(slots, arena)
        self.run_second()

    def put(self, choices: torch.Tensor, products: torch.Tensor) -> None:
        """See ``PartialRun``."""
        if self._products is None:
            self._products = self._empty_products()
        self._products.index_copy_(0, choices, products.to(self._products.dtype))

    def run_by_table(self, slots: torch.Tensor, arena: torch.Tensor) -> None:
        """Run gate and up of all experts that have a slot."""
        self._arena, self._pending_table = (arena, arena.stride(0)), slots
        self._launch_first(slots)

    def run_first(self, ready: ReadyExperts) -> None:
        """Run gate and up of a batch of experts."""
        found = [(self._number_of[key], slot) for key, slot in zip(ready.keys, ready.slots.tolist(), strict=True)]
        self._arena = ready.arena, ready.arena.stride(0)
        table = self._table(found)
        self._launch_first(table)
        self._pending_table = None if self._pending else table
        self._pending += found

    def run_second(self) -> None:
        """Run down of the experts that have come, whose slots may then be overwritten."""
        if self._products is None:
            self._products = self._empty_products()
        if self.has_pending:
            self._launch_second(self.pending_table, self._products)
            self._pending, self._pending_table = [], None

    def finish(self) -> torch.Tensor:
        """Return the weighted sums, ``(tokens, hidden)``."""
        self.run_second()
        assert self._products is not None
        output = torch.empty_like(self.x)
        options = {"SCALES_INPUT": self.launch.second_options["SCALES_INPUT"], "BLOCK_N": 256}
        grid = (self.num_tokens, triton.cdiv(self.launch.hidden, 256))
        kernels.add_choices[grid](
            self._products, self.experts, self.num_experts, self.weights, output,
            self.top_k, self.launch.hidden, **options,
        )  # fmt: skip
        return output

    @property
    def has_pending(self) -> bool:
        """True if the second product of some experts is to come."""
        return bool(self._pending) or self._pending_table is not None

    @property
    def arena(self) -> tuple[torch.Tensor, int]:
        """The first byte of the arena, and the bytes of a slot."""
        assert self._arena is not None
        return self._arena

    def _codebook(self, options: dict[str, Any]) -> torch.Tensor:
        """The codebook of a product's format; any memory if it has none."""
        codebook = codebook_on(self.x.device, options["FORM"])
        return self.arena[0] if codebook is None else codebook

    @property
    def experts(self) -> torch.Tensor:
        """The expert of each choice, -1 or one that is too large for none."""
        if self._experts is None:
            self._experts = upload(self._numbers, self.x.device)
        return self._experts

    @property
    def pending_table(self) -> torch.Tensor:
        """The slots of the experts whose second product is to come."""
        return self._table(self._pending) if self._pending_table is None else self._pending_table

    def _table(self, found: list[tuple[int, int]]) -> torch.Tensor:
        """Return the slot of each expert of the layer, int32, -1 for those that are not to be run."""
        table = np.full(self.num_experts, -1, np.int32)
        for number, slot in found:
            table[number] = slot
        if self._experts is not None:
            return upload(table, self.x.device)
        both = upload(np.concatenate([self._numbers, table]), self.x.device)  # one copy instead of two
        self._experts = both[: self.num_choices]
        return both[self.num_choices :]

    def _own_choices(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return choices of the router as ``experts``."""
        return chosen

    @abstractmethod
    def _empty_products(self) -> torch.Tensor:
        """Return memory for the product of each choice, ``(choices, hidden)``."""

    @abstractmethod
    def _launch_first(self, slots: torch.Tensor) -> None:
        """Run gate and up of the experts that have a slot."""

    @abstractmethod
    def _launch_second(self, slots: torch.Tensor, products: torch.Tensor) -> None:
        """Run down of the experts that have a slot."""


class _FewRows(_Layer):
    """A program for each choice and tile of outputs."""

    def finish(self) -> torch.Tensor:
        if self._products is not None or not self.has_pending:
            return super().finish()
        output = torch.empty_like(self.x)  # all experts are in their slots: weight and add in the same launch
        self._multiply_down(self.pending_table, output, self.num_tokens, adds=True)
        return output

    def _empty_products(self) -> torch.Tensor:
        return self._rooms.take("products", self.x, (self.num_choices, self.launch.hidden), torch.float32)

    def _launch_first(self, slots: torch.Tensor) -> None:
        launch, tiles = self.launch, self.tiles
        grid = (self.num_choices, triton.cdiv(launch.intermediate, tiles.few_outputs))
        kernels.first_few[grid](
            *self.arena, self._codebook(launch.first_options), slots, self.num_experts, self.experts, self.x,
            self.weights, self.hidden, self.top_k, launch.hidden, launch.intermediate, *launch.first,
            **launch.first_options, **self._blocks,
        )  # fmt: skip

    def _launch_second(self, slots: torch.Tensor, products: torch.Tensor) -> None:
        self._multiply_down(slots, products, self.num_choices, adds=False)

    def _multiply_down(self, slots: torch.Tensor, output: torch.Tensor, num_rows: int, *, adds: bool) -> None:
        launch = self.launch
        grid = (num_rows, triton.cdiv(launch.hidden, self.tiles.few_outputs))
        kernels.second_few[grid](
            *self.arena, self._codebook(launch.second_options), slots, self.num_experts, self.experts, self.hidden,
            self.weights, output, self.top_k, launch.hidden, launch.intermediate, *launch.second,
            **launch.second_options, ADDS=adds, **self._blocks,
        )  # fmt: skip

    @property
    def _blocks(self) -> dict[str, int]:
        return {"BLOCK_N": self.tiles.few_outputs, "BLOCK_K": self.tiles.few_inputs}


class _ManyRows(_Layer):
    """A program for each tile of choices of one expert and tile of outputs."""

    @cached_property
    def _groups(self) -> tuple[torch.Tensor, torch.Tensor]:
        return group_choices(self.experts, self.num_experts, self.tiles.many_rows)

    def _own_choices(self, chosen: torch.Tensor) -> torch.Tensor:
        return torch.where(chosen < self.num_experts, chosen, -1).int()

    def _empty_products(self) -> torch.Tensor:
        return self._rooms.take("products", self.x, (self.num_choices, self.launch.hidden), self.x.dtype)

    def _launch_first(self, slots: torch.Tensor) -> None:
        launch = self.launch
        grid = (len(self._groups[0]), triton.cdiv(launch.intermediate, self.tiles.first_outputs))
        kernels.first_many[grid](
            *self.arena, self._codebook(launch.first_options), slots, self.num_experts, *self._groups, self.x,
            self.weights, self.hidden, self.top_k, launch.hidden, launch.intermediate, *launch.first,
            **launch.first_options, **self._blocks(self.tiles.first_outputs),
        )  # fmt: skip

    def _launch_second(self, slots: torch.Tensor, products: torch.Tensor) -> None:
        launch = self.launch
        options = {name: value for name, value in launch.second_options.items() if name != "SCALES_INPUT"}
        grid = (len(self._groups[0]), triton.cdiv(launch.hidden, self.tiles.second_outputs))
        kernels.second_many[grid](
            *self.arena, self._codebook(launch.second_options), slots, self.num_experts, *self._groups, self.hidden,
            products, launch.hidden, launch.intermediate, *launch.second,
            **options, **self._blocks(self.tiles.second_outputs),
        )  # fmt: skip

    def _blocks(self, outputs: int) -> dict[str, int]:
        return {"BLOCK_M": self.tiles.many_rows, "BLOCK_N": outputs, "BLOCK_K": self.tiles.many_inputs}
