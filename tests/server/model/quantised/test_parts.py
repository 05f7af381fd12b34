"""A matrix that is converted in parts of rows has the bits of one that is converted as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.model.checkpoint import packed_trunk
from tests.server.model.checkpoint.gguf.test_gguf_checkpoint import Q4_0, Q8_0, logits_of, rewrite


def test_parts_of_rows_have_the_bits_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rewrite(tmp_path / "q.gguf", Q4_0, trunk=Q8_0)
    whole = logits_of(path)
    monkeypatch.setattr(packed_trunk, "PART_BYTES", 1)
    assert torch.equal(logits_of(path), whole)
