"""Plays a trace against a server as clients and an administrator would, and checks every answer."""

from __future__ import annotations

import asyncio
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.fuzz.comparison import Answer, difference
from tests.fuzz.generator import MODEL
from tests.fuzz.subjects import NATIVE
from tests.fuzz.target import FindingError, Target
from tests.fuzz.trace import Event, Trace

# After the last event, until all answers are there. A busy machine needs more.
STALL_SECONDS = float(os.environ.get("FUZZ_STALL_SECONDS", "120"))
BUSY = (429, 503)  # a full queue
GONE = (400, 404)  # weights that are not loaded

Paths = tuple[str | None, ...]  # of a name: what it may have stood for; None if it was not loaded


@dataclass
class Names:
    """The files that names of weights stand for, one after the other."""

    paths: dict[str, list[str | None]] = field(default_factory=lambda: defaultdict(lambda: [None]))
    locks: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))  # held while one changes

    def first_possible(self, name: str) -> int:
        """Return the index of the first path that a name may stand for now; during a change there are three."""
        return len(self.paths[name]) - (3 if self.locks[name].locked() else 1)


@dataclass(frozen=True)
class Asked:
    """A request with its answer, and what each of its names may have stood for."""

    event: Event
    answer: Answer
    paths: dict[str, Paths]

    @property
    def can_be_gone(self) -> bool:
        return any(None in paths for paths in self.paths.values())


def names_of(body: dict[str, Any]) -> list[str]:
    """Return the weights that a request names."""
    model = [] if body["model"] == MODEL else [body["model"]]
    return [*model, *(adapter["name"] for adapter in body.get("adapters", ()))]


async def fetch(http: httpx.AsyncClient, event: Event) -> Answer:
    """Send a request, and read the answer until it ends or the client leaves."""
    leave = event.get("leave") or {}
    answer = Answer(0)
    with suppress(TimeoutError):
        async with asyncio.timeout(leave.get("seconds")):
            await _read(http, event, answer, leave.get("chunks"))
    return answer


async def _read(http: httpx.AsyncClient, event: Event, answer: Answer, most_chunks: int | None) -> None:
    async with http.stream("POST", event["path"], json=event["body"]) as response:
        answer.status = response.status_code
        if response.headers["content-type"].startswith("text/event-stream"):
            num_chunks = 0
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    answer.is_complete = True
                    return
                if not line.startswith("data: "):
                    continue
                if num_chunks == most_chunks:
                    return
                num_chunks += 1
                chunk = json.loads(line.removeprefix("data: "))
                answer.error = chunk["error"]["message"] if "error" in chunk else answer.error
                answer.add(chunk)
            raise FindingError(f"a stream ended without [DONE]: {answer}")
        body = json.loads(await response.aread())
        answer.error = body["error"]["message"] if "error" in body else ""
        answer.add(body)
        answer.is_complete = True


class Player:
    """Plays one trace."""

    def __init__(self, target: Target):
        self._target, self._names = target, Names()
        self._asked: list[Asked] = []

    async def play(self, events: Iterable[Event]) -> list[Asked]:
        """Play all events, and wait for the answers.

        Raises:
            FindingError: an answer is missing, or one that no server should give.
        """
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=8)
        async with httpx.AsyncClient(base_url=self._target.url, timeout=None, limits=limits) as http:
            tasks = []
            for event in events:
                await asyncio.sleep(event["after"])
                tasks.append(asyncio.create_task(self._do(http, event)))
            done, pending = await asyncio.wait(tasks, timeout=STALL_SECONDS) if tasks else (set(), set())
            for task in pending:
                task.cancel()
            for task in done:
                task.result()
            if pending:
                raise FindingError(f"{len(pending)} of {len(tasks)} events stalled for {STALL_SECONDS:g} s")
        return self._asked

    async def _do(self, http: httpx.AsyncClient, event: Event) -> None:
        kind = event["do"]
        if kind == "ask":
            await self._ask(http, event)
        elif kind == "look":
            (await http.get(event["path"])).raise_for_status()
        elif kind in {"resize", "squeeze"}:
            change = self._target.changes.get(kind)
            if change is not None:
                with suppress(ValueError):  # BudgetError: the pins would not fit
                    await asyncio.to_thread(change, event["share"])
        elif kind.endswith(("variant", "adapter")):
            await self._change_weights(http, event)
        else:
            reply = await http.post(f"/v1/experts/{kind}", json={"experts": event["experts"]})
            _expect(reply, event, (200, 400, 404))

    async def _ask(self, http: httpx.AsyncClient, event: Event) -> None:
        names = names_of(event["body"])
        before = {name: self._names.first_possible(name) for name in names}
        answer = await fetch(http, event)
        paths = {name: tuple(self._names.paths[name][before[name] :]) for name in names}
        self._asked.append(Asked(event, answer, paths))

    async def _change_weights(self, http: httpx.AsyncClient, event: Event) -> None:
        """Load, replace or unload; a name counts as old and new from the beginning to the end of it."""
        action, _, kind = event["do"].partition("_")
        is_variant, path = kind == "variant", event["path"]
        name = f"{MODEL}:{event['name']}" if is_variant else event["name"]
        async with self._names.locks[name]:
            paths = self._names.paths[name]
            before = paths[-1]
            paths.extend((path if action == "load" else None, before))
            if action == "load" and is_variant:
                reply = await http.post("/v1/experts/load", json={"name": event["name"], "path": path})
            elif action == "load":
                body = {"lora_name": name, "lora_path": path, "load_inplace": True}
                reply = await http.post("/v1/load_lora_adapter", json=body)
            elif is_variant:
                reply = await http.delete(f"/v1/experts/variants/{event['name']}")
            else:
                reply = await http.post("/v1/unload_lora_adapter", json={"lora_name": name})
            _expect(reply, event, (200,) if action == "load" or before is not None else (404,))
            paths.append((path if action == "load" else None) if reply.status_code == 200 else before)


def _expect(reply: httpx.Response, event: Event, statuses: tuple[int, ...]) -> None:
    if reply.status_code not in statuses:
        raise FindingError(f"{event}: status {reply.status_code}: {reply.text}")


class Judge:
    """Compares answers with those that a server gives to each request alone.

    Args:
        reference: a server on which all weights are loaded under their own names, and nothing else happens.
        is_exact: see ``difference``.
    """

    def __init__(self, reference: Target, *, is_exact: bool):
        self._reference, self._is_exact = reference, is_exact
        self._known: dict[str, Answer] = {}

    def check(self, asked: Iterable[Asked]) -> None:
        """Check answers.

        Raises:
            FindingError: one differs.
        """
        for each in asked:
            self._check(each)

    def _check(self, asked: Asked) -> None:
        answer, body = asked.answer, asked.event["body"]
        if answer.status in BUSY or (answer.status == 0 and asked.event.get("leave")):
            return
        if answer.status in GONE and asked.can_be_gone:
            return
        wanted = [self._alone(asked.event, paths) for paths in _choices(asked.paths)]
        if not _is_comparable(body, is_exact=self._is_exact):
            if answer.status >= 400 and all(answer.status != alone.status for alone in wanted):
                raise FindingError(f"status {answer.status} ({answer.error}), alone {wanted[0].status}; {asked.event}")
            return
        differences = [difference(answer, alone, is_exact=self._is_exact) for alone in wanted]
        if None not in differences:
            got = f"{answer.status} {answer.error}".strip()
            raise FindingError(f"{got}, not as alone: {differences}; paths {asked.paths}; {json.dumps(asked.event)}")

    def _alone(self, event: Event, paths: dict[str, str]) -> Answer:
        body = dict(event["body"])
        if body["model"] in paths:
            path = paths[body["model"]]
            body["model"] = f"{MODEL}:{path}" if body["model"].startswith(f"{MODEL}:") else path
        if "adapters" in body:
            body["adapters"] = [{**each, "name": paths[each["name"]]} for each in body["adapters"]]
        request = {"path": event["path"], "body": body}
        key = json.dumps(request, sort_keys=True)
        if key not in self._known:
            self._known[key] = asyncio.run(self._fetch(request))
        return self._known[key].with_adapter_names({path: name for name, path in paths.items()})

    async def _fetch(self, request: Event) -> Answer:
        async with httpx.AsyncClient(base_url=self._reference.url, timeout=STALL_SECONDS) as http:
            return await fetch(http, request)


def _choices(paths: dict[str, Paths]) -> list[dict[str, str]]:
    """Return all that the names together may have stood for."""
    found: list[dict[str, str]] = [{}]
    for name, each in paths.items():
        found = [{**one, name: path} for one in found for path in dict.fromkeys(each) if path is not None]
    return found


def _is_comparable(body: dict[str, Any], *, is_exact: bool) -> bool:
    """Return whether the answer to a request depends on it alone."""
    has_seed = body.get("temperature") == 0 or "seed" in body or "input" in body
    return has_seed and (is_exact or not body.keys() - PLAIN)


PLAIN = {"model", "prompt", "max_tokens", "temperature", "logprobs", "stream", "stream_options", "return_token_ids"}


def is_exact(trace: Trace) -> bool:
    return trace.family in NATIVE or bool(trace.settings["deterministic"])


async def check_health(target: Target) -> None:
    """Check that a server is live and ready.

    Raises:
        FindingError: it is not.
    """
    async with httpx.AsyncClient(base_url=target.url, timeout=STALL_SECONDS) as http:
        for path in ("/health", "/ready"):
            reply = await http.get(path)
            if reply.status_code != 200:
                raise FindingError(f"{path}: {reply.status_code} {reply.text}")
