"""Files of a tokenizer that can't be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.locate import BUNDLED
from server.model.errors import ModelError
from server.model.text.tokenizer import Tokenizer
from server.panics import PanicError


@pytest.mark.parametrize("content", ["", "{", "null", "7", "[]", "{}", "[" * 100_000, '{"version": 5}', "\0"])
def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    for path in BUNDLED.glob("*token*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=f"{tmp_path.name} has no usable tokenizer: [^\n]+$"):
        Tokenizer(FolderCheckpoint(tmp_path))


def changed_tokenizer(folder: Path, **parts: Any) -> Path:
    """Write the bundled model's tokenizer with other parts."""
    for path in BUNDLED.glob("*token*"):
        shutil.copy(path, folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    return folder


def test_a_tokenizer_on_which_the_library_panics_is_refused_in_one_line(tmp_path: Path) -> None:
    prefix = {"continuing_subword_prefix": "\u00e9"}
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], **prefix}
    with pytest.raises(ModelError, match=f"{tmp_path.name} has no usable tokenizer: a library panicked: [^\n]+$"):
        Tokenizer(FolderCheckpoint(changed_tokenizer(tmp_path, model=model)))


def test_a_panic_while_encoding_is_an_error(tmp_path: Path) -> None:
    tokenizer = Tokenizer(
        FolderCheckpoint(changed_tokenizer(tmp_path, pre_tokenizer={"type": "FixedLength", "length": 0}))
    )
    with pytest.raises(PanicError, match="chunk size must be non-zero"):
        tokenizer.encode("a")


def test_a_panic_while_decoding_is_an_error(tmp_path: Path) -> None:
    decoder = {"type": "Strip", "content": "a", "start": 9, "stop": 9}
    tokenizer = Tokenizer(FolderCheckpoint(changed_tokenizer(tmp_path, decoder=decoder)))
    with pytest.raises(PanicError, match="index out of bounds"):
        tokenizer.decode(tokenizer.encode("a"))


def test_a_regular_expression_in_a_decoder_is_refused(tmp_path: Path) -> None:
    replace = {"type": "Replace", "pattern": {"Regex": "(a|a)*b"}, "content": ""}
    decoder = {"type": "Sequence", "decoders": [{"type": "Fuse"}, replace]}
    with pytest.raises(ModelError, match="its decoder replaces by a regular expression"):
        Tokenizer(FolderCheckpoint(changed_tokenizer(tmp_path, decoder=decoder)))
