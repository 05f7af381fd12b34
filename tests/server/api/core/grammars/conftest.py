"""Texts that the grammar of a schema allows."""

import pytest

from server.api.core.grammars.json_schema import schema_text
from server.engine.interface import GrammarSpec
from tests.server.api.grammar_texts import allows, byte_compiler


@pytest.fixture(scope="session")
def compiler():
    return byte_compiler()


@pytest.fixture
def takes(compiler):
    """Return whether the grammar of a schema allows a text as a whole."""
    return lambda schema, text: allows(compiler, GrammarSpec("json_schema", schema_text(schema)), text)
