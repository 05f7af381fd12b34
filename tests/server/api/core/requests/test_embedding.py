"""Requests for embeddings: what they hold when they fail."""

import gc

import pytest

from server.engine.interface import GenerationFailedError


@pytest.fixture
def _no_collection():
    """Leave reference cycles alone."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize("path", ["/v1/embeddings", "/score"])
def test_a_request_that_fails_holds_no_memory(fake, post, path):
    fake.engine.hidden_size, fake.engine.failure = 8, GenerationFailedError("the disk is broken")
    response = post(path, {"input": "a b"} if path == "/v1/embeddings" else {"queries": "a", "documents": "b"})
    assert "the disk is broken" in response.text
    assert fake.service.memory.held_bytes == 0
