"""Debian's chromium, if it is installed, and a page whose console and requests are recorded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from server.engine.text.codec import Codec
from tests.byte_tokenizer import byte_codec
from tests.e2e.dashboard.pages import PageLog, Synthetic, synthetic_server
from tests.e2e.processes import Server, serving
from tests.server.engine.fakes import Rig

CHROMIUM = shutil.which("chromium")
# No emulation of a GPU, and no processes that wait for a page of another site.
FLAGS = ["--disable-gpu", "--disable-features=SpareRendererForSitePerProcess,IsolateOrigins,site-per-process"]


@pytest.fixture(scope="package")  # not session: while playwright runs, no other event loop can run in this thread
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    """A server with the bundled model and three tiers."""
    with serving("--host-expert-memory", "40%", "--device-expert-memory", "15%", "--dtype", "float32") as running:
        yield running


@pytest.fixture
def page_log() -> PageLog:
    return PageLog()


@pytest.fixture
def page(browser: Browser, page_log: PageLog) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.on("console", page_log.add_console_message)
    page.on("pageerror", lambda error: page_log.errors.append(str(error)))
    page.on("request", page_log.add_request)
    page.on("requestfailed", lambda request: page_log.failed.append(request.url))
    yield page
    context.close()


@pytest.fixture(scope="session")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return byte_codec(tmp_path_factory.mktemp("bytes"))


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.engine.start()
    yield rig
    rig.engine.stop()


@pytest.fixture
def synthetic(rig: Rig, codec: Codec) -> Iterator[Synthetic]:
    with synthetic_server(rig, codec) as serving:
        yield serving
