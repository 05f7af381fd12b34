"""Random traces, the same for the same seed."""

from __future__ import annotations

import random
from typing import Any

from tests.fuzz.subjects import ADAPTERS, FAMILIES, NATIVE, VARIANTS
from tests.fuzz.trace import Event, Trace

Json = dict[str, Any]

MODEL = "base"
CONTEXT = 256  # tokens, of all subjects
LAYERS, EXPERTS = 3, 8  # some subjects have fewer of them, and refuse the others
LETTERS = range(32, 127)
POLICIES = ("lru", "lfru", "slru", "lfu", "arc")
PREFETCHERS = ("auto", "off", "gate", "coactivation")
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "yz"]}},
    "required": ["a"],
    "additionalProperties": False,
}
GRAMMARS: list[Json] = [
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
    {"structured_outputs": {"regex": "[a-f]{3,9}(x|yz)"}},
    {"structured_outputs": {"choice": ["yes", "no", "never"]}},
    {"structured_outputs": {"json": SCHEMA}},
    {"guided_grammar": 'start: "a" | "b" start'},
]


def make_trace(seed: int, families: tuple[str, ...] = tuple(FAMILIES)) -> Trace:
    """Return the trace of a seed."""
    return _Maker(seed, families).make()


class _Maker:
    def __init__(self, seed: int, families: tuple[str, ...]):
        self._random = random.Random(seed)
        self._seed, self._family = seed, self._random.choice(families)
        self._prefixes = [self._tokens(self._random.choice(lengths)) for lengths in ((0, 5), (17, 40), (96, 130))]

    def make(self) -> Trace:
        settings = self._settings()
        asked = [self._ask() for _ in range(self._random.randint(2, 6))]
        asked += [self._with_other_weights(event) for event in asked if self._random.random() < 0.5]
        pace = self._random.choice((0.0, 0.003, 0.02))
        events = self._first_loads()
        for _ in range(self._random.randint(8, 40)):
            event = self._request(asked) if self._random.random() < 0.65 else self._change()
            events.append({"after": round(self._random.expovariate(1) * pace, 4), **event})
        return Trace(self._family, self._seed, settings, events)

    def _first_loads(self) -> list[Event]:
        """Return loads of most weights, so that most requests for them find them."""
        kinds = [("variant", name) for name in VARIANTS] + [("adapter", name) for name in ADAPTERS]
        chosen = [each for each in kinds if self._random.random() < 0.6]
        return [{"after": 0.02, "do": f"load_{kind}", "name": name, "path": name} for kind, name in chosen]

    def _settings(self) -> Json:
        pick = self._random.choice
        settings: Json = {
            "deterministic": self._family in NATIVE or self._random.random() < 0.8,
            "threads": pick((1, 2)),
            "max_model_len": CONTEXT,  # limits that requests leave out depend on it
            "cache_policy": pick(POLICIES),
            "prefetch": pick(PREFETCHERS),
            "admission": pick(("auto", "off")),
            "max_running_requests": pick((1, 2, 4, 8, 64)),
            "max_queued_requests": pick((2, 256, 256)),
            "max_batched_tokens": pick((8, 24, 64, 512)),
            "adapter_memory": pick(("1MiB", "8MiB")),  # one adapter, or all
        }
        draw = self._random.random()
        if draw < 0.15:
            settings["spare_mib"] = pick((0, 1, 3))  # beyond the least memory that the server starts with
        elif draw < 0.75:  # budgets that do not move by themselves
            settings["host_expert_memory"] = pick(("15%", "30%", "60%", "100%"))
            settings["kv_cache_memory"] = pick(("512KiB", "1MiB", "8MiB"))
        return settings

    def _tokens(self, count: int) -> list[int]:
        return [self._random.choice(LETTERS) for _ in range(count)]

    def _prompt(self, room: int) -> list[int]:
        prefix = self._random.choice(self._prefixes)
        rest = self._tokens(self._random.choice((1, 2, 15, 16, 17, 33, 60, 120)))
        return (prefix + rest)[:room]

    def _request(self, asked: list[Event]) -> Event:
        """Return one of the trace's few requests, so that some are equal, and a client that stays or leaves."""
        event = dict(self._random.choice(asked))
        if self._random.random() < 0.3:
            event["leave"] = self._random.choice(
                ({"chunks": self._random.randint(0, 6)}, {"seconds": round(self._random.random() * 0.08, 4)})
            )
        return event

    def _ask(self) -> Event:
        draw = self._random.random()
        if draw < 0.1:
            return {"do": "ask", "path": "/v1/embeddings", "body": self._embedding()}
        is_chat = draw < 0.25
        body = self._weights() | self._sampling(is_chat=is_chat)
        if self._random.random() < 0.5:
            body["stream"] = True
            if self._random.random() < 0.5:
                body["stream_options"] = {"include_usage": True}
        return {"do": "ask", "path": f"/v1/{'chat/' * is_chat}completions", "body": body}

    def _with_other_weights(self, event: Event) -> Event:
        """Return the same request to other weights, which must share nothing with it."""
        body = {name: value for name, value in event["body"].items() if name != "adapters"}
        return {**event, "body": body | self._weights()}

    def _embedding(self) -> Json:
        inputs = [self._prompt(CONTEXT) for _ in range(self._random.randint(1, 3))]
        return {"model": MODEL, "input": inputs, "pooling": self._random.choice(("mean", "last"))}

    def _weights(self) -> Json:
        draw = self._random.random()
        if draw < 0.6:
            return {"model": MODEL}
        variant, adapter = self._random.choice(VARIANTS), self._random.choice(ADAPTERS)
        if draw < 0.75:
            return {"model": f"{MODEL}:{variant}"}
        if draw < 0.9:
            return {"model": adapter}
        return {"model": f"{MODEL}:{variant}", "adapters": [{"name": adapter, "weight": 0.5}]}

    def _sampling(self, *, is_chat: bool) -> Json:
        chance, pick = self._random.random, self._random.choice
        max_tokens = pick((1, 3, 9, 20, 60))
        is_greedy = chance() < 0.5
        body: Json = {"max_tokens": max_tokens, "temperature": 0 if is_greedy else pick((0.2, 0.7, 1.0, 2.0))}
        if not is_greedy or chance() < 0.2:
            body["seed"] = self._random.randint(-5, 1 << 40)
        options: dict[str, Any] = {
            "top_p": lambda: pick((0.1, 0.5, 0.95)),
            "top_k": lambda: pick((1, 5, 40)),
            "min_p": lambda: pick((0.01, 0.2)),
            "presence_penalty": lambda: pick((-1.0, 0.5, 2.0)),
            "frequency_penalty": lambda: pick((-0.5, 1.0)),
            "repetition_penalty": lambda: pick((0.8, 1.3)),
            "logit_bias": lambda: {str(pick(LETTERS)): pick((-100, 5, 3.5)) for _ in range(3)},
            "stop": lambda: [chr(pick(LETTERS)) for _ in range(2)] + ["ab"],
            "stop_token_ids": lambda: [pick(LETTERS) for _ in range(3)],
            "allowed_token_ids": lambda: sorted(self._random.sample(range(3, 250), 40)),
            "bad_words": lambda: [chr(pick(LETTERS)), "th"],
            "ignore_eos": lambda: True,
            "min_tokens": lambda: self._random.randint(0, max_tokens),
            "n": lambda: pick((2, 3)),
            "return_experts": lambda: True,
            "return_adapters": lambda: True,
            "return_token_ids": lambda: True,
            "priority": lambda: pick((-1, 0, 1)),
            "truncate_prompt_tokens": lambda: pick((-1, 7, 30)),
        }
        for name, value in options.items():
            if chance() < 0.12:
                body[name] = value()
        if chance() < 0.15:
            body |= pick(GRAMMARS)
        return body | (self._messages() if is_chat else self._text(max_tokens, body))

    def _messages(self) -> Json:
        contents = [bytes(self._prompt(70)).decode() for _ in range(self._random.choice((1, 1, 2)))]
        body: Json = {"messages": [{"role": "user", "content": content} for content in contents]}
        if self._random.random() < 0.5:
            body |= {"logprobs": True, "top_logprobs": self._random.choice((0, 3))}
        return body

    def _text(self, max_tokens: int, body: Json) -> Json:
        chance, room = self._random.random, CONTEXT - max_tokens
        prompts = [self._prompt(room) for _ in range(2 if chance() < 0.1 else 1)]
        result: Json = {"prompt": prompts if len(prompts) > 1 or chance() < 0.7 else bytes(prompts[0]).decode()}
        if chance() < 0.8:
            result["logprobs"] = self._random.choice((0, 1, 5))
        if chance() < 0.1:
            result["echo"] = True
        if chance() < 0.08:
            result["prompt_logprobs"] = 2
        return result

    def _change(self) -> Event:
        kinds = ("pin", "unpin", "evict", "prefetch", "resize", "squeeze", "variant", "adapter", "look")
        kind = self._random.choice(kinds)
        if kind == "look":
            paths = ("/v1/experts", "/v1/adapters", "/v1/experts/variants", "/v1/requests", "/metrics", "/v1/models")
            return {"do": "look", "path": self._random.choice(paths)}
        if kind == "resize":
            return {"do": kind, "share": round(self._random.random(), 3)}
        if kind == "squeeze":
            return {"do": kind, "share": self._random.choice((0.0, 0.5, 1.0, 2.0))}
        if kind in {"variant", "adapter"}:
            paths = VARIANTS if kind == "variant" else ADAPTERS
            # A name that the requests use, with one of the files, so that it is replaced at times.
            name, path = self._random.choice(paths), self._random.choice(paths)
            return {"do": f"{self._random.choice(('load', 'load', 'unload'))}_{kind}", "name": name, "path": path}
        places = {(self._random.randrange(LAYERS), self._random.randrange(EXPERTS)) for _ in range(5)}
        return {"do": kind, "experts": [list(place) for place in sorted(places)]}
