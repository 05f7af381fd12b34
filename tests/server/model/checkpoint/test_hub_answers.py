"""The grammar of what a hub tells about versions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.model.checkpoint.hub_answers import Commit, EntityTag, Sha256

SHA1, SHA256 = "0123456789abcdef" * 2 + "01234567", "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (f'"{SHA1}"', SHA1),
        (f'W/"{SHA1}"', SHA1),
        (SHA256, SHA256),
        (f'"{SHA1[:32]}"', SHA1[:32]),
        (f'"{SHA1[:32]}-150"', f"{SHA1[:32]}-150"),
        ('"65f2a1b3-1c9f0"', "65f2a1b3-1c9f0"),
        (f'"{SHA1}-gzip"', f"{SHA1}-gzip"),
    ],
)
def test_etags_of_hubs_storage_and_web_servers_are_known(header: str, value: str) -> None:
    assert EntityTag.of_header(header) == value


@pytest.mark.parametrize(
    "header",
    ["", '""', "../../../x", '"../x"', '"/etc/x"', '"abc"', '"config.json"', f'"{SHA1}', f'"{SHA1}/x"', "W/W/a"],
)
def test_other_etags_are_refused(header: str) -> None:
    with pytest.raises(ValueError, match="is not the ETag of a file"):
        EntityTag.of_header(header)


@given(st.text() | st.from_regex(r'(W/)?"?[0-9a-f./-]*"?', fullmatch=True))
def test_an_etag_is_the_plain_name_of_a_file(header: str) -> None:
    try:
        value = EntityTag.of_header(header)
    except ValueError:
        return
    assert value.replace("-", "").isalnum()
    assert value.isascii()


@pytest.mark.parametrize("text", ["main", SHA1[:39], SHA1.upper(), SHA1 + "\n", "../x", "", None, 5])
def test_what_is_no_commit_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not the hash of a commit"):
        Commit(text)


def test_commits_and_checksums_are_known() -> None:
    assert (Commit(SHA1), Sha256(SHA256)) == (SHA1, SHA256)
