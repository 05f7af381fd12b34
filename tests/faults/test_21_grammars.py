"""Schemas that can't be compiled, or that take for ever: refused in a sentence, off the event loop."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

from server.api.core.grammars.json_schema import MAX_SCHEMA_BYTES
from server.api.core.requests.loaded_model import LoadedModel
from server.engine.interface import Grammar, GrammarSpec
from server.engine.text.codec import Codec
from tests.server.engine.fakes import Rig, continuation
from tests.server.live.conftest import FakeServer, serving_model
from tests.server.live.event_loop_stalls import StallWatch
from tests.server.live.requests import ask, ask_together, complete, error_of, post_bytes, status_of
from tests.server.live.test_event_loop_stalls import ATTEMPTS, LIMIT_SECONDS, served_interpreter

__all__ = ["served_interpreter"]

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "additionalProperties": False}
DOUBLED = {"d0": {"const": 1}} | {
    f"d{depth}": {"anyOf": [{"$ref": f"#/$defs/d{depth - 1}"}] * 2} for depth in range(1, 30)
}
CHOICES = [{"anyOf": [{"properties": {f"p{i}": {"const": j}}} for j in range(10)]} for i in range(6)]
BAD = {
    "unknown type": ({"type": "strange"}, "Invalid type: strange"),
    "no such definition": ({"$ref": "#/$defs/nowhere"}, "nowhere"),
    "itself and nothing else": ({"$ref": "#"}, "no text"),
    "each other": ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "no text"),
    "text and number": ({"allOf": [{"type": "string"}, {"type": "number"}]}, "incompatible types"),
    "minimum above maximum": ({"type": "integer", "minimum": 3, "maximum": 1}, "minimum"),
    "required and forbidden": ({"type": "object", "required": ["a"], "additionalProperties": False}, "'a'"),
    "no choice": ({"enum": []}, "empty"),
    "back reference": ({"type": "string", "pattern": r"(a)\1"}, "no grammar enforces 'pattern'"),
    "look-ahead": ({"type": "string", "pattern": "(?=a)b"}, "no grammar enforces 'pattern'"),
    "parentheses": ({"type": "string", "pattern": "(" * 5000 + ")" * 5000}, "regex parse error"),
    "a million choices": ({"allOf": CHOICES}, "schema too large"),
    "a thousand million remainders": ({"type": "integer", "multipleOf": 123456789}, "fewer digits"),
    "huge enumeration": ({"enum": [f"value {number}" for number in range(200_000)]}, "must not hold more than"),
    "127 levels": (json.loads('{"items":' * 120 + "{}" + "}" * 120), "nested deeper than 64"),
}
GOOD = {
    "(a+)+$": {"type": "string", "pattern": "(a+)+$"},
    "nested repetition": {"type": "string", "pattern": "^((a{1,50}){1,50}){1,50}$"},
    "recursive": {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
    "doubled 30 times": {"$defs": DOUBLED, "$ref": "#/$defs/d29"},
    "large enumeration": {"enum": [f"value {number}" for number in range(9_000)]},
    "endless array": {"type": "array", "minItems": 10**9, "items": {"type": "null"}},
    "endless text": {"type": "string", "minLength": 10**8},
    "a thousand properties": {"type": "object", "properties": {f"p{number}": {} for number in range(1000)}},
}


def with_schema(schema: Any, prompt: bytes = b"a", *, strict: bool = False, **body: Any) -> bytes:
    described = {"name": "it", "schema": schema, "strict": strict}
    response_format = {"type": "json_schema", "json_schema": described}
    return complete(prompt, response_format=response_format, **body)


def text_of(answer: bytes) -> str:
    assert status_of(answer) == 200, answer
    text: str = json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"]
    return text


def is_alive(live: FakeServer) -> bool:
    return text_of(ask(live.port, complete(b"alive", max_tokens=9))) == continuation(b"alive", 9)


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_schemas_that_can_not_be_compiled_are_refused_in_a_sentence(shared_live: FakeServer, name: str) -> None:
    schema, reason = BAD[name]
    answer = ask(shared_live.port, with_schema(schema, strict=True))
    error = error_of(answer)
    assert status_of(answer) == 400
    assert error["param"] in {"response_format", "response_format.json_schema", "response_format.json_schema.schema"}
    assert reason in error["message"]
    assert len(error["message"]) < 300
    assert is_alive(shared_live)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOD)
def test_large_and_unbounded_schemas_are_compiled(shared_live: FakeServer, name: str) -> None:
    text = text_of(ask(shared_live.port, with_schema(GOOD[name], max_tokens=40)))
    assert text[0] in '"{[v1'
    assert is_alive(shared_live)


def test_ten_thousand_levels_are_refused_by_the_json_reader(shared_live: FakeServer) -> None:
    deep = b'{"items":' * 10_000 + b"{}" + b"}" * 10_000
    body = json.dumps({"prompt": [97], "response_format": {"type": "json_schema", "json_schema": {"name": "it"}}})
    content = body.encode().replace(b'"name": "it"', b'"name": "it", "schema": ' + deep)
    answer = ask(shared_live.port, post_bytes("/v1/completions", content))
    assert status_of(answer) == 400
    assert "nested deeper than" in error_of(answer)["message"]
    assert is_alive(shared_live)


def test_no_address_is_asked_for_a_schema(shared_live: FakeServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/schema.json"
        answer = ask(shared_live.port, with_schema({"$ref": url}))
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert status_of(answer) == 400
    assert "fetch" in error_of(answer)["message"]


class SlowCodec:
    """A codec whose compilations wait for the test."""

    def __init__(self, codec: Codec):
        self._codec = codec
        self.may_compile = threading.Event()

    def compile_grammar(self, spec: GrammarSpec, hold: Callable[[int], bool]) -> Grammar:
        self.may_compile.wait(60)
        return self._codec.compile_grammar(spec, hold)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)


def test_a_slow_compilation_is_refused_while_others_are_answered(codec: Codec) -> None:
    rig, slow = Rig(num_blocks=512), SlowCodec(codec)
    rig.find_grammar = codec.grammar
    rig.engine.start()
    model = LoadedModel("fake", rig.engine, slow)  # type: ignore[arg-type]
    model.grammar_compiler.max_seconds = 0.05
    with serving_model(model, rig.engine) as server:
        slow_ones = [with_schema({"const": number}) for number in range(5)]
        *answers, other = ask_together(server.port, [*slow_ones, complete(b"other", max_tokens=9)])
        assert text_of(other) == continuation(b"other", 9)
        assert sorted(map(status_of, answers)) == [400, 400, 503, 503, 503]
        refused = next(error_of(answer) for answer in answers if status_of(answer) == 400)
        assert refused["message"] == "'response_format' took longer than 0.05 seconds to compile: simplify it."
        slow.may_compile.set()
        model.grammar_compiler.max_seconds = 60
        assert [text_of(ask(server.port, request)) for request in slow_ones] == ["0", "1", "2", "3", "4"]
    rig.engine.stop()


def ask_in_turn(port: int, requests: list[bytes]) -> list[bytes]:
    return [ask(port, request) for request in requests]


@pytest.mark.slow
def test_compiling_does_not_block_the_event_loop(live: FakeServer, served_interpreter: None) -> None:
    schemas = [schema for schema, _ in BAD.values()] + list(GOOD.values())
    requests = [with_schema(schema, max_tokens=3) for schema in schemas]
    compiled = [request for request in requests if len(request) < MAX_SCHEMA_BYTES]  # reading others is not the subject
    worst = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as clients:
        for _ in range(ATTEMPTS):
            with StallWatch(live.loop) as watch:
                replies = clients.submit(ask_in_turn, live.port, compiled).result()
            assert {status_of(reply) for reply in replies} == {200, 400}
            worst.append((watch.seconds, watch.place))
            if watch.seconds < LIMIT_SECONDS:
                break
    seconds, place = min(worst)
    assert seconds < LIMIT_SECONDS, place
