"""The view on narrow and wide terminals, its list of requests, and its colours."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from client.adapters import parse_adapters
from client.experts import Tier
from client.frames import DEVICE, DISK, HOST, Download, LayerBalance
from client.memory import Memory
from client.requests import RequestStatus, parse_requests
from client.top.palette import MEMORY_RGB, TIER_RGB
from client.top.rendering import Screen
from client.top.requests_table import speeds_between, texts
from client.top.trends import Rates, View
from client.top.weights_table import Weights
from client.variants import parse_variants
from tests.client import bodies
from tests.client.top.frames import GIB, frame

WEB = Path(__file__).resolve().parents[3] / "server" / "web"
(REQUEST,) = parse_requests(bodies.REQUESTS)
(VARIANT,), (ADAPTER,) = parse_variants(bodies.VARIANTS), parse_adapters(bodies.ADAPTERS)
LARGE = frame(
    ((HOST, DISK) * 64,) * 48,
    model="Qwen3-235B-A22B-Instruct-2507-with-a-long-name",
    tiers={
        "host": Tier(128 * GIB, 12_288, 1 << 20, 12_288, 123 * GIB, 1_234),
        "device": Tier(24 * GIB, 1_024, 1 << 20, 1_000, 23 * GIB, 12),
    },
    memory=Memory(128 * GIB, {"unaccounted": 12 * GIB, "process": 11 * GIB, "experts": GIB}, 0, 0, ""),
    loaded_bytes=1023 * GIB,
    num_requests_running=64,
    num_requests_waiting=256,
)
RATES = Rates(1023.9 * GIB, 1.0, 12_345.6, 12_345.6)


def drawn(view: View, width: int, height: int = 60, *, shows_weights: bool = False) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(Screen(view, f"{view.frame.model} at http://127.0.0.1:8000", height, shows_weights))
    return [line.rstrip() for line in capture.get().splitlines()]


def view_of(*requests: RequestStatus, num_layers: int = 6) -> View:
    small = frame(((HOST, DISK),) * num_layers, num_requests_running=len(requests))
    return View(small, Rates(), ((0.0, 0.0),) * num_layers, requests)


def test_a_download_that_goes_on_has_a_bar_and_the_time_that_is_left() -> None:
    view = View(replace(LARGE, download=Download(GIB, 4 * GIB, 90.0)), RATES, [[0.0] * 128] * 48)
    (line,) = [line for line in drawn(view, 200) if "download" in line]
    assert "left" in line
    assert "1.0 GiB of 4.0 GiB" in line.replace("\u00a0", " ")


def test_a_download_that_waits_tells_why() -> None:
    view = View(replace(LARGE, download=Download(GIB, 4 * GIB, None, "no room")), RATES, [[0.0] * 128] * 48)
    (line,) = [line for line in drawn(view, 200) if "download" in line]
    assert "waits: no room" in line


def test_the_most_uneven_layer_and_its_experts_are_named() -> None:
    balance = (LayerBalance(0, 0.25, 1.5, (), ()), LayerBalance(4, 1.0, 6.0, (1, 2, 3, 5, 7), (0,)))
    (line,) = [
        line for line in drawn(View(replace(LARGE, balance=balance), RATES, [[0.0] * 128] * 48), 200) if "load" in line
    ]
    assert line == (
        "load max/mean 6.0 in layer 4 (variation 1.00), 5 dead (4/1, 4/2, 4/3, 4/5, ...), 1 overloaded (4/0)"
    )


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_text_is_cut(width: int) -> None:
    lines = drawn(View(LARGE, RATES, [[0.0] * 128] * 48), width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    for whole in (
        "12,288 of 12,288 slots, 1,234 pinned",
        "123.0 GiB of 128.0 GiB",
        "unaccounted 9%, process 9%",
        "3,072 of 6,144 experts",
        "hit ratio 50.0 % (optimal 75.0 %)",
        "12345.6 tokens/s (prompt 12345.6)",
        "64 running, 256 waiting",
        "stall 100 %",
        "KV cache 25 %",
    ):
        assert any(whole in line for line in lines), whole
    assert LARGE.model in "".join(lines)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (60, 24), (80, 24), (200, 60)])
def test_a_frame_is_no_higher_than_the_terminal(width: int, height: int) -> None:
    view = View(LARGE, RATES, [[0.0] * 128] * 48, [REQUEST] * 20)
    assert len(drawn(view, width, height)) < height


def test_variants_and_adapters_fit_the_terminal() -> None:
    many = [replace(ADAPTER, name=f"a-{number}") for number in range(80)]
    view = replace(View(LARGE, RATES, [[0.0] * 128] * 48), weights=Weights([VARIANT], many))
    for width, height in ((40, 20), (60, 24), (80, 24), (200, 60)):
        lines = drawn(view, width, height, shows_weights=True)
        assert len(lines) < height
        assert max(map(len, lines)) <= width
        assert "…" not in "".join(lines)
    assert re.fullmatch("and [0-9]+ more", lines[-1])
    assert not any(line.startswith(VARIANT.model) for line in lines)  # adapters that are running come first


def test_requests_are_listed_only_where_there_is_room() -> None:
    assert "chat 5a0c1" in "\n".join(drawn(view_of(REQUEST), 80, 24))
    assert "chat 5a0c1" not in "\n".join(drawn(view_of(REQUEST, num_layers=40), 80, 24))


def test_requests_beyond_the_room_are_counted() -> None:
    lines = drawn(view_of(*[REQUEST] * 30), 80, 40)
    assert sum("chat 5a0c1" in line for line in lines) == 11
    assert "and 19 more" in lines


def test_a_narrow_table_has_fewer_columns() -> None:
    title = next(line for line in drawn(view_of(replace(REQUEST, choice=3)), 44) if line.startswith("request"))
    assert title.split() == ["request", "state", "output"]


def test_a_waiting_and_a_reading_request_say_how_far_they_are() -> None:
    waiting = texts(replace(REQUEST, state="waiting", completion_tokens=0, queue_seconds=90.0), None)
    assert (waiting["state"], waiting["tokens/s"]) == ("waiting 2 min", "-")
    assert texts(replace(REQUEST, state="prefill", cached_tokens=8), None)["prompt"] == "8 / 24"
    assert texts(replace(REQUEST, id="resp_\x1b[2J", choice=1), None)["request"] == "response ␛[2J #2"


def test_speeds_are_those_between_two_lists() -> None:
    later = replace(REQUEST, completion_tokens=48, age_seconds=4.125)
    assert speeds_between([REQUEST], [later]) == {REQUEST.key: 5.0}
    assert speeds_between([], [later]) == {}
    assert speeds_between([REQUEST], [REQUEST]) == {}


def srgb(lightness: float, chroma: float, hue: float) -> tuple[int, ...]:
    """Convert a colour of a style sheet; see https://bottosson.github.io/posts/oklab/."""
    a, b = (chroma * part(math.radians(hue)) for part in (math.cos, math.sin))
    long, medium, short = (
        (lightness + x * a + y * b) ** 3
        for x, y in ((0.3963377774, 0.2158037573), (-0.1055613458, -0.0638541728), (-0.0894841775, -1.2914855480))
    )
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    encoded = (12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055 for v in linear)
    return tuple(round(255 * min(1.0, max(0.0, value))) for value in encoded)


def dashboard_colour(selector: str) -> tuple[int, ...]:
    """Return the colour of the dark theme that the style sheets give a name."""
    sheets = (WEB / "style.css").read_text("utf-8") + (WEB / "panels.css").read_text("utf-8")
    value = re.search(rf"{re.escape(selector)}\b[^;]*?(?::|background:) ([^;]+);", sheets)
    assert value is not None, selector
    if reference := re.fullmatch(r"var\((--[a-z-]+)\)", value[1]):
        return dashboard_colour(reference[1])
    dark = value[1].removeprefix("light-dark(").removesuffix(")").partition(", ")[2]
    if dark.startswith("#"):
        return tuple(bytes.fromhex(dark[1:]))
    return srgb(*map(float, dark.removeprefix("oklch(").removesuffix(")").split()))


def test_colours_are_those_of_the_dashboards_dark_theme() -> None:
    tiers = {DISK: "--disk", HOST: "--host", DEVICE: "--device"}
    assert {tier: dashboard_colour(name) for tier, name in tiers.items()} == TIER_RGB
    assert {name: dashboard_colour(f".part-{name}") for name in MEMORY_RGB} == MEMORY_RGB
