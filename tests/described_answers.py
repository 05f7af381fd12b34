"""Checks of answers against the OpenAPI description, for any request that schemathesis generates."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import Phase, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

EXAMPLES = "SCHEMATHESIS_EXAMPLES"  # variable with the number of requests to each route


def examples(number: int) -> settings:
    """Return the settings of a test with so many requests to each route, unless the variable has another number."""
    phases = [Phase.explicit, Phase.generate]
    return settings(max_examples=int(os.environ.get(EXAMPLES, number)), phases=phases, database=None)


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """A session that keeps its connection, and does not look for proxies at each request."""
    with requests.Session() as session:
        session.trust_env = False
        yield session


def the_server_has_not_failed(_context: object, response: schemathesis.Response, _case: schemathesis.Case) -> None:
    """A request may exceed its own ``timeout`` (504), but the server must not fail."""
    assert response.status_code != 500


CHECKS = [
    the_server_has_not_failed,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]
