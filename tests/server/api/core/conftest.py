"""Texts that the grammar of a schema allows."""

import pytest

from server.api.core.json_schema import schema_text
from server.engine.interface import GrammarSpec
from server.engine.sampling.grammar import GrammarCompiler

END = 256


@pytest.fixture(scope="session")
def compiler():
    return GrammarCompiler([*(bytes([byte]) for byte in range(256)), b"<end>"], frozenset({END}), frozenset({END}))


@pytest.fixture
def takes(compiler):
    """Return whether the grammar of a schema allows a text as a whole."""

    def check(schema, text):
        matcher = compiler.compile(GrammarSpec("json_schema", schema_text(schema))).matcher()
        for byte in text.encode():
            if not matcher.allowed()[byte]:
                return False
            matcher.accept(byte)
        return matcher.is_complete or bool(matcher.allowed()[END])

    return check
