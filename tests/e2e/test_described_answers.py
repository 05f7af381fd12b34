"""For any request, the real command answers as its OpenAPI description says.

The routes are administrators', too: experts come and go, and so do variants and adapters, which are real ones if the
request happens to name one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import strategies as st

from server.api.core.service.service import Service
from server.lifecycle.application import application_of
from server.model.checkpoint.locate import BUNDLED
from tests.adapters import write_adapter
from tests.described_answers import CHECKS, examples, session
from tests.e2e.processes import Server, serving
from tests.server.model.variants import other, read_tensors, save_variant

__all__ = ["session"]  # a fixture

STREAM = "/v1/experts/stream"  # it never ends
WEIGHTS = "law"  # name of a variant, and of an adapter
NAMES = [WEIGHTS, "greenroom-demo", f"greenroom-demo:{WEIGHTS}", "absent"]
NAMING = ("name", "path", "lora_name", "lora_path", "model")  # fields and parameters that name weights

schema = schemathesis.openapi.from_dict(application_of(Service("1")).openapi())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("weights")
    tensors = read_tensors(BUNDLED)
    last = other(tensors, lambda name: re.search(r"layers\.5\.mlp\.experts\.", name) is not None, 1)
    save_variant(folder / "experts" / WEIGHTS, last)
    write_adapter(folder / "adapters" / WEIGHTS, 0.01, inputs=192)
    folders = ("--experts-dir", str(folder / "experts"), "--adapters-dir", str(folder / "adapters"))
    limits = ("--host-expert-memory", "50%", "--max-model-len", "128", "--threads", "1", "--kv-cache-memory", "16MiB")
    with serving(*folders, *limits) as server:
        yield server
        assert requests.get(f"{server.url}/health", timeout=10).status_code == 200


def naming_weights(values: dict[str, Any], names: list[str]) -> None:
    """Replace the values that name weights, in this order."""
    values.update(zip((field for field in NAMING if field in values), names, strict=False))


@schema.exclude(path=STREAM).parametrize()
@schema.given(names=st.none() | st.lists(st.sampled_from(NAMES), min_size=2, max_size=3))
@examples(5)
def test_every_answer_is_in_the_description(
    case: schemathesis.Case, names: list[str] | None, running: Server, session: requests.Session
) -> None:
    for part in (case.body, case.path_parameters) if names else ():
        if isinstance(part, dict):
            naming_weights(part, names or [])
    case.call_and_validate(base_url=running.url, checks=CHECKS, timeout=60, session=session)


@schema.include(path=STREAM).parametrize()
@examples(5)
def test_the_stream_of_experts_begins_as_described(case: schemathesis.Case, running: Server) -> None:
    with requests.request(**case.as_transport_kwargs(base_url=running.url), stream=True, timeout=30) as response:
        described = case.operation.definition.raw["responses"]["200" if response.ok else "4XX"]
        assert response.headers["content-type"].partition(";")[0] in described["content"]
        assert not response.ok or next(response.iter_lines()).startswith(b"event: ")
