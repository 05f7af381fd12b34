"""Salts of blocks."""

from __future__ import annotations

from server.engine.block_salt import block_salt
from server.engine.interface import GenerationRequest, SamplingParams
from tests.server.engine.test_request_weights import FakeWeights


def salt(of_weights: bytes, own: bytes) -> bytes:
    weights = FakeWeights(cache_salt=of_weights) if of_weights else None
    return block_salt(GenerationRequest("test", (1,), SamplingParams(1), cache_salt=own), weights)


def test_weights_and_salt_of_a_request_are_told_apart() -> None:
    assert len({salt(b"ab", b""), salt(b"", b"ab"), salt(b"a", b"b"), salt(b"a", b""), salt(b"b", b"a")}) == 5


def test_the_same_weights_and_salt_give_the_same() -> None:
    assert salt(b"a", b"b") == salt(b"a", b"b")
