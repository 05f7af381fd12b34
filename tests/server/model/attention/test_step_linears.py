"""Linear layers of modules that run sequence by sequence run once a step, where their inputs allow it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from server.model.attention.by_sequence.step_linears import StepLinears

SEQUENCES = [torch.arange(2), torch.arange(2, 5)]  # rows of each in the step
ROWS = torch.randn((1, 5, 8), generator=torch.Generator().manual_seed(0))


class CountedLinear(nn.Linear):
    """A linear layer that keeps how many rows it was called with."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.counts: list[int] = []

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        self.counts.append(input.shape[1])
        return super().forward(input)


class Attention(nn.Module):
    """Three layers, of which the first takes the module's rows, and the last returns its result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = CountedLinear(), CountedLinear(), CountedLinear()

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.last(self.middle(self.first(rows)).tanh()), None


def run_step(attention: Attention) -> Any:
    """Run a step of two sequences."""
    linears = StepLinears(attention)
    with linears.watch(ROWS) as results:
        results.append(attention(ROWS))
    for layer in (attention.first, attention.middle, attention.last):
        layer.counts.clear()
    outputs = []
    with linears.of_step(ROWS):
        for rows in SEQUENCES:
            linears.rows = rows
            outputs.append(attention(ROWS[:, rows])[0])
    return linears.finish((torch.cat(outputs, 1), None))


@torch.inference_mode()
def test_the_first_and_the_last_layer_take_the_rows_of_all_sequences() -> None:
    attention = Attention()
    output, _ = run_step(attention)
    assert [layer.counts for layer in (attention.first, attention.middle, attention.last)] == [[5], [2, 3], [5]]
    torch.testing.assert_close(output, attention(ROWS)[0])


@torch.inference_mode()
def test_a_hook_of_the_last_layer_sees_each_sequence() -> None:
    """Adapters are such hooks, and differ among sequences."""
    attention, seen = Attention(), list[int]()
    attention.last.register_forward_hook(lambda _layer, given, _output: seen.append(given[0].shape[1]))
    run_step(attention)
    assert seen[-2:] == [2, 3]
