"""Requests of every dialect to the bundled model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

MODEL = "greenroom-demo"
QUESTIONS = ("Write a recipe for apple pie.", "What is a contract?", "Once upon a time", "def add(a, b):")
TEXTS = ("Once upon a time there was a", "The defendant shall", "import os\n\ndef", "Take two tablets") * 2
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@dataclass(frozen=True)
class Request:
    """A request; the texts of equal ones with a key are equal."""

    dialect: str
    path: str
    body: Json
    key: str | None  # None if the text is left to chance

    @property
    def is_stream(self) -> bool:
        return bool(self.body.get("stream"))


def make_request(chance: random.Random, models: tuple[str, ...]) -> Request:
    """Return a random request.

    Args:
        models: names of other weights, which some requests use.
    """
    dialect, path, make = chance.choice(DIALECTS)
    model = chance.choice(models) if chance.random() < 0.15 else MODEL
    body = {"model": model, **make(chance)}
    if dialect in STREAMED:
        body["stream"] = chance.random() < 0.6
    is_known = model == MODEL and dialect not in FREE
    key = json.dumps([path, {name: value for name, value in body.items() if name != "stream"}])
    return Request(dialect, path, body, key if is_known else None)


def _completion(chance: random.Random) -> Json:
    return {"prompt": chance.choice(TEXTS), "max_tokens": chance.choice((4, 24, 60)), "temperature": 0}


def _sampled(chance: random.Random) -> Json:
    options = {"top_p": 0.9, "top_k": 20, "presence_penalty": 0.5, "n": 2, "logprobs": 3, "stop": ["\n\n"]}
    chosen = {name: value for name, value in options.items() if chance.random() < 0.5}
    return {"prompt": chance.choice(TEXTS) * chance.randint(1, 30), "max_tokens": 20, "temperature": 1.0, **chosen}


def _messages(chance: random.Random) -> list[Json]:
    return [{"role": "user", "content": chance.choice(QUESTIONS)}]


def _chat(chance: random.Random) -> Json:
    return {"messages": _messages(chance), "max_tokens": chance.choice((8, 40)), "temperature": 0}


def _structured(chance: random.Random) -> Json:
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    return {"messages": _messages(chance), "max_tokens": 30, "temperature": 0, "response_format": form}


def _response(chance: random.Random) -> Json:
    return {"input": chance.choice(QUESTIONS), "max_output_tokens": 24, "temperature": 0}


def _ollama_chat(chance: random.Random) -> Json:
    return {"messages": _messages(chance), "options": {"temperature": 0, "num_predict": 24}}


def _ollama_text(chance: random.Random) -> Json:
    return {"prompt": chance.choice(TEXTS), "raw": True, "options": {"temperature": 0, "num_predict": 24}}


def _embedding(chance: random.Random) -> Json:
    return {"input": [chance.choice(TEXTS), chance.choice(QUESTIONS)]}


Make = Callable[[random.Random], Json]
DIALECTS: tuple[tuple[str, str, Make], ...] = (
    ("completions", "/v1/completions", _completion),
    ("sampled", "/v1/completions", _sampled),
    ("chat", "/v1/chat/completions", _chat),
    ("structured", "/v1/chat/completions", _structured),
    ("responses", "/v1/responses", _response),
    ("messages", "/v1/messages", _chat),
    ("ollama_chat", "/api/chat", _ollama_chat),
    ("ollama_generate", "/api/generate", _ollama_text),
    ("embeddings", "/v1/embeddings", _embedding),
    ("tokenize", "/tokenize", lambda chance: {"prompt": chance.choice(TEXTS)}),
    ("count_tokens", "/v1/messages/count_tokens", lambda chance: {"messages": _messages(chance)}),
)
STREAMED = {"completions", "sampled", "chat", "structured", "responses", "messages", "ollama_chat", "ollama_generate"}
FREE = {"sampled"}


def text_of(body: Json) -> str:
    """Return the text of a whole answer of any dialect."""
    if "choices" in body:
        return "".join(
            choice["text"] if "text" in choice else choice["message"]["content"] or "" for choice in body["choices"]
        )
    if "output" in body:
        return "".join(part["text"] for item in body["output"] for part in item.get("content", ()))
    if "content" in body:
        return "".join(part.get("text", "") for part in body["content"])
    if "message" in body:
        return str(body["message"]["content"])
    if "response" in body:
        return str(body["response"])
    names = ("data", "tokens", "input_tokens")
    return json.dumps([body[name] for name in names if name in body])


def delta_of(chunk: Json) -> str:
    """Return the text that a chunk of a stream of any dialect adds."""
    if "choices" in chunk:
        return "".join(
            choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in chunk["choices"]
        )
    if chunk.get("type") == "response.output_text.delta":
        return str(chunk["delta"])
    if chunk.get("type") == "content_block_delta":
        return str(chunk["delta"].get("text", ""))
    if "done" not in chunk:
        return ""
    return str(chunk["message"]["content"] if "message" in chunk else chunk.get("response", ""))


def error_of(chunk: Json) -> str | None:
    """Return the message of the error in a chunk or a body, in any dialect."""
    inner = chunk.get("response")
    error = chunk.get("error") or (inner.get("error") if isinstance(inner, dict) else None)
    return None if not error else str(error.get("message") if isinstance(error, dict) else error)
