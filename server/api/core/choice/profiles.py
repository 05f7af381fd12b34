"""Profiles of adapters for the router: a vector for the examples of each, and how near a prompt must be."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from server.engine.interface import AdapterCandidate, EngineError, GenerationFailedError, RequestRefusedError

# Texts about nothing in particular: what is like them is like no adapter.
NEUTRAL_TEXTS = (
    "Hello, how are you today?",
    "Thank you very much for your help.",
    "What is the weather like this week?",
    "Tell me something interesting.",
    "The meeting is on Tuesday at three in the afternoon.",
    "Can you help me with a question?",
    "Write a short text about a city.",
    "My brother lives in a small town near the sea.",
    "What time is it?",
    "Please summarise the following text.",
    "The history of the country goes back many centuries.",
    "Who are you and what can you do?",
    "The train to the airport leaves every twenty minutes.",
    "Explain this to me in simple words.",
    "The company announced its results on Monday.",
    "I would like to know more about this.",
)
LEAST_SPREAD = 0.05  # of what is possible, for examples that are hardly more alike than neutral texts
MIN_SPREAD = 1e-6

Vectors = npt.NDArray[np.float32]  # (texts, hidden), each of length 1
Embed = Callable[[Sequence[str]], Coroutine[Any, Any, Vectors]]
T = TypeVar("T")
State = Literal["ready", "computing", "failed"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Profile:
    """The examples of an adapter.

    Args:
        centre: the direction of their mean, ``(hidden,)``, of length 1.
        own: the mean cosine of an example and the centre of the others.
        neutral: the mean cosine of neutral texts and the centre.

    """

    centre: npt.NDArray[np.float32]
    own: float
    neutral: float

    @property
    def spread(self) -> float:
        """The difference of ``own`` and ``neutral``."""
        return max(self.own - self.neutral, LEAST_SPREAD * (1 - self.neutral), MIN_SPREAD)

    def cosine_at(self, nearness: float) -> float:
        """Return the cosine of a prompt that is as near: 0 is as near as neutral texts, 1 as near as its examples."""
        return self.neutral + nearness * self.spread


def profile_of(examples: Vectors, neutral: Vectors) -> Profile:
    """Summarise the vectors of an adapter's examples."""
    total = examples.astype(np.float64).sum(axis=0)
    centre = _unit(total)
    neutral_cosine = float((neutral @ centre).mean())
    if len(examples) == 1:  # nothing to compare it with; another text like it is nearer than half the way
        own = (1 + neutral_cosine) / 2
    else:
        own = float(np.mean([example @ _unit(total - example) for example in examples]))
    return Profile(centre.astype(np.float32), own, neutral_cosine)


class AdapterProfiles:
    """The profiles of candidates, each computed once. Use it in one event loop."""

    def __init__(self) -> None:
        self._tasks: dict[int, asyncio.Task[None]] = {}  # that compute profiles, by version
        self._profiles: dict[int, Profile] = {}
        self._failed: set[int] = set()  # versions whose examples can't be embedded
        self._neutral: asyncio.Task[Vectors] | None = None
        self._background: set[asyncio.Task[None]] = set()

    def state(self, version: int) -> State:
        """Return how far the profile of a version is."""
        if version in self._profiles:
            return "ready"
        return "failed" if version in self._failed else "computing"

    def can_choose(self, candidate: AdapterCandidate) -> bool:
        """Return False for a candidate whose examples can't be embedded."""
        return candidate.version not in self._failed

    async def of(self, candidates: Sequence[AdapterCandidate], embed: Embed) -> dict[str, Profile]:
        """Return the profiles of candidates by name, without those that can't be embedded.

        A caller that is cancelled stops no computation that others wait for.

        Raises:
            EngineError: the engine is too busy to compute one, or dead; the next call tries again.

        """
        self._keep(candidates)
        for candidate in candidates:
            if candidate.version not in self._profiles and self.can_choose(candidate):
                await self._learn(candidate, embed)
        # Those that were replaced meanwhile are forgotten.
        known = ((candidate.name, self._profiles.get(candidate.version)) for candidate in candidates)
        return {name: profile for name, profile in known if profile is not None}

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work that nobody awaits."""
        task = asyncio.create_task(work, context=Context())  # of no caller, whose limits would count it
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _keep(self, candidates: Sequence[AdapterCandidate]) -> None:
        """Forget the profiles of all but these."""
        versions = {candidate.version for candidate in candidates}
        self._failed &= versions
        for version in self._profiles.keys() - versions:
            del self._profiles[version]

    async def _learn(self, candidate: AdapterCandidate, embed: Embed) -> None:
        task = self._tasks.get(candidate.version)
        if task is None:
            task = self._tasks[candidate.version] = shared(self._compute(candidate, embed))
            task.add_done_callback(lambda _: self._tasks.pop(candidate.version, None))
        await asyncio.shield(task)

    async def _compute(self, candidate: AdapterCandidate, embed: Embed) -> None:
        try:
            neutral = await self._neutral_vectors(embed)
            self._profiles[candidate.version] = profile_of(await embed(candidate.texts), neutral)
        except (GenerationFailedError, RequestRefusedError) as error:
            self._failed.add(candidate.version)
            log.warning("adapter %s takes no part in routing: %s", candidate.name, error)

    async def _neutral_vectors(self, embed: Embed) -> Vectors:
        task = self._neutral
        if task is None:
            task = self._neutral = shared(embed(NEUTRAL_TEXTS))
        try:
            return await asyncio.shield(task)
        except EngineError:
            if self._neutral is task:
                self._neutral = None
            raise


def shared(work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Start work that several callers may await, or none: its error is not reported a second time."""
    task = asyncio.create_task(work, context=Context())
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


def _unit(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    length = float(np.linalg.norm(vector))
    return vector if length == 0 else vector / length
