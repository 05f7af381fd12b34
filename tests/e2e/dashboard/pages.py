"""Helpers for pages of the dashboard, and servers for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import ConsoleMessage, Page, Request, expect

from server.administration.history import SERIES
from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.service import Service
from server.engine.text.codec import Codec
from tests.e2e.dashboard.synthetic_experts import SyntheticExperts
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import serving_model

NUM_LAYERS, NUM_EXPERTS = 48, 128
ANSWERED = re.compile("^The answer (is complete|was cut off)")  # the status of an answer that nothing interrupted


@dataclass
class Synthetic:
    """A server with synthetic experts."""

    url: str
    experts: SyntheticExperts
    service: Service


@dataclass
class PageLog:
    """Console errors of a page, and the URLs that it requested."""

    errors: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add_console_message(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def add_request(self, request: Request) -> None:
        self.urls.append(request.url)


@contextmanager
def synthetic_server(
    rig: Rig,
    codec: Codec,
    port: int = 0,
    name: str = "synthetic",
    num_layers: int = NUM_LAYERS,
    num_experts: int = NUM_EXPERTS,
) -> Iterator[Synthetic]:
    experts, service = SyntheticExperts(num_layers, num_experts, name=name), Service("1")
    model = LoadedModel(name, rig.engine, codec, experts=experts)
    with serving_model(model, rig.engine, service=service, port=port) as live:
        yield Synthetic(f"http://127.0.0.1:{live.port}", experts, service)
        service.is_draining = True  # ends the stream


def lines(num_points: int = 12, **series: float | None) -> dict[str, Any]:
    """Return a history whose lines are level; those that are not named are 0."""
    values = dict.fromkeys(SERIES, 0.0) | series
    return {
        "object": "history",
        "interval_seconds": 5.0,
        "times": [1e9 + 5 * number for number in range(num_points)],
        "series": {name: [value] * num_points for name, value in values.items()},
    }


def open_live(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")


def send(page: Page, message: str) -> None:
    page.get_by_label("Message").fill(message)
    page.get_by_role("button", name="Send").click()
