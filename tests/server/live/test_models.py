"""``/v1/models`` with the openai and anthropic packages, over a socket."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import openai
import pytest

from server.api.core.service.service import Service
from server.engine.text.codec import Codec
from server.setting_values import parse_alias
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig


@pytest.fixture(scope="module")
def live(codec: Codec) -> Iterator[FakeServer]:
    service = Service("1", aliases=[parse_alias("gpt-4o=fake"), parse_alias("claude-*=fake")])
    with serving_rig(Rig(num_blocks=64), codec, service=service) as running:
        yield running


def test_the_openai_package_lists_the_model_and_its_plain_alias(openai_client: openai.OpenAI) -> None:
    assert [(model.id, model.owned_by) for model in openai_client.models.list()] == [
        ("fake", "greenroom"),
        ("gpt-4o", "greenroom"),
    ]


def test_the_anthropic_package_lists_all_pages(anthropic_client: anthropic.Anthropic) -> None:
    models = list(anthropic_client.models.list(limit=1))
    assert [(model.id, model.display_name, model.type) for model in models] == [
        ("fake", "fake", "model"),
        ("gpt-4o", "fake", "model"),
    ]


def test_the_anthropic_package_finds_a_model_by_a_pattern(
    live: FakeServer, anthropic_client: anthropic.Anthropic
) -> None:
    model = anthropic_client.models.retrieve("claude-opus-4-8")
    assert (model.id, model.lifecycle, model.max_input_tokens) == (
        "claude-opus-4-8",
        "active",
        live.engine.max_model_len,
    )
    assert model.created_at.timestamp() == live.model.created


def test_the_anthropic_package_is_told_that_a_model_does_not_exist(anthropic_client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="does not exist") as missing:
        anthropic_client.models.retrieve("other")
    assert missing.value.type == "not_found_error"
