"""Each client works unmodified against one running server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.catalog import CLIENTS, Client
from tests.clients.conftest import Served
from tests.clients.environments import install, run, versions

pytestmark = pytest.mark.clients


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_works_unmodified(
    client: Client, served: Served, environments: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder = environments / client.name
    install(client, folder)
    before = served.server.total("request_success_total")
    record_property("version", versions(client, folder))  # in the report of --junit-xml
    done = run(client, folder, tmp_path / "place", served.values)
    assert done.returncode == 0, f"{client.name} ended with {done.returncode}:\n{done.stdout[-6000:]}"
    assert served.server.total("request_success_total") > before
