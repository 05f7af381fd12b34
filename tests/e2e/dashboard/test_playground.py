"""Chats on the dashboard, and the links between their tokens and experts."""

from __future__ import annotations

import re
import threading

import httpx
import pytest
from playwright.sync_api import Page, expect

from server.engine.text.codec import Codec
from tests.e2e.dashboard.pages import ANSWERED, PageLog, Synthetic, open_live, send, synthetic_server
from tests.e2e.processes import Server, serving
from tests.server.engine.fakes import Rig


def counts_of_texts(page: Page) -> list[int]:
    """Return how many tokens of each listed text were routed to the selected expert."""
    times = [
        re.search(r"\N{MULTIPLICATION SIGN}(\d+)$", text)
        for text in page.locator("#expert-domains button").all_inner_texts()
    ]
    return [1 if each is None else int(each[1]) for each in times]


def select(page: Page, layer: int, expert: int) -> None:
    """Click on a cell of the heatmap."""
    heatmap = page.locator("#heatmap-overlay")
    box = heatmap.bounding_box()
    assert box is not None
    pitch = int((box["width"] - 30) / 16)
    heatmap.click(position={"x": 30 + (expert + 0.5) * pitch, "y": 16 + (layer + 0.5) * 34})
    expect(page.get_by_role("heading", name=f"Layer {layer}, expert {expert}", exact=True)).to_be_visible()


def test_chat_tokens_are_coloured_by_experts_and_linked_to_them(server: Server, page: Page, page_log: PageLog) -> None:
    open_live(page, server.url)
    page.get_by_label("Max tokens").fill("24")
    page.get_by_label("Temperature").fill("0")
    send(page, "Tell me a story.")
    expect(page.locator("#chat-status")).to_have_text(ANSWERED, timeout=60_000)
    tokens = page.locator(".token")
    assert tokens.count() > 4
    hues = {tokens.nth(place).evaluate("token => token.style.getPropertyValue('--hue')") for place in range(5)}
    assert len(hues) > 1
    assert re.search(r"^\d+ tokens · .*\d+ of \d+ expert requests missed · .* read", page.locator(".cost").inner_text())

    tokens.nth(3).click()
    path = page.locator("#token-routing li")
    expect(path).to_have_count(6)
    layer, first = re.fullmatch(r"layer (\d+): (\d+), \d+", path.nth(2).inner_text()).groups()  # type: ignore[union-attr]
    assert layer == "2"

    page.locator("#heatmap").focus()
    for key in ["Home", "ArrowDown", "ArrowDown", *["ArrowRight"] * int(first), "Enter"]:
        page.keyboard.press(key)
    expect(page.get_by_role("heading", name=f"Layer 2, expert {first}")).to_be_visible()
    expect(tokens.nth(3)).to_have_class(re.compile("matching"))
    assert sum(counts_of_texts(page)) == page.locator(".token.matching").count()

    page.get_by_role("log", name="Conversation").focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(4)).to_have_class(re.compile("current"))
    expect(page.locator("#token-title")).to_contain_text("per layer, highest router weight first")
    expect(page.locator("#cursor-live")).to_contain_text(re.compile(r"top expert of each layer: (\d+, ){5}\d+$"))
    page.get_by_label("Colour tokens by").select_option("top expert of layer 2")
    same = tokens.nth(3).evaluate("token => Number(token.style.getPropertyValue('--hue'))")
    assert same == pytest.approx(int(first) * 137.508 % 360, abs=0.06)
    assert page_log.errors == page_log.failed == []
    assert {httpx.URL(url).host for url in page_log.urls} == {"127.0.0.1"}


def test_an_answer_can_be_stopped_and_the_conversation_goes_on(synthetic: Synthetic, rig: Rig, page: Page) -> None:
    goes_on = threading.Event()
    rig.model.before_step = lambda: None if len(rig.model.steps) < 5 else goes_on.wait(30)
    open_live(page, synthetic.url)
    page.get_by_label("Max tokens").fill("150")
    send(page, "Hello")
    expect(page.locator(".token").first).to_be_visible()
    expect(page.get_by_role("button", name="Stop")).to_be_focused()  # where Send was
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#chat-status")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Send")).to_be_focused()
    goes_on.set()
    page.get_by_label("Max tokens").fill("4")
    page.get_by_label("Message").fill("Go on")
    page.keyboard.press("Enter")
    expect(page.locator("#chat-status")).to_have_text(ANSWERED)
    expect(page.locator(".turn")).to_have_count(4)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".turn")).to_have_count(0)


def test_an_answer_that_max_tokens_cut_is_not_called_complete(synthetic: Synthetic, page: Page) -> None:
    open_live(page, synthetic.url)
    page.get_by_label("Max tokens").fill("4")
    send(page, "Hello")
    text = 'The answer was cut off after 4 tokens. Raise "Max tokens" for more.'
    expect(page.locator("#chat-status")).to_have_text(text)


def test_an_answer_that_the_context_cut_names_the_context(synthetic: Synthetic, page: Page) -> None:
    open_live(page, synthetic.url)
    page.get_by_label("Max tokens").fill("")
    send(page, "Hello")
    text = "The answer was cut off: the model's context is full."
    expect(page.locator("#chat-status")).to_have_text(text, timeout=60_000)


def test_an_answer_that_the_model_ended_is_complete(codec: Codec, page: Page) -> None:
    rig = Rig(eos_token_ids=frozenset({ord(".")}))
    rig.model.next_token = lambda _: ord(".")
    rig.engine.start()
    with synthetic_server(rig, codec) as ending:
        open_live(page, ending.url)
        page.get_by_label("Max tokens").fill("8")
        page.get_by_label("Temperature").fill("0")
        send(page, "Hello")
        expect(page.locator("#chat-status")).to_have_text("The answer is complete.")
    rig.engine.stop()


def test_what_the_server_refuses_to_answer_can_be_sent_again(synthetic: Synthetic, page: Page) -> None:
    open_live(page, synthetic.url)
    page.get_by_label("Max tokens").fill("5000")
    send(page, "Hello")
    expect(page.locator("#chat-status")).to_contain_text("maximum context length is 256 tokens")
    expect(page.get_by_label("Message")).to_have_value("Hello")


def test_inspector_lists_the_domains_routed_to_an_expert(server: Server, page: Page, page_log: PageLog) -> None:
    open_live(page, server.url)
    select(page, 4, 0)
    expect(page.locator("#expert-domains")).to_contain_text("No answers yet.")
    page.get_by_label("Max tokens").fill("6")
    page.get_by_role("button", name="Run all examples").click()
    expect(page.locator("#chat-status")).to_contain_text(
        "All examples are answered, in at most 6 tokens each.", timeout=60_000
    )
    names = page.locator(".turn .domain").all_inner_texts()
    assert len(names) == len(set(names)) == 10
    served, totals = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for expert in range(16):
        select(page, 4, expert)
        for title in page.locator(".domain-title").all_inner_texts():
            name, part, total = re.fullmatch(r"(\w+)\s+(\d+) of (\d+) tokens?, [\d.]+\s%", title).groups()  # type: ignore[union-attr]
            served[name] += int(part)
            totals[name] = int(total)
    assert all(0 < total <= 6 for total in totals.values())
    assert served == {name: 2 * total for name, total in totals.items()}  # of 16 experts each token chooses two
    assert "a uniform share, 13 %" in page.locator("#expert-domains").inner_text().replace("\u00a0", " ")

    page.get_by_text("Example prompts, one per domain").click()
    page.get_by_role("button", name="law", exact=True).click()
    expect(page.get_by_label("Message")).to_have_value(re.compile("licence"))
    expect(page.get_by_label("Message")).to_be_focused()
    page.get_by_label("Domain").fill("my own")
    page.keyboard.press("Enter")
    expect(page.locator("#chat-status")).to_have_text(ANSWERED, timeout=60_000)
    expect(page.locator(".domain-title", has_text="my own")).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#expert-domains")).to_contain_text("No answers yet.")
    assert page_log.errors == []


def test_a_new_chat_excludes_earlier_messages(synthetic: Synthetic, page: Page) -> None:
    open_live(page, synthetic.url)
    page.get_by_label("Max tokens").fill("4")
    sent = []
    for number in range(3):
        if number == 2:
            page.get_by_role("button", name="New chat").click()
        with page.expect_request("**/v1/chat/completions") as asked:
            send(page, "Hello")
        sent.append([message["role"] for message in asked.value.post_data_json["messages"]])
        expect(page.locator(".cost")).to_have_count(number + 1)
    assert sent == [["user"], ["user", "assistant", "user"], ["user"]]
    expect(page.locator(".separator")).to_have_text("New chat")
    expect(page.locator(".turn")).to_have_count(6)


HOSTILE = '<img src="/x" onerror="alert(1)"><script>alert(2)</script> \u202e&lt; ' + "w" * 60


def test_generated_markup_is_shown_as_text(synthetic: Synthetic, rig: Rig, page: Page, page_log: PageLog) -> None:
    written = iter(HOSTILE.encode())
    rig.model.next_token = lambda _: next(written, ord("."))
    open_live(page, synthetic.url)
    page.get_by_label("Max tokens").fill(str(len(HOSTILE.encode())))
    page.get_by_label("Domain").fill("<b>law</b>")
    page.get_by_label("Temperature").fill("0")
    send(page, "<i>Hello</i>")
    expect(page.locator("#chat-status")).to_have_text(ANSWERED)
    assert page.locator(".content").all_inner_texts() == ["<i>Hello</i>", HOSTILE]
    expect(page.locator(".turn .domain")).to_have_text("<b>law</b>")
    page.locator(".token").first.click()
    expect(page.locator("#token-title")).to_contain_text('"<"')
    assert page.locator("main :is(img, script, b, i)").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page_log.errors == []


def test_no_script_runs_but_the_servers_own(synthetic: Synthetic, page: Page, page_log: PageLog) -> None:
    open_live(page, synthetic.url)
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.isForeign = true";
            document.body.append(script);
            document.body.setAttribute("onclick", "window.isForeign = true");
            document.body.click();
        }"""
    )
    assert page.evaluate("window.isForeign") is None
    assert all("Content Security Policy" in error for error in page_log.errors)
    assert len(page_log.errors) == 2


def test_a_model_that_classifies_shows_its_labels_and_no_options_of_text(page: Page, page_log: PageLog) -> None:
    with serving("--model-type", "classify") as running:
        open_live(page, running.url)
        expect(page.get_by_label("Max tokens")).to_be_hidden()
        send(page, "Beat the eggs with the sugar, add the flour and bake in a moderate oven for half an hour.")
        expect(page.locator(".labels li").first).to_contain_text(re.compile(r"^recipes\s*\d+\.\d %$"))
        expect(page.locator(".cost")).to_have_text(re.compile(r"^\d+ tokens · \d+ of \d+ expert requests missed"))
        expect(page.locator("#chat-status")).to_have_text("The text is classified.")
    assert page_log.errors == []
