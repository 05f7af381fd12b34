"""Profiles of adapters: each computed once, whatever the engine and the callers do meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from server.api.core.choice.profiles import NEUTRAL_TEXTS, AdapterProfiles, Vectors
from server.engine.interface import AdapterCandidate, EngineError, GenerationFailedError, QueueFullError

LAW, CODE = AdapterCandidate("law", 1, ("contracts",)), AdapterCandidate("code", 2, ("loops", "functions"))


@dataclass
class FakeEmbedder:
    """Gives each text a direction, after ``go`` is set; fails with the next of ``errors`` for examples."""

    calls: list[tuple[str, ...]] = field(default_factory=list)
    errors: list[EngineError] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, texts: Sequence[str]) -> Vectors:
        self.calls.append(tuple(texts))
        await self.go.wait()
        if self.errors and tuple(texts) != NEUTRAL_TEXTS:
            raise self.errors.pop()
        return np.eye(len(texts), 16, dtype=np.float32)


def ready() -> FakeEmbedder:
    embedder = FakeEmbedder()
    embedder.go.set()
    return embedder


def test_callers_at_the_same_time_share_one_computation() -> None:
    async def scenario() -> None:
        profiles, embed = AdapterProfiles(), ready()
        found = await asyncio.gather(*(profiles.of([LAW, CODE], embed) for _ in range(5)))
        assert all(each.keys() == {"law", "code"} for each in found)
        assert sorted(embed.calls) == sorted([NEUTRAL_TEXTS, LAW.texts, CODE.texts])

    asyncio.run(scenario())


def test_a_caller_that_leaves_stops_nothing_that_another_waits_for() -> None:
    async def scenario() -> None:
        profiles, embed = AdapterProfiles(), FakeEmbedder()
        first, second = (asyncio.create_task(profiles.of([LAW], embed)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        embed.go.set()
        assert (await second).keys() == {"law"}
        assert embed.calls.count(LAW.texts) == 1

    asyncio.run(scenario())


def test_a_busy_engine_is_asked_again_by_the_next_caller() -> None:
    async def scenario() -> None:
        profiles, embed = AdapterProfiles(), ready()
        embed.errors = [QueueFullError("full")]
        with pytest.raises(QueueFullError):
            await profiles.of([LAW], embed)
        assert profiles.state(LAW.version) == "computing"
        assert (await profiles.of([LAW], embed)).keys() == {"law"}

    asyncio.run(scenario())


def test_examples_that_can_not_be_embedded_take_no_part_and_are_not_tried_again() -> None:
    async def scenario() -> None:
        profiles, embed = AdapterProfiles(), ready()
        embed.errors = [GenerationFailedError("not finite")]
        assert (await profiles.of([LAW, CODE], embed)).keys() == {"code"}
        assert (await profiles.of([LAW, CODE], embed)).keys() == {"code"}
        assert embed.calls.count(LAW.texts) == 1
        assert (profiles.state(LAW.version), profiles.can_choose(LAW)) == ("failed", False)

    asyncio.run(scenario())


def test_profiles_of_versions_that_are_gone_are_forgotten() -> None:
    async def scenario() -> None:
        profiles, embed = AdapterProfiles(), ready()
        await profiles.of([LAW, CODE], embed)
        await profiles.of([CODE], embed)
        assert (profiles.state(LAW.version), profiles.state(CODE.version)) == ("computing", "ready")

    asyncio.run(scenario())
