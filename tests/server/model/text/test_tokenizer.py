"""Files of a tokenizer that can't be used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from server.model.checkpoint.locate import BUNDLED
from server.model.errors import ModelError
from server.model.text.tokenizer import Tokenizer


@pytest.mark.parametrize("content", ["", "{", "null", "7", "[]", "{}", "[" * 100_000, '{"version": 5}', "\0"])
def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    for path in BUNDLED.glob("*token*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=f"{tmp_path.name} has no usable tokenizer: [^\n]+$"):
        Tokenizer(tmp_path)
