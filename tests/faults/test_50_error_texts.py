"""No error text shows a path, a pointer, a key, a traceback, or the prompt of another user."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.api.core.access.api_keys import KeyRing, Keys
from server.api.core.service.service import Service
from server.engine.runner import PagedModelRunner
from tests.expert_store.gated_reads import GatedReads
from tests.faults.bundled import serving_bundled
from tests.server.live.conftest import LiveServer
from tests.server.live.requests import ask, ask_together, complete, post, post_bytes, status_of

pytestmark = pytest.mark.slow

USER, ADMIN = "sk-user-7f3a9c", "sk-admin-51d0be"
OTHERS = "the launch code is swordfish"
# What an operating system, torch or Python write into their messages.
INTERNAL = "[Errno 5] Input/output error: '/srv/models/private/model.safetensors' <Tensor at 0x7f54e609f290>"
SHOWN = re.compile(r"(?:/[\w.-]+){2,}|0x[0-9a-f]{6,}|sk-(?:user|admin)|swordfish|Traceback|\.py\b|site-packages|Errno")
ROUTES = re.compile(r"/(?:v1|api|tokenize)[\w/.-]*|application/json|https?://\S+")  # these paths are public


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = shutil.copytree("server/demo/model", tmp_path_factory.mktemp("secret-folder") / "model")
    keys = Keys(KeyRing([USER]), KeyRing([ADMIN]))
    with serving_bundled(str(folder), Service("1", keys=keys), prefetch="off") as (server, _):
        yield server


def signed(request: bytes, key: str = USER) -> bytes:
    return request.replace(b"\r\n", b"\r\nAuthorization: Bearer %s\r\n" % key.encode(), 1)


def shown(answer: bytes) -> list[str]:
    """Return what an answer shows that it must not."""
    return SHOWN.findall(ROUTES.sub("", answer.decode("utf-8", "replace")))


def chat(content: object = "Hello", **fields: Any) -> bytes:
    return post("/v1/chat/completions", messages=[{"role": "user", "content": content}], **fields)


def image(url: str) -> bytes:
    return chat([{"type": "image_url", "image_url": {"url": url}}])


REFUSED = {
    "wrong key": signed(post("/v1/completions", prompt="x"), "sk-user-7f3a9"),
    "no key": post("/v1/completions", prompt="x"),
    "user on an admin route": signed(post("/v1/experts/pin", experts=[[0, 0]])),
    "unknown model": signed(post("/v1/completions", prompt="x", model="nobody")),
    "not JSON": signed(post_bytes("/v1/completions", b"{")),
    "wrong type": signed(post("/v1/completions", prompt={"a": 1})),
    "unknown route": signed(post("/v1/nowhere")),
    "token out of range": signed(post("/v1/completions", prompt=[10**9])),
    "too long": signed(post("/v1/completions", prompt=[5] * 5000)),
    "bad regex": signed(post("/v1/completions", prompt="x", guided_regex="(")),
    "bad grammar": signed(post("/v1/completions", prompt="x", guided_grammar="start: (")),
    "bad schema": signed(post("/v1/completions", prompt="x", guided_json={"type": "nothing"})),
    "no image": signed(image("x")),
    "image of a file": signed(image("file:secret")),
    "template": signed(chat(chat_template="{{ cycler.__init__.__globals__ }}")),
    "template's arguments": signed(chat(chat_template_kwargs={"tools": 1, "messages": 2})),
    "no expert": signed(post("/v1/experts/pin", experts=[[99, 99]]), ADMIN),
    "priority": signed(post("/v1/completions", prompt="x", priority=-1)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_shows_nothing_of_the_server(served: LiveServer, name: str) -> None:
    answer = ask(served.port, REFUSED[name])
    assert status_of(answer) >= 400
    assert shown(answer) == []


def test_an_expert_that_can_not_be_read_shows_its_number_only(
    served: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    GatedReads(monkeypatch, OSError(5, INTERNAL)).is_open.set()
    mine, others = (post("/v1/completions", prompt=each, max_tokens=4) for each in ("mine", OTHERS))
    for answer in ask_together(served.port, [signed(mine), signed(others), signed(mine)]):
        assert status_of(answer) == 500
        assert shown(answer) == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_fails_shows_nothing(served: LiveServer, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(f"{INTERNAL} while computing {OTHERS}")

    monkeypatch.setattr(PagedModelRunner, "run", fail)
    answer = ask(served.port, signed(complete(b"x", max_tokens=4, stream=stream)))
    assert b"the model failed to compute this request; see the log" in answer
    assert shown(answer) == []


def test_operation_routes_show_no_folder(served: LiveServer) -> None:
    for path in ("/health", "/ready", "/version", "/metrics", "/nowhere"):
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert b"secret-folder" not in ask(served.port, head.encode())


def test_the_description_of_the_api_shows_no_folder(served: LiveServer) -> None:
    head = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    described = json.loads(ask(served.port, head).partition(b"\r\n\r\n")[2])
    assert str(Path.cwd()) not in json.dumps(described)
    assert "secret-folder" not in json.dumps(described)
