"""Loads a model with a mutated config and asks it for some tokens, in a forked process whose memory is watched."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from expert_store import ExpertStoreError
from server.engine.interface import EngineError, GenerationRequest, RequestRefusedError, SamplingParams
from server.loading.load import load_server
from server.model.checkpoint.gguf.gguf_file import GgufFile
from server.model.errors import ModelError
from server.settings import ServeSettings, SettingsError
from tests.fuzz.configs.mutations import Mutation
from tests.fuzz.configs.subjects import CONFIG, read_values

FORK = multiprocessing.get_context("fork")
SECONDS = 60.0  # of one trial
MOST_BYTES = 700 << 20  # that a tiny model may take beside what the process had
MOST_MESSAGE = 1000  # characters of a refusal
MEMORY = "1200MiB"
PROMPTS = ((5, 17, 99, 3, 42, 8, 64, 100, 33, 90), (7,) * 70)
NUM_TOKENS = 3


@dataclass(frozen=True)
class Outcome:
    """A trial's end.

    Args:
        kind: "served", "refused", or "finding".
    """

    kind: str
    text: str
    seconds: float = 0.0
    nbytes: int = 0


def try_mutation(place: Path, mutation: Mutation) -> Outcome:
    """Load a subject with a mutated config, and generate."""
    ours, theirs = FORK.Pipe(duplex=False)
    begun = time.monotonic()
    child = FORK.Process(target=_work, args=(place, mutation, theirs))
    before = _resident_bytes(os.getpid())
    child.start()
    theirs.close()
    most, outcome = 0, None
    try:
        while outcome is None:
            most = max(most, _resident_bytes(child.pid or 0) - before)
            if most > MOST_BYTES:
                outcome = Outcome("finding", f"it took {most >> 20} MiB beside the {before >> 20} MiB of the process")
            elif time.monotonic() - begun > SECONDS:
                outcome = Outcome("finding", f"no answer within {SECONDS:.0f} s")
            elif ours.poll(0.02):
                try:
                    outcome = Outcome(*ours.recv())
                except EOFError:
                    child.join()
                    outcome = Outcome("finding", f"the process ended with {child.exitcode}")
    finally:
        child.kill()
        child.join()
        ours.close()
    return replace(outcome, seconds=time.monotonic() - begun, nbytes=most)


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0


def _work(place: Path, mutation: Mutation, pipe: Connection) -> None:
    with tempfile.TemporaryFile("w+") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        try:
            with _mutated(place, mutation) as changed:
                found = _serve(changed)
        except Exception:  # noqa: BLE001  any other is a finding
            found = "finding", traceback.format_exc()
        pipe.send(found)
        os._exit(0)


@contextmanager
def _mutated(place: Path, mutation: Mutation) -> Iterator[Path]:
    values = mutation.apply(read_values(place))
    if place.is_dir():
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            changed = Path(folder)
            for path in place.iterdir():
                if path.name != CONFIG:
                    shutil.copy(path, changed / path.name)
            (changed / CONFIG).write_text(json.dumps(values))
            yield changed
        return
    original = GgufFile.open(place.parent, place.name)
    kept = {key: value for key, value in original.metadata.items() if key.startswith(("tokenizer.", "general."))}
    file = replace(original, metadata=kept | {key: _as_read(value) for key, value in values.items()})
    setattr(GgufFile, "open", lambda *_: file)  # noqa: B010  the process ends with it
    yield place


def _as_read(value: Any) -> Any:
    """Return a value as the reader of GGUF gives it."""
    if isinstance(value, list) and value and not any(isinstance(each, str) or each is None for each in value):
        try:
            return np.array(value)
        except (OverflowError, ValueError):
            return value
    return value


def _serve(place: Path) -> tuple[str, str]:
    settings = ServeSettings.model_validate(
        {
            "dtype": "auto",  # the native layers are tried, unless the checkpoint is in float32
            "device": "cpu",
            "threads": 1,
            "memory": MEMORY,
            "max_running_requests": 2,
            "served_model_name": "fuzz",
        }
    )
    try:
        loaded = load_server(str(place), settings)
    except (ModelError, ExpertStoreError, SettingsError) as error:
        text = str(error)
        is_plain = text and "\n" not in text and len(text) < MOST_MESSAGE
        return ("refused", text) if is_plain else ("finding", f"an error that is no sentence: {text!r}")
    return asyncio.run(_generate(loaded))


async def _generate(loaded: Any) -> tuple[str, str]:
    sampling = SamplingParams(NUM_TOKENS, temperature=0.0)
    for number, prompt in enumerate(PROMPTS):
        try:
            stream = loaded.engine.submit(GenerationRequest(f"fuzz-{number}", prompt, sampling))
            async for _ in stream:
                pass
        except EngineError as error:
            if isinstance(error, RequestRefusedError):  # such as of a prompt that is too long for the model
                continue
            return "finding", f"{type(error).__name__}: {error}"
    return "served", ""
