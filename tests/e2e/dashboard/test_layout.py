"""Sizes and places on wide and narrow pages: targets, tiles, bars, the panel of an expert, the end of an answer."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from server.engine.text.codec import Codec
from tests.e2e.dashboard.pages import ANSWERED, Synthetic, lines, open_live, send, synthetic_server
from tests.e2e.processes import Server
from tests.server.engine.fakes import Rig

SIZES = pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["laptop", "phone"])
MIN_TARGET = 24  # CSS pixels, as WCAG 2.2 has it
# Tokens are parts of a text, so only their height counts. A cell of the heatmap may be smaller, as lists of layers and
# experts select the same.
SMALL_TARGETS = """
(least) => {
    for (const each of document.querySelectorAll("details")) each.open = true;
    return [...document.querySelectorAll("a, button, input, select, textarea, summary, [tabindex], .token")]
        .filter((each) => each.checkVisibility() && each.closest("dialog:not(:modal)") === null)
        .map((each) => ({ each, box: each.getBoundingClientRect() }))
        .filter(({ each, box }) => box.height < least || (box.width < least && !each.matches(".token")))
        .map(({ each, box }) => `${each.outerHTML.slice(0, 80)}: ${box.width} x ${box.height}`);
}
"""
# Any expert of layer 0 that a token of the answer was routed to.
FIRST_EXPERT = """
async () => {
    document.querySelector(".token").click();
    return /layer 0: (\\d+)/.exec(document.getElementById("token-routing").textContent)[1];
}
"""
WRAPPED_DETAILS = """
() => [...document.querySelectorAll("#tiles .detail")]
    .filter((each) => each.scrollWidth > each.clientWidth || each.clientHeight > 24)
    .map((each) => each.textContent)
"""
EMPTY_PIXELS = """
() => {
    const visible = (elements) => [...elements].filter((each) => each.checkVisibility());
    const bottom = (element) => element.getBoundingClientRect().bottom;
    return visible(document.querySelectorAll("#monitor .panel")).map((panel) => {
        const empty = bottom(panel) - Math.max(...visible(panel.children).map(bottom));
        return [panel.getAttribute("aria-labelledby"), empty];
    });
}
"""


def resize(page: Page, size: tuple[int, int]) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})


def select(page: Page, layer: int, expert: int) -> None:
    page.get_by_role("combobox", name="Layer", exact=True).select_option(str(layer))
    page.get_by_role("combobox", name="Expert", exact=True).select_option(str(expert))
    expect(page.get_by_role("heading", name=f"Layer {layer}, expert {expert}", exact=True)).to_be_visible()


def box(page: Page, selector: str) -> Any:
    found = page.locator(selector).first.bounding_box()
    assert found is not None, selector
    return found


@SIZES
def test_targets_are_large_enough_to_hit(server: Server, page: Page, size: tuple[int, int]) -> None:
    resize(page, size)
    open_live(page, server.url)
    page.get_by_label("Max tokens").fill("16")
    send(page, "Tell me a story.")
    expect(page.locator("#chat-status")).to_have_text(ANSWERED, timeout=60_000)
    select(page, 0, int(page.evaluate(FIRST_EXPERT)))
    assert page.locator("#expert-domains button").count() > 0
    expect(page.get_by_role("button", name="Unload").first).to_be_visible()
    assert page.evaluate(SMALL_TARGETS, MIN_TARGET) == []
    page.get_by_role("button", name="API key").click()
    expect(page.locator("#key-dialog")).to_be_visible()
    assert page.evaluate(SMALL_TARGETS, MIN_TARGET) == []


def test_bars_of_domains_show_shares_from_0_to_100_percent(server: Server, page: Page) -> None:
    open_live(page, server.url)
    page.get_by_label("Max tokens").fill("32")
    send(page, "Tell me a story.")
    expect(page.locator("#chat-status")).to_have_text(ANSWERED, timeout=60_000)
    select(page, 0, int(page.evaluate(FIRST_EXPERT)))
    part, total = re.findall(r"\d+", page.locator(".domain-title .amount").inner_text())[:2]
    bar, filled, marker = (box(page, selector) for selector in (".share", ".share .part", ".share .uniform"))
    assert filled["width"] / bar["width"] == pytest.approx(int(part) / int(total), abs=0.005)
    assert (marker["x"] + marker["width"] / 2 - bar["x"]) / bar["width"] == pytest.approx(2 / 16, abs=0.005)
    expect(page.locator("#expert-domains .hint")).to_contain_text(
        "A token chooses 2 of the layer's 16 experts, so a share of tokens is 2 times a share of choices."
    )
    expect(page.locator("#expert-facts")).to_contain_text(
        re.compile(r"since the start, [\d.]+\s% of the layer's choices")
    )


@SIZES
def test_a_clicked_expert_opens_below_the_heatmap_and_in_view(
    synthetic: Synthetic, page: Page, size: tuple[int, int]
) -> None:
    resize(page, size)
    open_live(page, synthetic.url)
    page.locator("#heatmap-overlay").click(position={"x": 90, "y": 24})
    for selector in ("#expert-title", "#pin", "#expert-facts"):
        expect(page.locator(selector)).to_be_in_viewport(ratio=1)
    heatmap = box(page, ".panel:has(> #heatmap)")
    assert 0 < box(page, "#inspector")["y"] - heatmap["y"] - heatmap["height"] < 24


@SIZES
def test_no_panel_is_mostly_empty(synthetic: Synthetic, page: Page, size: tuple[int, int]) -> None:
    resize(page, size)
    open_live(page, synthetic.url)
    expect(page.locator("#tiers")).to_contain_text("experts together")
    assert {name: pixels for name, pixels in page.evaluate(EMPTY_PIXELS) if pixels > 100} == {}
    select(page, 47, 127)
    assert {name: pixels for name, pixels in page.evaluate(EMPTY_PIXELS) if pixels > 100} == {}


@SIZES
def test_the_line_below_a_long_answer_stays_in_view(synthetic: Synthetic, page: Page, size: tuple[int, int]) -> None:
    resize(page, size)
    open_live(page, synthetic.url)
    page.get_by_label("Max tokens").fill("200")
    send(page, "Hello")
    expect(page.locator("#chat-status")).to_contain_text("The answer was cut off")  # in more lines than before
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    cost, transcript = box(page, ".cost"), box(page, "#transcript")
    assert cost["y"] + cost["height"] <= transcript["y"] + transcript["height"]


def test_details_of_tiles_never_wrap(rig: Rig, codec: Codec, page: Page) -> None:
    slow = {f"{name}_{quantile}": 0.95 for name in ("first_token", "inter_token") for quantile in ("p50", "p95", "p99")}
    with synthetic_server(rig, codec, num_layers=2, num_experts=8) as busy:
        busy.service.history = lambda _: lines(**slow, num_rate_limited=123.0, num_client_errors=123.0)
        busy.experts.totals = {
            "generation_tokens": 987_654_321,
            "hit_ratio": 0.998,
            "optimal_hit_ratio": 0.0123,
            "loaded_bytes": 999 << 40,
            "stall_seconds": 123_456.7,
        }
        open_live(page, busy.url)
        expect(page.locator("#tiles")).to_contain_text("p99 950\u00a0ms")
        for width in (360, 390, 520, 560, 700, 940, 980, 1100, 1240, 1256, 1280, 1440, 1920):
            resize(page, (width, 800))
            assert page.evaluate(WRAPPED_DETAILS) == [], width


def test_an_expert_is_selected_by_its_numbers(synthetic: Synthetic, page: Page) -> None:
    open_live(page, synthetic.url)
    select(page, 46, 117)
    page.locator("#heatmap").focus()
    for key in ("Control+End", "Enter"):
        page.keyboard.press(key)
    expect(page.get_by_role("combobox", name="Layer", exact=True)).to_have_value("47")
    expect(page.get_by_role("combobox", name="Expert", exact=True)).to_have_value("127")
    page.get_by_role("combobox", name="Expert", exact=True).select_option(index=0)
    expect(page.locator("#inspector")).to_be_hidden()
