"""The tables of requests and of many adapters, by hostile names too, and a narrow page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Page, expect

from server.engine.interface import ExpertUsage, RequestStatus
from tests.e2e.dashboard.pages import PageLog, Synthetic, open_live

HOSTILE = '<img src="/x" onerror="alert(1)">'


class ManyAdapters:
    """Implements ``AdapterAdministration`` over names."""

    def __init__(self, names: list[str]):
        self.names = names

    def load(self, *_: Any, **__: Any) -> bool:
        return False

    def unload(self, name: str) -> None:
        self.names.remove(name)

    def folders(self) -> list[str]:
        return [HOSTILE, "law"]

    def overview(self) -> dict[str, Any]:
        adapter = {"state": "registered", "tier": "disk", "rank": 4, "bytes": 1 << 20, "tokens": 0, "token_routing": []}
        adapter |= {"requests": {"unfinished": 0, "total": 0}, "routing": None}
        return {"object": "adapters", "folder": "/adapters", "data": [{"name": name, **adapter} for name in self.names]}


def give_adapters(synthetic: Synthetic, names: list[str]) -> ManyAdapters:
    adapters = ManyAdapters(names)
    assert synthetic.service.model is not None
    synthetic.service.model.adapters = adapters
    return adapters


def names_shown(page: Page) -> list[str]:
    return page.locator("#weights-body th > span:first-child").all_inner_texts()


def test_all_of_many_adapters_can_be_reached(synthetic: Synthetic, page: Page) -> None:
    adapters = give_adapters(synthetic, [f"law-{number}" for number in range(41)])
    open_live(page, synthetic.url)
    note = page.locator("#weights-note")
    expect(note).to_have_text("1 to 20 of 41")
    seen = names_shown(page)
    for text in ("21 to 40 of 41", "41 to 41 of 41"):
        page.get_by_role("button", name="Next").click()
        expect(note).to_have_text(text)
        seen += names_shown(page)
    assert seen == adapters.names
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.get_by_label("Search").fill("LAW-3")
    expect(note).to_have_text("1 to 11 of 11 found of 41")  # the first page again
    page.get_by_label("Search").fill("nothing")
    expect(note).to_have_text("None of 41 has this name or state.")


def test_the_last_adapter_of_a_page_can_be_unloaded(synthetic: Synthetic, page: Page) -> None:
    adapters = give_adapters(synthetic, [f"law-{number}" for number in range(21)])
    open_live(page, synthetic.url)
    page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name="Unload adapter law-20").click()
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()  # Enter unloads nothing
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.get_by_role("button", name="Unload adapter law-20").click()
    page.get_by_role("button", name="Unload", exact=True).click()
    expect(page.locator("#weights-result")).to_contain_text("The adapter law-20 was unloaded.")
    expect(page.locator("#weights-body tr")).to_have_count(20)
    expect(page.locator("#weights-pages")).to_be_hidden()
    assert len(adapters.names) == 20


class Answer:
    """Work as the list of requests shows it."""

    auto_choice: Any = None

    def __init__(self, model: str, adapters: dict[str, float]):
        self.model, self.adapters = model, adapters


@dataclass(frozen=True)
class Chosen:
    """A router's choice, as the list of requests tells of it."""

    member: dict[str, Any]


@contextmanager
def listing(synthetic: Synthetic, answers: list[Answer]) -> Iterator[None]:
    """List these requests as running."""
    model = synthetic.service.model
    assert model is not None
    for number, answer in enumerate(answers):
        model.unfinished[f"chatcmpl-{number}"] = answer
    statuses = [
        RequestStatus(f"chatcmpl-{number}-0", "decode", 0, 5, 5, 2, 9, 0, 1.0, 0.5, ExpertUsage())
        for number in range(len(answers))
    ]
    model.engine.statuses = lambda: statuses  # type: ignore[method-assign]
    yield
    del model.engine.statuses


def test_requests_tell_their_model_adapters_and_why_they_were_chosen(synthetic: Synthetic, page: Page) -> None:
    routed = Answer("law", {"law": 1.0})
    routed.auto_choice = Chosen({"routing": {"model": "law", "reason": f"It is most like {HOSTILE}."}})
    with listing(synthetic, [Answer("fake", {}), Answer("law", {"law": 1.0, "code": 0.5}), routed]):
        open_live(page, synthetic.url)
        rows = page.locator("#requests-body .model-row")
        expect(rows).to_have_text(
            ["fake", "law + code \N{MULTIPLICATION SIGN} 0.5", f"law · routing: It is most like {HOSTILE}."]
        )


def test_no_name_becomes_markup(synthetic: Synthetic, page: Page, page_log: PageLog) -> None:
    give_adapters(synthetic, [HOSTILE, "law"])
    with listing(synthetic, [Answer(HOSTILE, {HOSTILE: 0.5})]):
        open_live(page, synthetic.url)
        expect(page.locator("#requests-body .model-row")).to_contain_text(HOSTILE)
        page.locator("#weights-loader summary").click()
        expect(page.locator("#weights-folders option")).to_have_count(2)
        page.get_by_role("button", name="Unload").first.click()
        expect(page.get_by_role("heading", name=re.compile("^Unload the adapter"))).to_contain_text(HOSTILE)
    assert page.locator(":is(main, dialog) :is(img, script)").count() == 0
    assert page_log.errors == []


def test_a_narrow_page_begins_with_the_playground(synthetic: Synthetic, page: Page) -> None:
    give_adapters(synthetic, [f"{'long-name' * 9}-{number}" for number in range(3)])
    page.set_viewport_size({"width": 390, "height": 844})
    with listing(synthetic, [Answer("long-name" * 9, {"other-name" * 9: 0.5})]):
        open_live(page, synthetic.url)
        expect(page.locator("#weights-body tr")).to_have_count(3)
        expect(page.locator("#requests-body .model-row")).to_be_visible()
        tops = page.evaluate("['playground', 'monitor'].map((id) => document.getElementById(id).offsetTop)")
        assert tops[0] < tops[1]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
