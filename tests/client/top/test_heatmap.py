"""The heatmap of experts, on terminals of any size and number of colours."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.segment import Segment

from client.frames import DEVICE, DISK, HOST, Rows
from client.top.heatmap import GUTTER, HeatMap, split_evenly
from client.top.heatmap_cells import MIN_SCALE_TOKENS, Cell
from client.top.palette import TIER_RGB

HOT, COLD = 1.0, 0.25  # brightness


def lines_of(heat_map: HeatMap, width: int, system: str | None = "truecolor") -> list[list[Segment]]:
    console = Console(width=width, color_system=system, force_terminal=True, file=io.StringIO())
    return [line for line in console.render_lines(heat_map, pad=False) if line]


def text_of(lines: list[list[Segment]]) -> list[str]:
    return ["".join(segment.text for segment in line) for line in lines]


def shade(tier: int, part: float) -> tuple[int, int, int]:
    red, green, blue = (round(part * channel) for channel in TIER_RGB[tier])
    return red, green, blue


def heat_map(residency: Rows, heat: list[list[float]] | None = None, num_lines: int = 10) -> HeatMap:
    return HeatMap(range(len(residency)), residency, heat or [[0.0] * len(row) for row in residency], num_lines)


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=100).map(lambda sizes: tuple((HOST,) * size for size in sizes)),
    st.integers(1, 60),
    st.integers(GUTTER + 1, 200),
    st.sampled_from(["truecolor", "standard", None]),
)
def test_it_fits_any_terminal(residency: Rows, num_lines: int, width: int, system: str | None) -> None:
    lines = lines_of(heat_map(residency, num_lines=num_lines), width, system)
    assert 1 < len(lines) <= num_lines + 1  # with the legend
    assert all(Segment.get_line_length(line) <= width for line in lines)


@given(st.integers(1, 500), st.integers(1, 500))
def test_split_evenly_covers_the_range_in_nearly_equal_parts(count: int, max_parts: int) -> None:
    parts = split_evenly(count, max_parts)
    assert [place for part in parts for place in part] == list(range(count))
    assert len(parts) == min(count, max_parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_no_space_and_no_experts_are_no_error() -> None:
    assert lines_of(heat_map(((HOST,),), num_lines=0), 80) == []
    assert lines_of(heat_map(((HOST,),)), GUTTER) == []
    assert lines_of(heat_map(()), 80) == []


def test_two_layers_share_a_line_of_half_blocks() -> None:
    warm = float(MIN_SCALE_TOKENS)
    first, _legend = lines_of(heat_map(((DISK, HOST), (DEVICE, DEVICE)), [[0.0, warm], [warm, 0.0]], 1), GUTTER + 2)
    assert text_of([first]) == ["   0 ▀▀"]
    styles = [segment.style for segment in first[1:]]
    colours = [(style.color.get_truecolor(), style.bgcolor.get_truecolor()) for style in styles]
    assert colours == [
        (shade(DISK, COLD), shade(DEVICE, HOT)),
        (shade(HOST, HOT), shade(DEVICE, COLD)),
    ]


def test_experts_that_share_a_cell_mix_their_colours() -> None:
    cell = Cell((0.5, 0.5, 0.0), float(MIN_SCALE_TOKENS))
    expected = tuple(round((TIER_RGB[DISK][at] + TIER_RGB[HOST][at]) / 2) for at in range(3))
    assert cell.colour(0.0).get_truecolor() == expected


def test_the_hottest_cell_is_the_brightest() -> None:
    brightness = [sum(Cell((0, 1, 0), heat).colour(1000.0).get_truecolor()) for heat in (0, 10, 100, 1000)]
    assert brightness == sorted(set(brightness))
    assert Cell((0, 1, 0), 1000.0).colour(1000.0).get_truecolor() == TIER_RGB[HOST]


def test_with_16_colours_each_tier_has_two() -> None:
    cells = [Cell((0.6, 0.4, 0), 0.0), Cell((0.4, 0.6, 0), 1000.0), Cell((0, 0.5, 0.5), 0.0)]
    assert [cell.colour_of_sixteen(1000.0).name for cell in cells] == ["yellow", "bright_blue", "green"]
    line, _legend = lines_of(heat_map(((DISK, HOST),), [[0.0, 99.0]], 1), GUTTER + 2, system="standard")
    assert [segment.style.color.name for segment in line[1:]] == ["yellow", "bright_blue"]


def test_without_colours_tiers_are_symbols() -> None:
    lines = text_of(lines_of(heat_map(((DISK, HOST), (DEVICE, DISK))), GUTTER + 2, None))
    assert lines[:2] == ["   0 ·▒", "   1 █·"]
    legend = text_of(lines_of(heat_map(((DISK, HOST),)), 80, None))[-1]
    assert legend.startswith("· disk  ▒ host  rows: layers")


@pytest.mark.parametrize("system", ["truecolor", "standard", None])
def test_layers_may_have_different_numbers_of_experts(system: str | None) -> None:
    wide, narrow, *_ = text_of(lines_of(heat_map(((HOST,) * 4, (HOST,) * 2), num_lines=2), GUTTER + 4, system))
    assert len(wide.rstrip()) == GUTTER + 4
    assert len(narrow.rstrip()) == GUTTER + 2


def test_few_experts_are_drawn_large() -> None:
    lines = text_of(lines_of(heat_map(((HOST, DISK), (DISK, HOST)), num_lines=20), 80))
    assert lines[:4] == ["   0 ▀▀▀▀▀▀▀▀", "     ▀▀▀▀▀▀▀▀", "   1 ▀▀▀▀▀▀▀▀", "     ▀▀▀▀▀▀▀▀"]
