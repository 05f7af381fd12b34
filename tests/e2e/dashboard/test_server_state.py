"""The metric tiles, the header and the warnings of the dashboard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser, Locator, Page, expect

from server.engine.engine_statistics import FINISHED_REASONS
from tests.e2e.dashboard.pages import Synthetic, lines, open_live
from tests.e2e.processes import Server

ROOT = Path(__file__).resolve().parents[3]
IN_A_MINUTE = """
async ([before, after]) => {
    const { History } = await import("/web/history.js");
    const { RULES } = await import("/web/warnings.js");
    const history = new History();
    history.add(before, 0);
    history.add({ ...before, ...after }, 60_000);
    return RULES.filter((rule) => rule.find(history, rule.limit)).map((rule) => rule.alert);
}
"""
TWO_POLLS = """
async () => {
    const { Lines } = await import("/web/lines.js");
    const lines = new Lines();
    await Promise.all([lines.poll(), lines.poll()]);
    return [lines.times.length, lines.series.hit_ratio.length];
}
"""
NO_REQUESTS = dict.fromkeys(FINISHED_REASONS, 0)
QUIET = {
    "num_quarantined": 0,
    "num_load_failures": 0,
    "finished_requests": NO_REQUESTS,
    "num_requests_waiting": 0,
    "memory": {"budget_bytes": 100, "parts": {"experts": 60, "trunk": 40}},
    "step_seconds": 0,
    "stall_seconds": 0,
    "hit_ratio": 0.5,
    "optimal_hit_ratio": 0.6,
    "prompt_tokens": 0,
    "generation_tokens": 0,
}


@pytest.fixture(scope="module")
def rules(browser: Browser, server: Server) -> Iterator[Page]:
    """A page that starts nothing, of the origin that the modules of the dashboard have."""
    page = browser.new_page()
    page.goto(f"{server.url}/web/warnings.js")
    yield page
    page.close()


def test_header_shows_version_and_uptime(synthetic: Synthetic, page: Page) -> None:
    open_live(page, synthetic.url)
    expect(page.locator("#server-facts")).to_have_text("version 1 · up 2.1\u00a0h")


def tile(page: Page, label: str) -> Locator:
    return page.locator("#tiles .tile").filter(has=page.get_by_text(label, exact=True))


def test_latencies_are_quantiles_of_the_server(synthetic: Synthetic, page: Page) -> None:
    quantiles = {"first_token_p50": 0.25, "first_token_p95": 1.5, "first_token_p99": 3.0}
    synthetic.service.history = lambda _: lines(**quantiles, inter_token_p50=0.015)
    open_live(page, synthetic.url)
    expect(tile(page, "First token")).to_contain_text("250\u00a0msp95 1.5\u00a0s · p99 3.0\u00a0s")
    expect(tile(page, "Time per token")).to_contain_text("15\u00a0ms")


def test_errors_of_the_last_minute_are_counted(synthetic: Synthetic, page: Page) -> None:
    synthetic.service.history = lambda _: lines(24, num_rate_limited=2)
    open_live(page, synthetic.url)
    expect(tile(page, "Errors")).to_contain_text("0429: 24 · other 4xx: 0")  # 12 points of 2
    expect(tile(page, "Errors")).not_to_have_class(re.compile("bad"))
    synthetic.service.history = lambda _: lines(24, num_errors=1)
    page.reload()
    expect(tile(page, "Errors")).to_contain_text("12429: 0")
    expect(tile(page, "Errors")).to_have_class(re.compile("bad"))


def test_lines_began_before_the_page_was_opened(synthetic: Synthetic, page: Page) -> None:
    synthetic.service.history = lambda after: lines(720, hit_ratio=0.5) if not after else lines(0)
    open_live(page, synthetic.url)
    line = tile(page, "Hit ratio").locator("path").first
    expect(line).to_have_attribute("d", re.compile(r"^M0 0\.500(L\d+ 0\.500){119}$"))
    page.get_by_label("Lines").select_option("1 hour")
    expect(line).to_have_attribute("d", re.compile(r"^M0 0\.500(L\d+ 0\.500){119}$"))
    short = "M60 0.500" + "".join(f"L{place} 0.500" for place in range(61, 120))
    synthetic.service.history = lambda after: lines(360, hit_ratio=0.5) if not after else lines(0)
    page.reload()
    page.get_by_label("Lines").select_option("1 hour")
    expect(line).to_have_attribute("d", short)  # half an hour


def test_points_that_two_polls_bring_are_kept_once(synthetic: Synthetic, page: Page) -> None:
    synthetic.service.history = lambda _: lines(12)
    page.goto(synthetic.url)
    assert page.evaluate(TWO_POLLS) == [12, 12]


def test_a_hit_ratio_above_the_optimum_is_explained(synthetic: Synthetic, page: Page) -> None:
    synthetic.experts.totals = {"hit_ratio": 0.623, "optimal_hit_ratio": 0.606}
    open_live(page, synthetic.url)
    tile = page.locator("#tiles .tile", has_text="Hit ratio")
    expect(tile).to_contain_text("62\u00a0%≤ 61\u00a0% without prefetch")


def test_warnings_appear_and_disappear(synthetic: Synthetic, page: Page) -> None:
    open_live(page, synthetic.url)
    panel = page.locator("#warnings")
    expect(panel).to_be_hidden()
    synthetic.experts.totals = {"num_quarantined": 2}
    expect(panel).to_contain_text("Experts whose checksums do not match: 2.")
    expect(panel).to_contain_text("Download or pack the model again")
    synthetic.experts.totals = {}
    expect(panel).to_be_hidden()


@pytest.mark.parametrize(
    ("before", "after", "alerts"),
    [
        ({}, {}, []),
        ({}, {"num_load_failures": 1}, ["GreenroomExpertLoadFailures"]),
        ({}, {"finished_requests": NO_REQUESTS | {"error": 1, "stop": 9}}, ["GreenroomRequestsFail"]),
        ({}, {"finished_requests": NO_REQUESTS | {"deadline": 1, "stop": 99}}, []),
        ({"num_requests_waiting": 9}, {}, ["GreenroomQueueGrowing"]),
        ({"num_requests_waiting": 20}, {"num_requests_waiting": 9}, []),
        ({"memory": {"budget_bytes": 100, "parts": {"experts": 10, "kv_cache": 90}}}, {}, ["GreenroomMemoryTight"]),
        ({}, {"step_seconds": 50, "stall_seconds": 30}, ["GreenroomExpertStalls"]),
        ({}, {"step_seconds": 2, "stall_seconds": 2}, []),  # the first request on a cold cache
        ({"optimal_hit_ratio": 0.8}, {"generation_tokens": 9}, ["GreenroomHitRatioBelowOptimum"]),
        ({"optimal_hit_ratio": 0.8}, {}, []),  # no traffic
        ({"hit_ratio": None, "optimal_hit_ratio": None}, {}, []),
    ],
)
def test_warnings_of_a_minute(
    rules: Page, before: dict[str, object], after: dict[str, object], alerts: list[str]
) -> None:
    assert rules.evaluate(IN_A_MINUTE, [QUIET | before, after]) == alerts


def test_warnings_have_the_limits_of_the_alert_rules() -> None:
    text = (ROOT / "server" / "web" / "warnings.js").read_text()
    found = re.findall(r'alert: "(\w+)",\s+limit: ([\d.]+),', text)
    groups = yaml.safe_load((ROOT / "docker" / "prometheus" / "rules.yml").read_text())["groups"]
    rules = {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"] if "alert" in rule}
    assert len(found) == 7
    assert all(re.search(rf"> {re.escape(limit)}(\s|$)", rules[alert]) for alert, limit in found)
