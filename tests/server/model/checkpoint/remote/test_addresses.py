"""Addresses of models: their formats by name, and their names without secrets."""

from __future__ import annotations

import pytest

from server.model.checkpoint.local_files import is_gguf
from server.model.checkpoint.remote.addresses import without_secrets


@pytest.mark.parametrize(
    ("address", "expected"),
    [("http://host:8000/Qwen3-VL", False), ("https://host/Qwen3-VL/", False), ("http://host:8000/a-Q4_K_M.gguf", True)],
)
def test_a_port_is_no_tag_of_a_gguf_file(address: str, expected: bool) -> None:
    assert is_gguf(address) == expected


def test_messages_have_neither_password_nor_query() -> None:
    assert without_secrets("https://me:secret@host:8000/a/b?key=secret#c") == "https://host:8000/a/b"


def test_what_is_no_address_is_named_without_a_password() -> None:
    assert without_secrets("http://me:secret@[x/a") == "http://***@[x/a"
