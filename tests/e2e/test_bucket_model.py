"""The command `greenroom` with models in object storage, which a server of S3's protocol holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import numpy as np
import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from expert_store.errors import SourceChangedError
from expert_store.sources.base import Piece
from server.model.checkpoint.locate import BUNDLED
from server.model.checkpoint.remote.bucket import BucketClient, BucketSource
from tests.e2e.processes import run_command, serving
from tests.e2e.test_web_model import FEW, complete
from tests.fault_proxy import Fault, fault_proxy

SECRET = "a-secret-that-nobody-may-see"


@pytest.fixture(scope="module")
def storage() -> Iterator[Mapping[str, str]]:
    """Variables of a bucket named ``models``."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "a-key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }
    with httpx.Client() as client:
        client.put(f"{variables['AWS_ENDPOINT_URL']}/models").raise_for_status()
    yield variables
    server.stop()


def test_a_pack_is_written_to_a_bucket_and_served_from_there(storage: Mapping[str, str], tmp_path: Path) -> None:
    packed = run_command("pack", str(BUNDLED), "s3://models/packed", "--weights", "int8", environment=storage)
    assert packed.returncode == 0, packed.stderr
    local = str(tmp_path / "packed")
    assert run_command("pack", str(BUNDLED), local, "--weights", "int8").returncode == 0
    with serving("s3://models/packed", *FEW, environment=storage) as server, serving(local, *FEW) as expected:
        assert complete(server, "packed") == complete(expected) != ""
        assert server.total("expert_lookups_total", 'tier="remote"') > 0
        _, _, log = server.interrupt()
    assert SECRET not in log


@pytest.mark.parametrize(
    "faults",
    [[{"status": 503}], [{"status": 429}], [{"cut": 1000}, {"cut": 0}], [{"seconds": 0.3}]],
    ids=["503", "429", "cut", "latency"],
)
def test_a_passing_failure_of_the_storage_is_retried(
    storage: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, faults: list[Fault]
) -> None:
    content = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8)
    with fault_proxy(storage["AWS_ENDPOINT_URL"]) as proxy:
        for name, value in {**storage, "AWS_ENDPOINT_URL": proxy.url}.items():
            monkeypatch.setenv(name, value)
        client = BucketClient("s3://models")
        obstore.put(client.store, "retried", content.tobytes())
        opened = BucketSource(client, "retried").open()
        proxy.inject(*faults)
        target = np.empty(50_000, np.uint8)
        opened.read([Piece(1000, target)])
        assert np.array_equal(target, content[1000:51_000])
        assert proxy.left == []
        obstore.put(client.store, "retried", content[::-1].tobytes())
        with pytest.raises(SourceChangedError, match="retried was changed in the storage while it is served"):
            opened.read([Piece(1000, target)])
        client.close()


def test_a_folder_of_safetensors_in_a_bucket_is_inspected(storage: Mapping[str, str]) -> None:
    store = S3Store(
        "models",
        prefix="plain",
        endpoint=storage["AWS_ENDPOINT_URL"],
        client_options={"allow_http": True},
        access_key_id="a-key",
        secret_access_key=SECRET,
        region="us-east-1",
    )
    for path in BUNDLED.iterdir():
        if path.is_file():
            obstore.put(store, path.name, path)
    result = run_command("inspect", "s3://models/plain", environment=storage)
    assert result.returncode == 0, result.stderr
    assert "96 in 6 layers" in result.stdout


def test_a_bucket_that_is_not_there_is_refused_in_one_line_without_the_secret(storage: Mapping[str, str]) -> None:
    result = run_command("inspect", "s3://nowhere/model", environment=storage)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("greenroom: ")
    assert "s3://nowhere/model" in line
    assert SECRET not in line
