"""The expert heatmap of the dashboard, and the panels around it."""

from __future__ import annotations

import re
import threading

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from server.engine.text.codec import Codec
from tests.e2e.dashboard.pages import NUM_EXPERTS, NUM_LAYERS, PageLog, Synthetic, open_live, send, synthetic_server
from tests.e2e.processes import Server
from tests.server.engine.fakes import Rig


def colour_at(page: Page, layer: int, expert: int) -> list[int]:
    """Return red, green and blue in the middle of a cell."""
    return page.locator("#heatmap-cells").evaluate(  # type: ignore[no-any-return]
        """async (canvas, [row, column, rows, columns]) => {
            const pitchX = Math.floor(Math.min(72, Math.max(4, (canvas.parentElement.clientWidth - 52) / columns)));
            const pitchY = Math.min(34, pitchX);
            const [x, y] = [52 + column * pitchX + pitchX / 2, 16 + row * pitchY + pitchY / 2];
            return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3);
        }""",
        [layer, expert, NUM_LAYERS, NUM_EXPERTS],
    )


def test_experts_are_pinned_and_evicted_by_keys_and_by_clicks(server: Server, page: Page, page_log: PageLog) -> None:
    def is_pinned() -> bool:
        return bool(httpx.get(f"{server.url}/v1/experts/1/2").json()["pinned"])

    open_live(page, server.url)
    page.locator("#heatmap").focus()
    for key in ["ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown", "p"]:
        page.keyboard.press(key)
    result = page.locator("#result")
    expect(result).to_have_text("Layer 1, expert 2 is pinned.")
    assert is_pinned()
    expect(page.locator("#cursor-live")).to_contain_text("Layer 1, expert 2")
    expect(page.locator("#cursor-text")).to_contain_text("pinned")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Unpin")).to_be_focused()
    page.get_by_role("button", name="Evict").click()
    expect(result).to_have_text("Layer 1, expert 2 was not evicted: it is pinned. Unpin it first.")
    page.get_by_role("button", name="Unpin").click()
    expect(result).to_have_text("Layer 1, expert 2 is no longer pinned.")
    assert not is_pinned()
    expect(page.get_by_role("button", name="Pin", exact=True)).to_be_visible()
    page.get_by_role("button", name="Evict").click()
    expect(result).to_have_text("Layer 1, expert 2 was evicted.")
    expect(page.locator("#expert-facts")).to_contain_text("disk")
    page.locator("#heatmap").focus()
    page.keyboard.press("Escape")
    expect(page.locator("#inspector")).to_be_hidden()
    assert page_log.errors == []


def test_large_model_of_48_layers_and_128_experts_is_live(synthetic: Synthetic, page: Page, page_log: PageLog) -> None:
    open_live(page, synthetic.url)
    expect(page.locator("#heatmap")).to_have_attribute("aria-label", "Experts, 48 layers of up to 128")
    page.locator("#heatmap").focus()
    page.keyboard.press("Control+End")
    text = page.locator("#cursor-text")
    expect(text).to_have_text("Layer 47, expert 127: on disk, 0 tokens.")
    red, _, blue = colour_at(page, 47, 127)
    assert red > blue
    synthetic.experts.residency[47, 127] = 1
    synthetic.experts.tokens[47, 127] += 40
    expect(text).to_contain_text("in host memory, 40 tokens, about")
    page.get_by_label("Theme").select_option("light")  # repaints everything at once
    page.get_by_label("Theme").select_option("dark")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    red, _, blue = colour_at(page, 47, 127)
    assert blue > red
    expect(page.get_by_role("meter", name="host")).to_have_attribute("aria-valuetext", re.compile("^1 of 3,072 slots"))
    expect(page.locator("#tiles")).to_contain_text("75 %")
    expect(page.locator("#tiles")).to_contain_text("optimal 88 %")
    expect(page.locator("#tiles")).to_contain_text("3 running")
    assert page_log.errors == []


def test_load_balance_is_drawn_beside_the_grid_and_told(synthetic: Synthetic, page: Page, page_log: PageLog) -> None:
    open_live(page, synthetic.url)
    expect(page.locator("#balance-text")).to_be_hidden()
    tokens = np.full((NUM_LAYERS, NUM_EXPERTS), 64)
    tokens[3, 5], tokens[3, 9] = 0, 640
    synthetic.experts.tokens = tokens
    expect(page.locator("#balance-text")).to_have_text(
        "Load balance of recent tokens: most uneven in layer 3, busiest expert 9.4 times the mean, variation 0.75. "
        "Dead, no token (layer/expert): 3/5. Overloaded, over four times the mean (layer/expert): 3/9."
    )
    page.wait_for_function(
        """rows => {
            const canvas = document.getElementById("heatmap-cells");
            const pitch = (canvas.height - 16) / rows;
            const length = (row) => {
                const { data } = canvas.getContext("2d").getImageData(30, 16 + Math.floor((row + 0.3) * pitch), 18, 1);
                return data.filter((value, place) => place % 4 === 3 && value > 0).length;
            };
            return length(2) > 0 && length(2) < length(3);
        }""",
        arg=NUM_LAYERS,
    )
    assert page_log.errors == []


def test_memory_bar_shows_its_parts(synthetic: Synthetic, page: Page, page_log: PageLog) -> None:
    open_live(page, synthetic.url)
    meter = page.get_by_role("meter", name="Memory", exact=True)
    expect(meter).to_have_attribute("aria-valuetext", "57\u00a0GiB of 64\u00a0GiB")
    bar, experts = meter.bounding_box(), meter.locator(".part-experts").bounding_box()
    assert bar is not None
    assert experts is not None
    assert abs(experts["width"] / bar["width"] - 0.75) < 0.01
    parts = page.get_by_role("list", name="Parts")
    expect(parts.get_by_role("listitem")).to_have_text(
        ["Trunk3.0 GiB", "Process512 MiB", "Step1.0 GiB", "KV cache4.0 GiB", "Experts48 GiB"]
    )
    synthetic.experts.memory |= {"num_shrinks": 1, "num_grows": 2, "reason": "requests need KV cache"}
    note = "Expert memory shrank 1 time and grew 2 times. Last reason: requests need KV cache."
    expect(page.locator("#memory-note")).to_have_text(note)
    assert page_log.errors == []


def test_a_refusal_is_one_sentence(synthetic: Synthetic, page: Page) -> None:
    open_live(page, synthetic.url)
    synthetic.experts.refusal = "that would leave fewer than 8 of 3072 slots: unpin some first"
    page.locator("#heatmap").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("p")
    expect(page.locator("#result")).to_have_text(synthetic.experts.refusal)


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        ("in_use", "a request is using it. Try again."),
        ("loading", "it is being read."),
        ("not_resident", "it is not in memory."),
    ],
)
def test_an_eviction_that_did_nothing_says_why(synthetic: Synthetic, page: Page, obstacle: str, reason: str) -> None:
    synthetic.experts.obstacle = obstacle
    open_live(page, synthetic.url)
    page.locator("#heatmap").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("e")
    expect(page.locator("#result")).to_have_text(f"Layer 0, expert 0 was not evicted: {reason}")


def hidden_pixels(page: Page) -> int:
    """Return how many CSS pixels of the heatmap do not fit into its box."""
    return page.locator("#heatmap").evaluate("box => box.scrollWidth - box.clientWidth")  # type: ignore[no-any-return]


def test_layers_of_256_experts_fit_on_a_laptop(rig: Rig, codec: Codec, page: Page) -> None:
    with synthetic_server(rig, codec, num_experts=256) as wide:
        open_live(page, wide.url)
        assert hidden_pixels(page) == 0
        expect(page.locator("#heatmap-view")).to_be_hidden()


def test_a_phone_shows_which_of_256_experts_are_in_view(rig: Rig, codec: Codec, page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    with synthetic_server(rig, codec, num_experts=256) as wide:
        open_live(page, wide.url)
        view = page.locator("#heatmap-view")
        expect(view).to_have_text("Experts 0 to 46 of 256. Scroll the heatmap sideways for the others.")
        page.locator("#heatmap").evaluate("box => { box.scrollLeft = box.scrollWidth; }")
        expect(view).to_have_text(re.compile(r"^Experts \d+ to 255 of 256\."))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_phone_shows_no_hints_for_keys(synthetic: Synthetic, browser: Browser) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    open_live(page, synthetic.url)
    expect(page.locator("#heatmap-help")).to_be_hidden()
    expect(page.get_by_text("Tap a cell to select its expert.")).to_be_visible()
    expect(page.get_by_text("Hover over a cell or use the arrow keys.")).to_be_hidden()
    context.close()


@pytest.mark.parametrize("num_layers", [6, 32, 94])
def test_requests_are_above_the_fold_of_a_laptop(rig: Rig, codec: Codec, page: Page, num_layers: int) -> None:
    with synthetic_server(rig, codec, num_layers=num_layers, num_experts=8) as tall:
        open_live(page, tall.url)
        box = page.locator("#requests-note").bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 900


def test_everything_can_be_reached_by_keys_and_has_a_name(synthetic: Synthetic, page: Page) -> None:
    open_live(page, synthetic.url)
    reached = []
    for _ in range(80):
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
        if focused in reached or not focused:
            break
        reached.append(focused)
    wanted = [
        "Skip to the expert heatmap",
        "line-range",
        "open-key",
        "theme",
        "clear",
        "chat-model",
        "temperature",
        "seed",
    ]
    wanted += ["colour-by", "transcript", "law", "run-examples", "message", "domain", "send", "heatmap"]
    assert [each for each in reached if each in wanted] == wanted
    tree = page.locator("body").aria_snapshot()
    for name in ("API key", "Theme", "Experts, 48 layers of up to 128", "Message", "Model", "Conversation"):
        assert f'"{name}"' in tree


def test_requests_are_listed_while_they_run(synthetic: Synthetic, rig: Rig, page: Page) -> None:
    goes_on = threading.Event()
    rig.model.before_step = lambda: None if len(rig.model.steps) < 5 else goes_on.wait(30)
    open_live(page, synthetic.url)
    expect(page.locator("#requests-note")).to_have_text("No running or waiting requests.")
    page.get_by_label("Max tokens").fill("40")
    send(page, "Hello")
    row = page.get_by_role("row", name=re.compile("^chat [0-9a-f]{5}"))
    expect(row).to_contain_text(re.compile(r"decode\d+[1-9] / 40"))
    goes_on.set()
    expect(page.locator("#requests-note")).to_have_text("No running or waiting requests.")
    expect(row).to_have_count(0)
