"""The connection of the dashboard: API keys, disconnects and reconnects."""

from __future__ import annotations

import re

import httpx
from playwright.sync_api import Browser, Page, expect

from server.api.core.access.api_keys import KeyRing, Keys
from server.engine.text.codec import Codec
from tests.e2e.dashboard.pages import ANSWERED, PageLog, Synthetic, open_live, send, synthetic_server
from tests.e2e.processes import serving
from tests.server.engine.fakes import Rig


def test_it_reconnects_when_the_server_is_back(rig: Rig, codec: Codec, page: Page) -> None:
    with synthetic_server(rig, codec) as first:
        open_live(page, first.url)
        port = httpx.URL(first.url).port
        page.get_by_label("Max tokens").fill("5")
        send(page, "Hello")
        expect(page.locator(".cost")).to_have_count(1)
        assert page.locator(".token[style*=hue]").count() == page.locator(".token").count()
        first.service.is_draining = True
        expect(page.locator("#connection-text")).to_have_text("The server is shutting down.")
    page.get_by_role("button", name="Reconnect now").click()
    expect(page.locator("#connection-text")).to_have_text("The server can't be reached.")
    expect(page.locator("#connection-wait")).to_contain_text("Reconnecting in")
    expect(page.locator("#heatmap")).to_have_attribute("data-stale", "")
    with synthetic_server(rig, codec, port or 0, "another") as second:
        model, second.service.model = second.service.model, None
        page.get_by_role("button", name="Reconnect now").click()
        expect(page.locator("#connection-text")).to_contain_text("still loading")
        second.service.model = model
        expect(page.locator("#connection")).to_have_attribute("data-state", "live", timeout=30_000)
        expect(page.locator("#heatmap")).not_to_have_attribute("data-stale", "")
        expect(page).to_have_title(re.compile("^another "))
        assert page.locator(".token[style*=hue]").count() == 0  # their routes belong to another model than the heatmap


def test_a_key_gives_access_and_is_dropped_with_the_tab(synthetic: Synthetic, browser: Browser, page: Page) -> None:
    synthetic.service.keys = Keys(KeyRing(["user"]), KeyRing(["admin"]))
    page.goto(synthetic.url)
    connection = page.locator("#connection")
    expect(connection).to_have_attribute("data-state", "locked")
    expect(page.locator("#connection-text")).to_have_text("The server requires an API key.")
    expect(page.locator("#playground")).to_be_hidden()
    for button, key, state in (("Enter a key", "user", "limited"), ("API key", "admin", "live")):
        page.get_by_role("button", name=button).click()
        page.get_by_label("Key", exact=True).fill(key)
        page.keyboard.press("Enter")
        expect(connection).to_have_attribute("data-state", state)
        expect(page.locator("#playground")).to_be_visible()
        assert page.locator("#monitor").is_visible() == (state == "live")
    expect(page.locator("#chat-model")).to_have_value("synthetic")
    assert page.evaluate("Object.values(localStorage).concat(document.cookie)") == [""]
    page.reload()
    expect(connection).to_have_attribute("data-state", "live")
    with page.context.expect_page() as other:
        page.evaluate("window.open(location.href, '_blank', 'noopener') && undefined")
    expect(other.value.locator("#connection")).to_have_attribute("data-state", "locked")


def test_a_users_key_gets_the_playground_and_no_errors(synthetic: Synthetic, page: Page, page_log: PageLog) -> None:
    synthetic.service.keys = Keys(KeyRing(["user"]), KeyRing(["admin"]))
    page.goto(f"{synthetic.url}/#key=user")
    expect(page.locator("#connection-text")).to_have_text("Playground only: the other panels need an admin key.")
    page.get_by_label("Max tokens").fill("4")
    send(page, "Hello")
    expect(page.locator("#chat-status")).to_contain_text("The answer was cut off after 4 tokens.")
    assert page.locator(".result.bad").count() == 0
    assert page_log.errors == []
    assert not any("/v1/experts" in url or "/v1/history" in url for url in page_log.urls)


def test_a_users_page_lists_the_models_once_they_are_loaded(synthetic: Synthetic, page: Page) -> None:
    synthetic.service.keys = Keys(KeyRing(["user"]), KeyRing(["admin"]))
    model, synthetic.service.model = synthetic.service.model, None
    page.goto(f"{synthetic.url}/#key=user")
    expect(page.locator("#chat-status")).to_have_text("The model is still loading.")
    synthetic.service.model = model
    expect(page.locator("#chat-model")).to_have_value("synthetic")
    expect(page.locator("#chat-status")).to_be_empty()


def test_no_key_is_asked_for_where_none_can_help(synthetic: Synthetic, page: Page) -> None:
    page.set_extra_http_headers({"X-Forwarded-For": "192.0.2.1"})  # as from another machine
    page.goto(synthetic.url)
    expect(page.locator("#connection-text")).to_contain_text("start the server with --admin-api-key-file")
    expect(page.get_by_role("button", name="Enter a key")).to_be_hidden()
    expect(page.get_by_role("button", name="Reconnect now")).to_be_visible()


def test_key_of_the_address_is_used_and_removed_from_it(synthetic: Synthetic, page: Page) -> None:
    synthetic.service.keys = Keys(KeyRing([]), KeyRing(["admin"]))
    open_live(page, f"{synthetic.url}/#key=admin")
    assert page.url == f"{synthetic.url}/"
    page.reload()
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")


def test_a_key_may_be_added_to_the_address_of_an_open_page(synthetic: Synthetic, page: Page) -> None:
    synthetic.service.keys = Keys(KeyRing([]), KeyRing(["admin"]))
    page.goto(synthetic.url)
    expect(page.locator("#connection")).to_have_attribute("data-state", "limited")  # users need no key
    page.goto(f"{synthetic.url}/#key=admin")
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")


def test_the_page_recovers_after_a_restart_of_the_process(page: Page, page_log: PageLog) -> None:
    with serving("--host-expert-memory", "25%") as first:
        port = httpx.URL(first.url).port or 0
        open_live(page, first.url)
        page.get_by_label("Max tokens").fill("8")
        send(page, "Hello")
        expect(page.locator("#chat-status")).to_have_text(ANSWERED, timeout=60_000)
        first.process.kill()
        expect(page.locator("#connection")).to_have_attribute("data-state", "waiting")
        expect(page.locator("#heatmap")).to_have_attribute("data-stale", "")
    send(page, "Is anybody there?")
    expect(page.locator("#chat-status")).to_have_text("The server can't be reached.")
    with serving("--host-expert-memory", "25%", port=port):
        expect(page.locator("#connection")).to_have_attribute("data-state", "live", timeout=30_000)
        expect(page.locator("#heatmap")).not_to_have_attribute("data-stale", "")
        tokens = page.locator("#tiles .tile", has_text="KV cache")
        expect(tokens).to_contain_text("0 output tokens")
        page.get_by_role("button", name="Send").click()  # the message is still in the form
        expect(page.locator("#chat-status")).to_have_text(ANSWERED, timeout=60_000)
        expect(tokens).not_to_contain_text("0 output tokens")
        expect(page.locator(".turn")).to_have_count(6)
    assert all("Failed to load resource" in error for error in page_log.errors)  # chromium's text for a failed request
