"""Tokens that a grammar allows, for tokenizers of several kinds."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from server.engine.interface import Grammar, GrammarSpec, RequestRefusedError
from server.engine.sampling import lexer_sizes
from server.engine.sampling.grammar import MAX_DIGITS, GrammarCompiler, GrammarMatcher
from server.engine.sampling.json_grammar import MAX_DEPTH, MAX_KEY
from server.engine.sampling.lexer_sizes import LexerSize
from server.engine.text.codec import Codec
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.text.tokenizer import Tokenizer as ModelTokenizer
from tests.server.engine.text.tokenizers_of_kinds import KNOWN, OTHERS, with_added_tokens

BYTES = [bytes([byte]) for byte in range(256)]
END, OTHER_END, PADDING = 256, 257, 258
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "kind": {"enum": ["green", "rôle", "the room"]},
        "place": {"anyOf": [{"type": "null"}, {"const": "東京"}]},
    },
    "required": ["name", "age", "kind", "place"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    """Return a vocabulary of single bytes, two end tokens, and two ids without a token."""
    tokens = [*BYTES, b"<end>", b"<other end>", b"", b""]
    return GrammarCompiler(tokens, frozenset({END}), frozenset({END, OTHER_END, 9999}))


def schema(value: Any) -> GrammarSpec:
    return GrammarSpec("json_schema", json.dumps(value))


def read(matcher: GrammarMatcher, text: bytes) -> None:
    for byte in text:
        assert matcher.allowed()[byte], (text, byte)
        matcher.accept(byte)


def next_bytes(matcher: GrammarMatcher) -> bytes:
    return bytes(np.flatnonzero(matcher.allowed()[:256]).tolist())


def walk(grammar: Grammar, seed: int, most: int, is_end: Callable[[int], bool]) -> tuple[list[int], bool]:
    """Choose allowed tokens at random; return them, and whether the grammar ended."""
    matcher, generator, token_ids = grammar.matcher(), np.random.default_rng(seed), []
    while len(token_ids) < most:
        token_id = int(generator.choice(np.flatnonzero(matcher.allowed())))
        if is_end(token_id):
            return token_ids, True
        matcher.accept(token_id)
        token_ids.append(token_id)
        if matcher.is_complete:
            return token_ids, True
    return token_ids, False


@pytest.fixture(scope="module", params=sorted(KNOWN))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    tokenizer = with_added_tokens(KNOWN[request.param])
    # A small vocabulary has not all that JSON needs.
    tokenizer.add_tokens([*(chr(code) for code in range(33, 127)), "ô", "東", "京"])
    return tokenizer


def codec_of(tokenizer: Tokenizer, folder: Path) -> Codec:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=None, eos_token="<|end|>")
    fast.save_pretrained(folder)
    return Codec(ModelTokenizer(FolderCheckpoint(folder)))


def written(codec: Codec, prompt: Sequence[int], token_ids: Sequence[int]) -> str:
    detokenizer = codec.detokenizer(prompt)
    return "".join(detokenizer.push(token_id) for token_id in token_ids) + detokenizer.flush()


@pytest.mark.slow
def test_allowed_tokens_give_json_of_the_schema(tokenizer: Tokenizer, tmp_path: Path) -> None:
    codec = codec_of(tokenizer, tmp_path)
    grammar, end = codec.compile_grammar(schema(PERSON)), tokenizer.token_to_id("<|end|>")
    prompt = tokenizer.encode("a room").ids
    for seed in range(10):
        token_ids, has_ended = walk(grammar, seed, 2000, lambda token_id: token_id == end)
        assert has_ended
        person = json.loads(written(codec, prompt, token_ids))
        assert list(person) == PERSON["required"]
        assert 0 <= person["age"] <= 130
        assert len(person["name"]) <= 8
        assert person["kind"] in PERSON["properties"]["kind"]["enum"]
        assert person["place"] in (None, "東京")


@pytest.mark.slow
def test_allowed_tokens_give_a_json_object(tokenizer: Tokenizer, tmp_path: Path) -> None:
    codec = codec_of(tokenizer, tmp_path)
    grammar, end = codec.compile_grammar(GrammarSpec("json_object")), tokenizer.token_to_id("<|end|>")
    found = []
    for seed in range(30):
        token_ids, has_ended = walk(grammar, seed, 300, lambda token_id: token_id == end)
        if has_ended:
            found.append(json.loads(written(codec, tokenizer.encode("a").ids, token_ids)))
    assert all(isinstance(each, dict) for each in found)
    assert any(found)


def test_a_grammar_is_found_by_its_spec_while_it_is_held_and_compiled_again_later(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    codec, spec = codec_of(tokenizer, tmp_path), GrammarSpec("json_object")
    held = codec.compile_grammar(spec)
    assert codec.grammar(GrammarSpec("json_object")) is held
    dropped = weakref.ref(held)
    del held
    assert dropped() is None
    assert codec.grammar(spec).spec == spec


@pytest.mark.parametrize("kind", sorted(OTHERS))
def test_tokens_of_unknown_bytes_support_no_grammar(kind: str, tmp_path: Path) -> None:
    codec = codec_of(with_added_tokens(OTHERS[kind]), tmp_path)
    with pytest.raises(RequestRefusedError, match="bytes of this model's tokens are unknown") as error:
        codec.compile_grammar(GrammarSpec("json_object"))
    assert error.value.param == "response_format"


def test_end_tokens_are_allowed_where_the_grammar_may_end(
    compiler: GrammarCompiler,
) -> None:
    matcher = compiler.compile(schema({"type": "integer"})).matcher()
    assert not matcher.allowed()[256:].any()
    read(matcher, b"12")
    assert np.flatnonzero(matcher.allowed()[256:]).tolist() == [0, 1]
    assert not matcher.is_complete
    matcher.accept(OTHER_END)
    assert matcher.is_complete


def test_a_text_that_no_token_may_follow_is_complete(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile(schema({"const": {"a": [1]}})).matcher()
    read(matcher, b'{"a":[1]')
    assert not matcher.is_complete
    read(matcher, b"}")
    assert matcher.is_complete
    assert not matcher.may_go_on(matcher.allowed())


def test_white_space_is_bounded(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile(GrammarSpec("json_object")).matcher()
    assert next_bytes(matcher) == b"{"
    read(matcher, b"{")
    assert next_bytes(matcher) == b'"}'
    read(matcher, b'"a": ')
    assert set(next_bytes(matcher)) == set(b'"{[tfn-0123456789')
    read(matcher, b"1, ")
    assert next_bytes(matcher) == b'"'


def test_depth_of_objects_and_length_of_keys_are_bounded(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile(GrammarSpec("json_object")).matcher()
    read(matcher, b'{"":' * MAX_DEPTH)
    assert not set(b"{[") & set(next_bytes(matcher))
    matcher = compiler.compile(GrammarSpec("json_object")).matcher()
    read(matcher, b'{"' + b"k" * MAX_KEY)
    assert next_bytes(matcher) == b'"'


@pytest.mark.parametrize("value", [{"type": "integer"}, {"type": "number"}, {}])
def test_digits_of_numbers_are_bounded(compiler: GrammarCompiler, value: Any) -> None:
    matcher = compiler.compile(schema(value)).matcher()
    read(matcher, b"1" * MAX_DIGITS)
    assert not set(b"0123456789") & set(next_bytes(matcher))
    assert matcher.allowed()[END]


def test_digits_of_strings_are_unbounded(compiler: GrammarCompiler) -> None:
    for value in ({"type": "string"}, {"type": "string", "pattern": "^[0-9]+$"}):
        read(compiler.compile(schema(value)).matcher(), b'"' + b"7" * 5 * MAX_DIGITS + b'"')
    read(compiler.compile(schema({"const": "1" * 50})).matcher(), b'"' + b"1" * 50 + b'"')


def test_a_schema_may_refer_to_its_own_definitions(compiler: GrammarCompiler) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "additionalProperties": False}
    matcher = compiler.compile(schema({"$defs": {"node": node}, "$ref": "#/$defs/node"})).matcher()
    read(matcher, b'{"next":{"next":{}}}')
    assert matcher.is_complete


def test_a_grammar_in_lark_may_begin_with_other_text_and_name_tokens(compiler: GrammarCompiler) -> None:
    lark = 'start: THOUGHT "</think>" <end> %json {"enum": [1, 2]}\nTHOUGHT: /[^<]*/'
    matcher = compiler.compile(GrammarSpec("lark", lark)).matcher()
    read(matcher, b"so { it may be</think>")
    assert np.flatnonzero(matcher.allowed()).tolist() == [END]
    matcher.accept(END)
    assert next_bytes(matcher) == b"12"


def test_tokens_too_long_for_the_token_tree_are_never_allowed() -> None:
    compiler = GrammarCompiler([*BYTES, b"x" * 5000], frozenset(), frozenset())
    matcher = compiler.compile(schema({"type": "string"})).matcher()
    read(matcher, b'"xx')
    assert not matcher.allowed()[256]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"type": "strange"}, "Invalid type: strange"),
        ({"$ref": "#"}, "no text of this model's tokens satisfies it"),
        ({"$ref": "#/$defs/nowhere"}, "nowhere"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "incompatible types"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "minimum"),
        ({"enum": []}, "empty"),
        (False, "schema is false"),
        ({"type": "string", "pattern": "("}, "regex parse error"),
        ({"type": "string", "pattern": "(a)\\1"}, "backreferences are not supported"),
        ({"not": {}}, "not"),
        ({"enum": ["\ud800"]}, "unexpected end of hex escape"),
    ],
)
def test_an_impossible_grammar_is_refused_in_one_line(compiler: GrammarCompiler, value: Any, message: str) -> None:
    with pytest.raises(RequestRefusedError, match="'response_format' can't be followed") as error:
        compiler.compile(schema(value))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_schema_is_not_fetched_from_an_address(compiler: GrammarCompiler) -> None:
    with pytest.raises(RequestRefusedError, match="does not fetch resources"):
        compiler.compile(schema({"$ref": "http://127.0.0.1:9/schema.json"}))


def test_a_text_that_no_token_continues_is_an_error(compiler: GrammarCompiler) -> None:
    few = GrammarCompiler([b'"', b"r", b"o"], frozenset(), frozenset())
    matcher = few.compile(schema({"enum": ["ro", "rôle"]})).matcher()
    matcher.accept(0)
    matcher.accept(1)
    assert matcher.error is None
    assert np.flatnonzero(matcher.allowed()).tolist() == [2]
    matcher = few.compile(schema({"const": "rôle"})).matcher()
    matcher.accept(0)
    matcher.accept(1)
    assert not matcher.allowed().any()
    assert not matcher.is_complete
    assert "no token of this model continues" in str(matcher.error)


def test_a_pattern_of_too_many_states_is_an_error(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile(schema({"type": "string", "pattern": "(.{1,1000}){1,1000}"})).matcher()
    text = b'"' + b"once upon a time " * 100
    while matcher.allowed()[text[0]]:
        matcher.accept(text[0])
        text = text[1:]
    assert not matcher.allowed().any()
    assert str(matcher.error) == "'response_format' became too complex to follow: simplify its patterns"


def test_a_full_lexer_is_renewed(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexer_sizes, "SIZES", [LexerSize(2000, 30_000, 0)])
    grammar = compiler.compile(schema({"type": "string", "maxLength": 900}))
    matchers = [grammar.matcher() for _ in range(2)]
    text = b'"' + b"once upon a time " * 50
    for byte in text:
        for matcher in matchers:
            read(matcher, bytes([byte]))
    read(grammar.matcher(), text + b'"')


def test_a_pattern_too_complex_for_one_sequence_is_tried_again_for_the_next(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(schema({"type": "string", "pattern": "(.{1,1000}){1,1000}"}))
    lengths = []
    for _ in range(2):
        matcher, length = grammar.matcher(), 0
        matcher.accept(ord('"'))
        while matcher.allowed()[ord("a")]:
            matcher.accept(ord("a"))
            length += 1
        lengths.append(length)
    assert lengths[0] == lengths[1] > 0


def test_errors_name_the_parameter(compiler: GrammarCompiler) -> None:
    with pytest.raises(RequestRefusedError, match="'tools' can't be followed") as error:
        compiler.compile(GrammarSpec("lark", "start: nothing", "tools"))
    assert error.value.param == "tools"


OPEN = {"type": "object", "additionalProperties": {"type": "integer"}}


@pytest.mark.parametrize(
    "spec", [schema(OPEN), GrammarSpec("json_object"), GrammarSpec("lark", f"start: %json {json.dumps(OPEN)}")]
)
def test_a_key_is_not_written_twice(compiler: GrammarCompiler, spec: GrammarSpec) -> None:
    matcher = compiler.compile(spec).matcher()
    read(matcher, b'{"a":1,"ab":2,"a')
    assert b'"' not in next_bytes(matcher)
    read(matcher, b"b")
    assert b'"' not in next_bytes(matcher)
    read(matcher, b'c":3')


def test_a_token_that_holds_the_rest_of_a_key_is_masked() -> None:
    tokens = [*BYTES, b"<end>", b'a":', b'b":', b'{"a":1,"']
    matcher = GrammarCompiler(tokens, frozenset({END}), frozenset({END})).compile(schema(OPEN)).matcher()
    matcher.accept(259)
    allowed = matcher.allowed()
    assert not allowed[257]
    assert allowed[258]


def test_a_key_is_written_twice_if_the_schema_has_no_other(compiler: GrammarCompiler) -> None:
    only = {"type": "object", "patternProperties": {"^a$": {"type": "integer"}}, "additionalProperties": False}
    matcher = compiler.compile(schema(only)).matcher()
    read(matcher, b'{"a":1,"a":2}')


def test_a_grammar_of_the_clients_own_is_followed_to_the_letter(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile(GrammarSpec("own", r'start: "{\"a\":1,\"a\":2}"')).matcher()
    read(matcher, b'{"a":1,"a":2}')
    assert matcher.is_complete
