"""Starts the real server for a measurement, and asks it."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from training.corpus import Tokens
from training.errors import DemoError, RunError

TIMEOUT = 300.0  # seconds a request
READY = re.compile(r"Greenroom ready: (\S+) \(model (.+)\)")


@contextmanager
def serving(model: Path, *flags: str) -> Iterator[tuple[httpx.Client, str]]:
    """Serve a model on a free port; yield a client and the model's name."""
    command = [sys.executable, "-m", "server.cli", "serve", str(model), "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  our own command
        assert process.stdout is not None
        try:
            ready = READY.match(process.stdout.readline())
            if ready is None:
                raise RunError(f"{' '.join(command[1:])} did not start; its message is above")
            with httpx.Client(base_url=ready[1], timeout=TIMEOUT) as client:
                yield client, ready[2]
        finally:
            process.terminate()


class PromptLogprobs(NamedTuple):
    """The logprobs of a prompt's tokens but the first, and the model that gave them."""

    model: str
    logprobs: list[float]


def prompt_logprobs(client: httpx.Client, model: str, prompt: str | list[int]) -> PromptLogprobs:
    """Return the logprobs that a served model gives the tokens of a prompt."""
    body = {"model": model, "prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 0}
    response = client.post("/v1/completions", json=body)
    if response.is_error:
        raise DemoError(f"the server refuses a prompt for {model}: {response.text}")
    reply = response.json()
    return PromptLogprobs(reply["model"], reply["choices"][0]["logprobs"]["token_logprobs"][1:])


def served_perplexity(client: httpx.Client, model: str, rows: Tokens) -> float:
    """Return the perplexity of rows ``(rows, length + 1)`` by the logprobs that a served model gives their tokens."""
    logprobs = [each for row in rows for each in prompt_logprobs(client, model, row.tolist()).logprobs]
    return math.exp(-sum(logprobs) / len(logprobs))
