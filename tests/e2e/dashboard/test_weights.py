"""The panel of variants and adapters, and what they change in the playground and the inspector."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import APIResponse, Locator, Page, Route, expect

from client import Client
from tests.e2e.dashboard.pages import ANSWERED, PageLog, Synthetic, open_live, send
from tests.e2e.processes import Server, serving
from tests.e2e.weights import make_weights

BASE = "greenroom-demo"
POLLED_MS = 30_000  # the page asks less often where the server answers late, as beside other tests
TINTS = "all => all.map((one) => getComputedStyle(one).getPropertyValue('--tint'))"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = make_weights(tmp_path_factory.mktemp("weights"))
    with serving("--host-expert-memory", "50%", "--dtype", "float32", *flags) as running:
        yield running


@pytest.fixture
def client(weights: Server) -> Iterator[Client]:
    with Client(weights.url) as client:
        yield client
        for variant in client.variants():
            client.unload_variant(variant.name)
        for adapter in client.adapters():
            client.unload_adapter(adapter.name)


def row(page: Page, model: str) -> Locator:
    return page.locator("#weights-body tr").filter(has=page.get_by_text(model, exact=True))


def load(page: Page, kind: str, name: str, folder: str) -> None:
    page.locator("#weights-loader summary").click()
    page.get_by_label("Kind").select_option(kind)
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("Folder", exact=True).fill(folder)
    page.locator("#weights-load").click()


def test_an_adapter_is_loaded_chosen_and_unloaded(
    weights: Server, client: Client, page: Page, page_log: PageLog
) -> None:
    open_live(page, weights.url)
    load(page, "adapter", "code", "code")
    expect(page.locator("#weights-result")).to_have_text("The adapter code was loaded.")
    expect(row(page, "code")).to_contain_text("registered")
    page.get_by_label("Model").select_option("code")
    page.get_by_label("Colour tokens by").select_option("model")
    page.get_by_label("Max tokens").fill("8")
    send(page, "Hi")
    expect(page.locator("#chat-status")).to_have_text(ANSWERED)
    expect(page.locator(".model-name")).to_have_text("code")
    expect(row(page, "code")).to_contain_text("resident")
    page.get_by_role("button", name="Unload adapter code").click()
    page.get_by_role("button", name="Cancel").click()
    expect(row(page, "code")).to_be_visible()
    assert len(client.adapters()) == 1
    page.get_by_role("button", name="Unload adapter code").click()
    expect(page.get_by_role("dialog", name="Unload the adapter code?")).to_be_visible()
    page.get_by_role("button", name="Unload", exact=True).click()
    expect(page.locator("#weights-note")).to_have_text("No variants or adapters are loaded.")
    expect(page.locator("#chat-model option")).to_have_count(1)
    assert client.adapters() == []
    assert page_log.errors == []


def test_a_variant_is_replaced_and_the_inspector_shows_it(weights: Server, client: Client, page: Page) -> None:
    client.load_variant("law", "law")
    open_live(page, weights.url)
    load(page, "variant", "law", "law")
    expect(page.locator("#weights-result")).to_have_text("The variant law was replaced.")
    expect(page.locator("#chat-model optgroup[label=Variants] option")).to_have_text(f"{BASE}:law")
    expect(row(page, f"{BASE}:law")).to_contain_text("0 / 16")
    page.locator("#heatmap").focus()
    page.keyboard.press("End")
    for _ in range(5):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#expert-title")).to_contain_text("Layer 5")
    expect(page.locator("#expert-facts")).to_contain_text("law@")


def test_tokens_of_different_models_differ_in_colour(weights: Server, client: Client, page: Page) -> None:
    client.load_adapter("code", "code")
    client.load_adapter("poems", "poems")
    open_live(page, weights.url)
    page.get_by_label("Colour tokens by").select_option("model")
    page.get_by_label("Max tokens").fill("4")
    tints = []
    for number, name in enumerate((BASE, "code", "poems", "code")):
        page.get_by_label("Model").select_option(name)
        send(page, "Hi")
        expect(page.locator(".cost")).to_have_count(number + 1)
        turn = page.locator(".turn").last
        tints.append(set(turn.locator(".token").evaluate_all(TINTS)))
    assert [len(each) for each in tints] == [1] * 4
    assert tints[1] == tints[3]
    assert len(set.union(*tints)) == 3


def test_tokens_show_the_weights_of_adapters_that_were_chosen_for_each(
    weights: Server, client: Client, page: Page, page_log: PageLog
) -> None:
    for name in ("code", "poems"):
        client.load_adapter(name, name)
    open_live(page, weights.url)
    page.set_viewport_size({"width": 390, "height": 800})
    page.get_by_label("Model").select_option("auto, for each token (Arrow)")
    page.get_by_label("Max tokens").fill("12")
    send(page, "Hi")
    expect(page.locator("#chat-status")).to_have_text(ANSWERED)
    expect(page.locator(".cost")).to_contain_text(re.compile(r"^(code|poems) \d+\s%, (code|poems) \d+\s% · 12 tokens"))
    tokens = page.locator(".token")
    expect(tokens.first).not_to_have_attribute("title", re.compile("."))  # they are coloured by experts
    page.get_by_label("Colour tokens by").select_option("model")
    titles = tokens.evaluate_all("all => all.map((one) => one.title)")
    heaviest = [re.fullmatch(r"(code|poems) \d+\s%, (?!\1)(code|poems) \d+\s%", title)[1] for title in titles]  # type: ignore[index]
    tints = dict(zip(heaviest, tokens.evaluate_all(TINTS), strict=True))
    assert len(set(tints.values())) == len(tints)
    assert "linear-gradient" in tokens.first.evaluate("one => getComputedStyle(one).backgroundImage")
    legend = page.get_by_role("list", name="Mean weights by adapter").get_by_role("listitem")
    shares = [int(re.search(r"(\d+)\s%", text)[1]) for text in legend.all_inner_texts()]  # type: ignore[index]
    assert sum(shares) == pytest.approx(100, abs=1)
    page.get_by_role("log", name="Conversation").focus()
    page.keyboard.press("Home")
    expect(page.locator("#token-adapters")).to_have_text(f"Adapters, by their mean weight over the layers: {titles[0]}")
    expect(page.locator("#cursor-live")).to_contain_text(f"adapters: {titles[0]}, top expert of each layer")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expect(row(page, "code").locator("td").nth(4)).to_have_text(re.compile(r"^[1-9]\d*$"), timeout=15_000)
    assert page_log.errors == []


def test_routing_by_token_is_offered_while_an_adapter_can_be_chosen_so(
    weights: Server, client: Client, page: Page
) -> None:
    open_live(page, weights.url)
    load(page, "adapter", "code", "code")
    options = page.locator("#chat-model option")
    expect(options).to_have_text([BASE, "auto, for each token (Arrow)", "code"])
    client.unload_adapter("code")
    expect(options).to_have_text([BASE], timeout=POLLED_MS)


def test_a_list_of_models_that_comes_late_does_not_replace_a_newer_one(
    weights: Server, client: Client, page: Page
) -> None:
    open_live(page, weights.url)
    options = page.locator("#chat-model option")
    expect(options).to_have_text([BASE])
    late: list[tuple[Route, APIResponse]] = []
    page.route("**/v1/models", lambda route: late.append((route, route.fetch())), times=1)
    load(page, "adapter", "code", "code")
    while not late:
        page.wait_for_timeout(10)  # in which the route is called
    client.unload_adapter("code")
    with page.expect_response("**/v1/models", timeout=POLLED_MS):  # that of the next poll
        pass
    ((route, response),) = late
    with page.expect_event("requestfinished", lambda request: request.url.endswith("/v1/models")):
        route.fulfill(response=response)
    page.evaluate("new Promise(requestAnimationFrame)")
    assert "code" in response.text()
    expect(options).to_have_text([BASE])


def test_the_form_offers_the_folders_and_suggests_their_names(weights: Server, client: Client, page: Page) -> None:
    open_live(page, weights.url)
    page.locator("#weights-loader summary").click()
    folders = page.locator("#weights-folders option")
    for kind, paths in (("variant", ["law"]), ("adapter", ["code", "poems"])):
        page.get_by_label("Kind").select_option(kind)
        expect(folders).to_have_count(len(paths))
        assert folders.evaluate_all("all => all.map((one) => one.value)") == paths
    page.get_by_label("Folder", exact=True).fill("poems")
    page.get_by_label("Folder", exact=True).press("Tab")
    expect(page.get_by_label("Name", exact=True)).to_have_value("poems")


def test_a_system_prompt_and_adapters_are_added_to_a_chat(weights: Server, client: Client, page: Page) -> None:
    for name in ("code", "poems"):
        client.load_adapter(name, name)
    open_live(page, weights.url)
    page.locator("#instructions summary").click()
    page.get_by_label("System prompt", exact=True).fill("Be brief.")
    for name in ("code", "nobody", "poems", "poems"):
        page.get_by_label("Add an adapter").fill(name)
        page.get_by_label("Add an adapter").press("Enter")
        if name == "nobody":
            expect(page.locator("#mix-result")).to_have_text("There is no adapter nobody.")
    expect(page.locator("#mix-result")).to_have_text("poems is added already.")
    page.get_by_role("button", name="Remove poems").click()
    page.get_by_label("Factor of code").fill("0.5")
    expect(page.locator("#instructions-summary")).to_have_text("(system prompt, code \N{MULTIPLICATION SIGN} 0.5)")
    page.get_by_label("Max tokens").fill("4")
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "Hi")
    body = asked.value.post_data_json
    assert body["adapters"] == [{"name": "code", "weight": 0.5}]
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    expect(page.locator("#chat-status")).to_have_text(ANSWERED)


def test_the_playground_says_why_auto_chose(weights: Server, client: Client, page: Page) -> None:
    client.load_adapter("code", "code", examples=["def add(a, b): return a + b"])
    open_live(page, weights.url)
    page.get_by_label("Model").select_option("auto")
    page.get_by_label("Max tokens").fill("4")
    send(page, "def add(a, b): return a + b")
    expect(page.locator(".turn .reason")).to_have_text(re.compile(r"^Routing: code\. The prompt is most like them"))
    expect(page.locator(".model-name")).to_have_text("code")


def test_a_refused_folder_is_explained(weights: Server, client: Client, page: Page) -> None:
    open_live(page, weights.url)
    load(page, "variant", "law", "nowhere")
    expect(page.locator("#weights-result.bad")).to_contain_text("can't be opened")
    assert client.variants() == []


def test_a_server_that_loads_none_says_how_to_begin(synthetic: Synthetic, page: Page, page_log: PageLog) -> None:
    open_live(page, synthetic.url)
    expect(page.locator("#weights-note")).to_contain_text("Start the server with --experts-dir or --adapters-dir")
    expect(page.locator("#weights-loader")).to_be_hidden()
    assert page_log.errors == []
