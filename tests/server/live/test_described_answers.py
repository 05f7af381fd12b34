"""The OpenAPI description: for any body, the answer is one that the description contains."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
import schemathesis

from server.api.core.service.service import Service
from server.engine.text.codec import Codec
from server.lifecycle.application import application_of
from tests.described_answers import CHECKS, examples, session
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig

__all__ = ["session"]  # a fixture

pytestmark = pytest.mark.slow

schema = schemathesis.openapi.from_dict(application_of(Service("1")).openapi())


@pytest.fixture(scope="module")
def server(codec: Codec) -> Iterator[FakeServer]:
    with serving_rig(Rig(num_blocks=16, max_running=64, max_queued=256), codec) as live:
        yield live


@schema.parametrize()
@examples(6)
def test_every_answer_is_in_the_description(
    case: schemathesis.Case, server: FakeServer, session: requests.Session
) -> None:
    case.call_and_validate(base_url=f"http://127.0.0.1:{server.port}", checks=CHECKS, session=session)
