"""Each client works unmodified against one running server."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.catalog import CLIENTS, Client
from tests.clients.conftest import Served
from tests.clients.environments import UnreachableIndexError, install, run, versions

pytestmark = pytest.mark.clients


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_works_unmodified(
    client: Client, served: Served, environments: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder = environments / (client.shares or client.name)
    try:
        install(client, folder)
    except UnreachableIndexError as error:
        pytest.skip(f"not installed: {error}")
    before = served.server.total("request_success_total")
    version = versions(client, folder)
    record_property("version", version)  # in the report of --junit-xml
    done = run(client, folder, tmp_path / "place", served.values)
    sys.stdout.write(f"{version}\n{done.stdout[-6000:]}")  # in the report of -rA, and of a failure
    assert done.returncode == 0
    assert re.search(client.says, done.stdout)
    assert served.server.total("request_success_total") > before
