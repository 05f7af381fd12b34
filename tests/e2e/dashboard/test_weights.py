"""The panel of variants and adapters, and what they change in the playground and the inspector."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from client import Client
from tests.e2e.dashboard.pages import ANSWERED, PageLog, Synthetic, open_live, send
from tests.e2e.processes import Server, serving
from tests.e2e.weights import make_weights

BASE = "greenroom-demo"


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
    hues = []
    for number, name in enumerate((BASE, "code", "poems", "code")):
        page.get_by_label("Model").select_option(name)
        send(page, "Hi")
        expect(page.locator(".cost")).to_have_count(number + 1)
        turn = page.locator(".turn").last
        tokens = turn.locator(".token").evaluate_all("all => all.map((one) => one.style.getPropertyValue('--hue'))")
        hues.append(set(tokens))
    assert [len(each) for each in hues] == [1] * 4
    assert hues[1] == hues[3]
    assert len(set.union(*hues)) == 3


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
