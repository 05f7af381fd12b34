"""Names of files inside a model can't lead out of its folder."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from urllib.parse import quote, urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from expert_store.errors import CheckpointError
from expert_store.file_name import FileName

ROOT, FOLDER = "/models/one", "http://server/models/one/"
PARTS = st.sampled_from(
    ["..", ".", "", "a", "b.json", "C:", "c:d", "\\", "~", "%2e%2e", "?", "#", "\0", "\n", "\ud800"]
)
NAMES = st.one_of(st.text(), st.lists(PARTS, max_size=5).map("/".join), st.lists(PARTS, max_size=3).map("".join))


def accepted(name: str) -> FileName | None:
    try:
        return FileName(name)
    except CheckpointError:
        return None


@given(NAMES)
def test_an_accepted_name_is_a_path_below_its_folder_as_it_is_written(name: str) -> None:
    if found := accepted(name):
        path = os.path.normpath(f"{ROOT}/{found}" if not found.startswith("/") else found)
        assert path == f"{ROOT}/{name}"
        assert Path(path).relative_to(ROOT).as_posix() == name


@given(NAMES)
def test_an_accepted_name_is_an_address_below_that_of_its_folder(name: str) -> None:
    if found := accepted(name):
        assert urljoin(FOLDER, f"./{quote(found)}") == FOLDER + quote(name)


@given(st.lists(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_. +()=,-]{0,40}", fullmatch=True), min_size=1, max_size=4))
def test_usual_names_are_accepted(parts: list[str]) -> None:
    name = "/".join(parts)
    assert FileName(name) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../../x.json", r"a part of it is '\.\.'"),
        ("/abs/x.txt", "a part of it is ''"),
        ("a//b", "a part of it is ''"),
        ("./a", r"a part of it is '\.'"),
        ("", "a part of it is ''"),
        ("a\\..\\b", "it has a backslash"),
        ("C:/x", "a part of it begins with the drive 'C:'"),
        ("a\nb", "it has characters that can't be printed"),
        ("a\0b", "it has characters that can't be printed"),
        ("\u202egpj.exe", "it has characters that can't be printed"),
        ("\udc80", "it has characters that can't be printed"),
        ("x" * 256, "a part of it is longer than 255 bytes"),
        ("a/" * 600 + "b", "it is longer than 1024 bytes"),
        (5, "it is not a text"),
        (None, "it is not a text"),
    ],
)
def test_a_name_that_is_refused_is_told_with_the_reason(name: object, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"is not the name of a file inside a model: {reason}$"):
        FileName(name)


def test_an_error_shows_the_beginning_of_a_long_name() -> None:
    with pytest.raises(CheckpointError) as refused:
        FileName("x" * 100_000)
    assert len(str(refused.value)) < 400


def test_json_is_checked_where_names_are_read_from_it() -> None:
    names = TypeAdapter(dict[FileName, int])
    assert type(next(iter(names.validate_json('{"a/b": 1}')))) is FileName
    with pytest.raises(ValidationError, match=r"'\.\./a' is not the name of a file"):
        names.validate_json('{"../a": 1}')


def test_a_name_stays_one_when_it_is_sent_to_another_process() -> None:
    assert type(pickle.loads(pickle.dumps(FileName("a/b")))) is FileName
