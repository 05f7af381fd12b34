"""A checkpoint of another kind than those of files: what loads and serves a model knows the two interfaces alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expert_store import ExpertKey, ExpertStore, TensorSource, index_sources, least_bytes
from expert_store.errors import SourceGoneError
from expert_store.sources.base import Bytes, Piece, SourceIdentity
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.tensor_map import CheckpointMap, map_checkpoint
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint


@dataclass(frozen=True)
class MemorySource:
    """Bytes in memory that have a name."""

    name: str
    short_name: str
    content: bytes = field(repr=False)

    def open(self, *, is_direct: bool = True) -> OpenMemory:
        return OpenMemory(self)


class OpenMemory:
    """Open bytes in memory, which are gone once the content of ``gone`` is their name."""

    gone = ""

    def __init__(self, source: MemorySource):
        self._source = source

    @property
    def identity(self) -> SourceIdentity:
        return SourceIdentity("memory", (self._source.name,), len(self._source.content))

    def has_changed(self) -> bool:
        return False

    def refuse_changed(self) -> None:
        pass

    def read(self, pieces: Sequence[Piece], scratch: Bytes | None = None) -> None:
        if self._source.name == OpenMemory.gone:
            raise SourceGoneError(self._source.short_name, "the server of it has gone")
        for offset, target in pieces:
            target[:] = np.frombuffer(self._source.content, np.uint8, len(target), offset)

    def close(self) -> None:
        pass


class MemoryCheckpoint(FolderCheckpoint):
    """The small files of a folder, and its tensors from memory."""

    def index(self) -> Mapping[str, TensorSource]:
        content = (self.path / "model.safetensors").read_bytes()
        return index_sources([MemorySource("memory://tiny/model", "model", content)])

    def map(self, model: Any) -> CheckpointMap:
        return map_checkpoint(model, self.index())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint("qwen3_moe", tmp_path / "tiny")


def experts_of(catalog: Any, key: ExpertKey) -> dict[str, torch.Tensor]:
    store = ExpertStore(catalog, least_bytes(catalog, 1))
    try:
        with store.lease({key: 1}) as lease:
            return {name: tensor.clone() for _, weights in lease for name, tensor in weights.items()}
    finally:
        store.close()


def test_trunk_and_experts_of_another_source_are_those_of_the_file(folder: Path) -> None:
    of_file, of_memory = (load_trunk(each, torch.float32) for each in (folder, MemoryCheckpoint(folder)))
    assert [source.name for source in of_memory.catalog.sources] == ["memory://tiny/model"]
    found, expected = of_memory.model.state_dict(), of_file.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    key = ExpertKey(min(of_file.catalog.layers), 3)
    found, expected = experts_of(of_memory.catalog, key), experts_of(of_file.catalog, key)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_source_that_is_gone_fails_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = MemoryCheckpoint(folder).index()
    monkeypatch.setattr(OpenMemory, "gone", "memory://tiny/model")
    monkeypatch.setattr(MemoryCheckpoint, "index", lambda _: index)
    with pytest.raises(SourceGoneError, match="from memory://tiny/model: the server of it has gone"):
        load_trunk(MemoryCheckpoint(folder), torch.float32)
