"""The memory bar of `greenroom top`."""

from __future__ import annotations

import pytest
from rich.color import Color
from rich.console import Console, RenderableType

from client.memory import Memory
from client.top.rendering import Screen
from client.top.stacked_bar import LINE, StackedBar
from client.top.trends import Rates, View
from tests.client.top.frames import GIB, frame


def drawn(renderable: RenderableType, width: int = 100) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize(
    ("total", "amounts", "length"),
    [(10.0, (2.0, 3.0), 10), (10.0, (), 0), (10.0, (15.0, 15.0), 20), (0.0, (), 0)],
    ids=["half", "nothing", "more than the total", "nothing of nothing"],
)
def test_parts_are_as_long_as_their_shares(total: float, amounts: tuple[float, ...], length: int) -> None:
    bar = StackedBar(total, [(amount, Color.parse("red")) for amount in amounts])
    assert "".join(drawn(bar, width=20)) == LINE * length


def test_largest_parts_are_named_beside_the_budget() -> None:
    memory = Memory(8 * GIB, {"trunk": GIB, "experts": 4 * GIB, "kv_cache": 2 * GIB}, 0, 0, "")
    view = View(frame(((1, 0),), memory=memory), Rates(), ((0.0, 0.0),))
    line = drawn(Screen(view, "title", 20))[1]
    assert line.startswith(f"memory  {LINE}")
    assert line.endswith("experts 50%, kv cache 25%  7.0 GiB of 8.0 GiB")
