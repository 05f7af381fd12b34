"""Manifests that are damaged or another model's, and experts in the place of others, are refused in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from expert_store import open_pack
from server.model.checkpoint.locate import BUNDLED
from tests.e2e.processes import run_command
from tests.faults.damage import flip_bit
from tests.packed_models import pack_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_model(BUNDLED, tmp_path_factory.mktemp("packs") / "out")


@pytest.fixture
def out(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "out"))


def refusal(*command: str) -> str:
    refused = run_command(*command)
    assert (refused.returncode, refused.stdout) == (1, ""), refused.stderr
    (line,) = refused.stderr.splitlines()
    return line


def test_a_server_does_not_start_with_a_manifest_that_has_a_flipped_bit(out: Path) -> None:
    manifest = out / "manifest.json"
    flip_bit(manifest, manifest.stat().st_size // 2)
    line = refusal("serve", str(out), "--port", "0")
    assert line.startswith(f"greenroom: {manifest} is damaged: ")
    assert line.endswith("; pack the model again")


def test_a_server_does_not_start_with_the_manifest_of_another_model(out: Path, tmp_path: Path) -> None:
    other = pack_model(BUNDLED, tmp_path / "other", "int8")
    shutil.copy(other / "manifest.json", out / "manifest.json")
    line = refusal("serve", str(out), "--port", "0")
    assert line.endswith("is missing; copy it again, or pack the model again")


def test_an_expert_in_the_place_of_another_layers_is_found(out: Path) -> None:
    opened = open_pack(out)
    first, other = (opened.catalog.layers[layer].experts[3] for layer in list(opened.catalog.layers)[:2])
    with first.extent.source.path.open("r+b") as file:
        file.seek(first.extent.offset)
        record = file.read(first.extent.nbytes)
        file.seek(other.extent.offset)
        file.write(record)
    assert "1 of 96 experts of" in (line := refusal("verify", str(out)))
    assert "are damaged: expert 3 of layer 1; the first: the checksum of its record" in line
