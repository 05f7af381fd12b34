"""The dashboard in a browser: Debian's chromium, if it is there."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from server.api.keys import KeyRing, Keys
from server.api.service import LoadedModel, Service
from server.engine.codec import Codec
from server.model.tokenizer import Tokenizer
from tests.byte_tokenizer import save_byte_tokenizer
from tests.e2e.processes import Server, serving
from tests.e2e.synthetic_experts import SyntheticExperts
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import serving_model

CHROMIUM = shutil.which("chromium")
NUM_LAYERS, NUM_EXPERTS = 48, 128

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")


@dataclass
class Synthetic:
    """A server whose experts are made up."""

    url: str
    experts: SyntheticExperts
    service: Service


@dataclass
class Watch:
    """What a page says on its console, and whom it asks."""

    errors: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def see(self, request: Request) -> None:
        self.urls.append(request.url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--host-expert-memory", "40%", "--device-expert-memory", "15%", "--dtype", "float32") as running:
        yield running


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def page(browser: Browser, watch: Watch) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.on("console", watch.hear)
    page.on("pageerror", lambda error: watch.errors.append(str(error)))
    page.on("request", watch.see)
    page.on("requestfailed", lambda request: watch.failed.append(request.url))
    yield page
    context.close()


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    folder = tmp_path_factory.mktemp("bytes")
    save_byte_tokenizer(folder)
    return Codec(Tokenizer(folder))


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.engine.start()
    yield rig
    rig.engine.stop()


@contextmanager
def synthetic_server(rig: Rig, codec: Codec, port: int = 0) -> Iterator[Synthetic]:
    experts, service = SyntheticExperts(NUM_LAYERS, NUM_EXPERTS), Service("1")
    model = LoadedModel("synthetic", rig.engine, codec, experts=experts)
    with serving_model(model, rig.engine, service=service, port=port) as live:
        yield Synthetic(f"http://127.0.0.1:{live.port}", experts, service)
        service.is_draining = True  # which ends the stream


@pytest.fixture
def synthetic(rig: Rig, codec: Codec) -> Iterator[Synthetic]:
    with synthetic_server(rig, codec) as serving:
        yield serving


def open_live(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")


def say(page: Page, question: str) -> None:
    page.get_by_label("Message").fill(question)
    page.get_by_role("button", name="Send").click()


def colour_at(page: Page, layer: int, expert: int) -> list[int]:
    """Red, green and blue in the middle of a cell, once what came is painted."""
    return page.locator("#cells").evaluate(  # type: ignore[no-any-return]
        """async (canvas, [row, column, rows, columns]) => {
            const pitchX = Math.floor(Math.min(72, Math.max(4, (canvas.parentElement.clientWidth - 30) / columns)));
            const pitchY = Math.min(34, pitchX);
            const [x, y] = [30 + column * pitchX + pitchX / 2, 16 + row * pitchY + pitchY / 2];
            return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3);
        }""",
        [layer, expert, NUM_LAYERS, NUM_EXPERTS],
    )


def test_a_chat_is_coloured_by_experts_that_lead_to_each_other(server: Server, page: Page, watch: Watch) -> None:
    open_live(page, server.url)
    page.get_by_label("Max tokens").fill("24")
    page.get_by_label("Temperature").fill("0")
    say(page, "Tell me a story.")
    expect(page.locator("#chat-status")).to_have_text("The answer is complete.", timeout=60_000)
    tokens = page.locator(".token")
    assert tokens.count() > 4
    hues = {tokens.nth(place).evaluate("token => token.style.getPropertyValue('--hue')") for place in range(5)}
    assert len(hues) > 1
    assert re.search(r"^\d+ tokens · .* experts? read", page.locator(".cost").inner_text())

    tokens.nth(3).click()
    path = page.locator("#token-path li")
    expect(path).to_have_count(6)
    layer, first = re.fullmatch(r"layer (\d+): (\d+), \d+", path.nth(2).inner_text()).groups()  # type: ignore[union-attr]
    assert layer == "2"

    page.locator("#stage").focus()
    for key in ["Home", "ArrowDown", "ArrowDown", *["ArrowRight"] * int(first), "Enter"]:
        page.keyboard.press(key)
    expect(page.get_by_role("heading", name=f"Layer 2, expert {first}")).to_be_visible()
    expect(tokens.nth(3)).to_have_class(re.compile("served"))
    assert page.locator("#served button").count() == page.locator(".token.served").count()

    page.get_by_role("log", name="Conversation").focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(4)).to_have_class(re.compile("current"))
    expect(page.locator("#token-title")).to_contain_text("by layer, best expert first")
    page.get_by_label("Colour tokens by").select_option("first expert of layer 2")
    same = tokens.nth(3).evaluate("token => Number(token.style.getPropertyValue('--hue'))")
    assert same == pytest.approx(int(first) * 137.508 % 360, abs=0.06)
    assert watch.errors == watch.failed == []
    assert {httpx.URL(url).host for url in watch.urls} == {"127.0.0.1"}


def test_an_answer_can_be_stopped_and_the_conversation_goes_on(synthetic: Synthetic, rig: Rig, page: Page) -> None:
    goes_on = threading.Event()
    rig.model.before_step = lambda: None if len(rig.model.steps) < 5 else goes_on.wait(30)
    open_live(page, synthetic.url)
    page.get_by_label("Max tokens").fill("150")
    say(page, "Hello")
    expect(page.locator(".token").first).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#chat-status")).to_have_text("Stopped.")
    goes_on.set()
    page.get_by_label("Max tokens").fill("4")
    page.get_by_label("Message").fill("Go on")
    page.keyboard.press("Enter")
    expect(page.locator("#chat-status")).to_have_text("The answer is complete.")
    expect(page.locator(".turn")).to_have_count(4)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".turn")).to_have_count(0)


def test_what_the_server_refuses_to_answer_can_be_sent_again(synthetic: Synthetic, page: Page) -> None:
    open_live(page, synthetic.url)
    page.get_by_label("Max tokens").fill("5000")
    say(page, "Hello")
    expect(page.locator("#chat-status")).to_contain_text("maximum context length is 256 tokens")
    expect(page.get_by_label("Message")).to_have_value("Hello")


def test_experts_are_moved_by_keys_and_by_clicks(server: Server, page: Page, watch: Watch) -> None:
    def is_pinned() -> bool:
        return bool(httpx.get(f"{server.url}/v1/experts/1/2").json()["pinned"])

    open_live(page, server.url)
    page.locator("#stage").focus()
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
    expect(result).to_contain_text("was not evicted: it is in use, on its way, pinned, or not in memory.")
    page.get_by_role("button", name="Unpin").click()
    expect(result).to_have_text("Layer 1, expert 2 is pinned no longer.")
    assert not is_pinned()
    expect(page.get_by_role("button", name="Pin", exact=True)).to_be_visible()
    page.get_by_role("button", name="Evict").click()
    expect(result).to_have_text("Layer 1, expert 2 has left memory.")
    expect(page.locator("#expert-facts")).to_contain_text("disk")
    page.locator("#stage").focus()
    page.keyboard.press("Escape")
    expect(page.locator("#expert-empty")).to_be_visible()
    assert watch.errors == []


def test_it_comes_back_when_the_server_does(rig: Rig, codec: Codec, page: Page) -> None:
    with synthetic_server(rig, codec) as first:
        open_live(page, first.url)
        port = httpx.URL(first.url).port
        first.service.is_draining = True
        expect(page.locator("#connection-text")).to_have_text("The server ended the stream.")
    page.get_by_role("button", name="Reconnect now").click()
    expect(page.locator("#connection-text")).to_have_text("The server can't be reached.")
    expect(page.locator("#connection-wait")).to_contain_text("Reconnecting in")
    expect(page.locator("#stage")).to_have_attribute("data-stale", "")
    with synthetic_server(rig, codec, port or 0) as second:
        model, second.service.model = second.service.model, None
        page.get_by_role("button", name="Reconnect now").click()
        expect(page.locator("#connection-text")).to_contain_text("still being loaded")
        second.service.model = model
        expect(page.locator("#connection")).to_have_attribute("data-state", "live", timeout=30_000)
        expect(page.locator("#stage")).not_to_have_attribute("data-stale", "")


def test_forty_eight_layers_of_a_hundred_and_twenty_eight_are_live(
    synthetic: Synthetic, page: Page, watch: Watch
) -> None:
    open_live(page, synthetic.url)
    expect(page.locator("#stage")).to_have_attribute("aria-label", "Experts, 48 layers of up to 128")
    page.locator("#stage").focus()
    page.keyboard.press("Control+End")
    text = page.locator("#cursor-text")
    expect(text).to_have_text("Layer 47, expert 127: on disk, 0 tokens.")
    red, _, blue = colour_at(page, 47, 127)
    assert red > blue
    synthetic.experts.residency[47, 127] = 1
    synthetic.experts.tokens[47, 127] += 40
    expect(text).to_contain_text("in host memory, 40 tokens, about")
    page.get_by_label("Theme").select_option("light")  # which paints all of it at once
    page.get_by_label("Theme").select_option("dark")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    red, _, blue = colour_at(page, 47, 127)
    assert blue > red
    expect(page.get_by_role("meter", name="host")).to_have_attribute("aria-valuetext", re.compile("^1 of 3,072 slots"))
    expect(page.locator("#tiles")).to_contain_text("75 %")
    expect(page.locator("#tiles")).to_contain_text("best possible 88 %")
    expect(page.locator("#tiles")).to_contain_text("3 running")
    assert watch.errors == []


def test_a_refusal_is_one_sentence(synthetic: Synthetic, page: Page) -> None:
    open_live(page, synthetic.url)
    synthetic.experts.refusal = "that would leave fewer than 8 of 3072 slots: unpin some first"
    page.locator("#stage").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("p")
    expect(page.locator("#result")).to_have_text(synthetic.experts.refusal)


def test_a_key_opens_the_stage_and_is_forgotten_with_the_tab(
    synthetic: Synthetic, browser: Browser, page: Page
) -> None:
    synthetic.service.keys = Keys(KeyRing(["user"]), KeyRing(["admin"]))
    page.goto(synthetic.url)
    connection = page.locator("#connection")
    expect(connection).to_have_attribute("data-state", "refused")
    expect(page.locator("#connection-text")).to_contain_text("No API key was sent")
    for key, state in (("user", "refused"), ("admin", "live")):
        page.get_by_role("button", name="API key").click()
        page.get_by_label("Key", exact=True).fill(key)
        page.keyboard.press("Enter")
        expect(connection).to_have_attribute("data-state", state)
    expect(page.locator("#chat-model")).to_have_value("synthetic")
    assert page.evaluate("Object.values(localStorage).concat(document.cookie)") == [""]
    page.reload()
    expect(connection).to_have_attribute("data-state", "live")
    with page.context.expect_page() as other:
        page.evaluate("window.open(location.href, '_blank', 'noopener') && undefined")
    expect(other.value.locator("#connection")).to_have_attribute("data-state", "refused")


def test_everything_can_be_reached_by_keys_and_has_a_name(synthetic: Synthetic, page: Page) -> None:
    open_live(page, synthetic.url)
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.id || document.activeElement.className")
        if focused in reached or not focused:
            break
        reached.append(focused)
    wanted = ["skip", "open-key", "theme", "stage", "clear", "chat-model", "temperature", "seed", "colour-by"]
    wanted += ["transcript", "question", "send"]
    assert [each for each in reached if each in wanted] == wanted
    tree = page.locator("body").aria_snapshot()
    for name in ("API key", "Theme", "Experts, 48 layers of up to 128", "Message", "Model", "Conversation"):
        assert f'"{name}"' in tree
