"""Passes of prompts over native models: the same text as by chunks, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import torch

from expert_store import ExpertKey, ExpertStore, least_bytes
from server.engine.engine import Engine
from server.engine.interface import GenerationFailedError, GenerationRequest, SamplingParams, TokenStream
from server.engine.pass_planning import PassLimits
from server.engine.prompt_passes import PromptPasses
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.remote.place import web_place
from server.model.checkpoint.remote.web_folder import WebFolder
from server.model.multimodal.image_processor import MediaProcessor
from server.model.native_layers.prompt_pass import NativePass
from server.model.opening.open_checkpoint import open_checkpoint
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint
from tests.expert_store.waiting import wait_until_idle
from tests.server.engine.test_images import request_of
from tests.server.engine.test_models import MAX_BATCHED, engine_over
from tests.server.model.multimodal.test_image_parity import make_prompts, save_model
from tests.web_server import file_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built"),
]

PASSES = PassLimits(max_tokens=4 * MAX_BATCHED, step_tokens=MAX_BATCHED)
NUM_BLOCKS, NUM_TOKENS = 40, 6
LONG = [index % 89 + 3 for index in range(48)]


@pytest.fixture(autouse=True)
def native_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engines have blocks of 16 tokens; the native kernels take no other."""
    monkeypatch.setattr("tests.server.engine.test_models.BLOCK_SIZE", 16)


def load(checkpoint: Path | Checkpoint) -> Trunk:
    trunk = load_trunk(checkpoint, torch.float32, pool=ComputePool(2, Kernels(2)))
    assert isinstance(trunk, Trunk)
    return trunk


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    return load(make_checkpoint("qwen3_moe", tmp_path_factory.mktemp("qwen3_moe")))


@contextmanager
def engine_of(
    trunk: Trunk, passes: PassLimits | None = PASSES, num_blocks: int = NUM_BLOCKS
) -> Iterator[tuple[Engine, ExpertStore]]:
    """An engine with slots for two layers and a token's experts; at its end nothing is in use."""
    widest = max(len(layer.experts) for layer in trunk.catalog.layers.values())
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, 2 * widest + trunk.facts.top_k))
    with engine_over(trunk, store, num_blocks, passes) as (engine, _):
        yield engine, store
    wait_until_idle(store)
    resident = list(store.residents())
    num_evicted = store.evict(resident)
    store.close()
    assert num_evicted == len(resident)


def submit(engine: Engine, prompt: Sequence[int], num_tokens: int = NUM_TOKENS) -> TokenStream:
    return engine.submit(GenerationRequest("test", tuple(prompt), SamplingParams(num_tokens, temperature=0.0)))


async def collect(stream: TokenStream) -> str:
    return "".join([event.text async for event in stream])


def texts(engine: Engine, prompts: Sequence[Sequence[int]], *, together: bool = True) -> list[str]:
    """Return the texts of prompts that are submitted at once, or each after the end of the one before."""

    async def scenario() -> list[str]:
        if together:
            return list(await asyncio.gather(*[collect(submit(engine, prompt)) for prompt in prompts]))
        return [await collect(submit(engine, prompt)) for prompt in prompts]

    return asyncio.run(scenario())


def texts_by_chunks(trunk: Trunk, prompts: Sequence[Sequence[int]]) -> list[str]:
    with engine_of(trunk, None) as (engine, _):
        return texts(engine, prompts, together=False)


def at_read(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], None]) -> None:
    """Call a function before the read of that number, in the thread that reads; it may raise."""
    left, read = [number], os.preadv

    def read_or_act(file: int, buffers: list[memoryview], offset: int) -> int:
        left[0] -= 1
        if left[0] == 0:
            action()
        return read(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", read_or_act)


def test_a_prompt_with_a_cached_beginning_passes_over_the_rest(trunk: Trunk) -> None:
    prompts = [LONG, [*LONG[:36], *LONG[::-1]]]
    with engine_of(trunk) as (engine, _):
        assert texts(engine, prompts, together=False) == texts_by_chunks(trunk, prompts)
        assert engine.statistics.prefix_cache_hits == 32
        assert engine.statistics.prefill_passes == 2


def test_the_first_prompt_of_a_cold_model_is_a_pass_even_if_it_is_one_step(
    trunk: Trunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.server.engine.test_models.MAX_BATCHED", 64)
    with engine_of(trunk, PassLimits(256, 64)) as (engine, _):
        assert texts(engine, [LONG]) == texts_by_chunks(trunk, [LONG])
        assert engine.statistics.prefill_passes == 1


def test_many_prompts_at_once_have_the_texts_of_each_alone(trunk: Trunk) -> None:
    rng = random.Random(5)
    prompts = [[rng.randrange(3, 90) for _ in range(rng.randint(20, 60))] for _ in range(64)]
    with engine_of(trunk) as (engine, _):
        assert texts(engine, prompts) == texts_by_chunks(trunk, prompts)
        assert engine.statistics.prefill_passes > 1


@pytest.mark.parametrize("model", ["qwen3_vl_moe", "qwen3_5_moe", "gemma4"])
def test_prompts_with_images_pass_with_the_same_text(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.server.engine.test_models.MAX_BATCHED", 64)  # an image of Gemma 4 is in one step
    folder = save_model(model, tmp_path)
    trunk, num_passes, found = load(folder), list[int](), list[list[str]]()
    for passes in (PassLimits(256, 64, takes_all=True), None):
        prompts = make_prompts(MediaProcessor(FolderCheckpoint(folder)))
        with engine_of(trunk, passes) as (engine, _):

            async def scenario(engine: Engine = engine, prompts: Sequence[object] = prompts) -> list[str]:
                return list(await asyncio.gather(*[collect(engine.submit(request_of(one))) for one in prompts]))  # type: ignore[arg-type]

            found.append(asyncio.run(scenario()))
            num_passes.append(engine.statistics.prefill_passes)
    assert found[0] == found[1]
    assert num_passes[0] > 0 == num_passes[1]


def test_a_client_that_leaves_in_any_unit_leaves_nothing_behind(trunk: Trunk, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = texts_by_chunks(trunk, [LONG])
    advance, left, leave = NativePass.advance, [0], list[Callable[[], None]]()

    def advance_or_leave(self: NativePass, *, wait_seconds: float) -> bool:
        left[0] -= 1
        if left[0] == -1:
            leave[0]()
        return advance(self, wait_seconds=wait_seconds)

    monkeypatch.setattr(NativePass, "advance", advance_or_leave)

    async def scenario(engine: Engine) -> None:
        for unit in range(200):
            left[0] = unit
            stream = submit(engine, LONG)
            leave[:] = [stream.cancel]
            num_passes = engine.statistics.prefill_passes
            while engine.statistics.finished["abort"] == unit and (
                left[0] < 0 or engine.statistics.prefill_passes == num_passes
            ):
                await asyncio.sleep(0)
            engine.reset_prefix_cache()
            if left[0] >= 0:  # it had fewer units
                assert unit > len(trunk.catalog.layers)
                assert [await collect(stream)] == wanted
                return

    with engine_of(trunk) as (engine, _):
        asyncio.run(scenario(engine))


def shrink(store: ExpertStore, trunk: Trunk) -> None:
    store.resize(host_bytes=least_bytes(trunk.catalog, trunk.facts.top_k))


def pin(store: ExpertStore, trunk: Trunk) -> None:
    store.pin([ExpertKey(max(trunk.catalog.layers), 0)])


@pytest.mark.parametrize("change", [shrink, pin])
@pytest.mark.parametrize("is_beside", [True, False])
def test_a_pass_that_lacks_slots_as_the_memory_changes_gives_way(
    trunk: Trunk,
    change: Callable[[ExpertStore, Trunk], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    is_beside: bool,
) -> None:
    """The memory changes after the last check before a step, or while the pass runs alone."""
    monkeypatch.setattr("expert_store.lease.STUCK_SECONDS", 3.0)
    wanted = texts_by_chunks(trunk, [LONG])
    give_way, advance, num_checks = PromptPasses.give_way, PromptPasses.advance, count()

    async def scenario(engine: Engine) -> str:
        beside = aiter(submit(engine, LONG[:4], 60 if is_beside else 1))
        await anext(beside)  # it decodes, or has ended
        text = await collect(submit(engine, LONG))
        assert len([event async for event in beside]) == (59 if is_beside else 0)
        return text

    with engine_of(trunk) as (engine, store):

        def give_way_and_change(self: PromptPasses) -> None:
            give_way(self)
            if self.is_running and next(num_checks) == 4:  # the pass has leased a layer, and reads ahead
                change(store, trunk)

        def advance_by_one_unit(self: PromptPasses, step_seconds: float | None) -> None:
            advance(self, None if step_seconds is None else 0.0)

        monkeypatch.setattr(PromptPasses, "give_way", give_way_and_change)
        monkeypatch.setattr(PromptPasses, "advance", advance_by_one_unit)
        assert [asyncio.run(scenario(engine))] == wanted
        assert engine.statistics.prefill_passes == 0
        wait_until_idle(store)
        store.unpin(list(store.residents()))
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_the_first_prompt_of_a_remote_model_reads_each_expert_once(tmp_path: Path) -> None:
    make_checkpoint("qwen3_moe", tmp_path / "tiny")
    rng, sent = random.Random(3), list[int]()
    prompt = [rng.randrange(3, 128) for _ in range(4 * MAX_BATCHED)]

    async def first_token(engine: Engine) -> str:
        return await collect(submit(engine, prompt, num_tokens=1))

    with file_server(tmp_path) as server:
        place = web_place(f"{server.url}/tiny")
        assert isinstance(place.folder, WebFolder)
        trunk = load(open_checkpoint(place))
        for passes in (None, PASSES):
            server.requests.clear()
            with engine_of(trunk, passes) as (engine, _):
                assert asyncio.run(first_token(engine))
            assert engine.statistics.prefill_passes == (passes is not None)
            ranges = [asked.removeprefix("bytes=").split("-") for _, asked in server.requests]
            sent.append(sum(int(last) + 1 - int(first) for first, last in ranges))
        place.folder.client.close()
    keys = [ExpertKey(layer, i) for layer, entry in trunk.catalog.layers.items() for i in range(len(entry.experts))]
    num_bytes = sum(map(trunk.catalog.read_bytes, keys))
    by_chunks, by_layers = sent
    assert num_bytes <= by_layers <= 1.05 * num_bytes < by_chunks


def test_a_pass_goes_on_after_the_disk_has_stalled(trunk: Trunk, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, is_stalled, goes_on = texts_by_chunks(trunk, [LONG]), threading.Event(), threading.Event()

    def stall() -> None:
        is_stalled.set()
        assert goes_on.wait(30)

    async def scenario(engine: Engine) -> str:
        task = asyncio.create_task(collect(submit(engine, LONG)))
        assert await asyncio.to_thread(is_stalled.wait, 30)
        assert engine.statistics.prefill_passes == 0
        goes_on.set()
        return await task

    with engine_of(trunk) as (engine, _):
        at_read(monkeypatch, len(trunk.catalog.layers[0].experts) + 2, stall)
        assert [asyncio.run(scenario(engine))] == wanted
        assert engine.statistics.prefill_passes == 1


def test_a_prompt_runs_by_chunks_after_a_read_of_its_pass_has_failed(
    trunk: Trunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = texts_by_chunks(trunk, [LONG])

    def fail() -> None:
        raise OSError(5, "Input/output error")

    with engine_of(trunk) as (engine, store):
        at_read(monkeypatch, 2, fail)
        assert texts(engine, [LONG]) == wanted
        assert engine.statistics.prefill_passes == 0
        assert store.statistics().load_failures == 1


def test_a_disk_that_does_not_answer_a_pass_fails_its_prompt_in_the_end(
    trunk: Trunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expert_store.lease.STUCK_SECONDS", 0.1)
    monkeypatch.setattr("expert_store.lease.WAIT_SECONDS", 0.1)
    wanted, has_failed = texts_by_chunks(trunk, [LONG]), threading.Event()

    async def scenario(engine: Engine) -> str:
        with pytest.raises(GenerationFailedError, match=r"expert \d of layer 0 can't be read"):
            await collect(submit(engine, LONG))
        has_failed.set()
        monkeypatch.undo()
        return await collect(submit(engine, LONG))

    with engine_of(trunk) as (engine, _):
        at_read(monkeypatch, 2, lambda: None if has_failed.wait(30) else sys.exit("the prompt did not fail"))
        assert [asyncio.run(scenario(engine))] == wanted


def test_a_prompt_fails_if_its_file_is_cut_short_during_its_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trunk = load(make_checkpoint("qwen3_moe", tmp_path))

    async def scenario(engine: Engine) -> None:
        for _ in range(2):
            with pytest.raises(GenerationFailedError, match=r"expert \d of layer \d can't be read"):
                await collect(submit(engine, LONG))

    with engine_of(trunk) as (engine, _):
        num_first = len(trunk.catalog.layers[0].experts)
        at_read(monkeypatch, num_first + 2, lambda: os.truncate(tmp_path / "model.safetensors", 600))
        asyncio.run(scenario(engine))
    assert "a pass of 1 prompts failed; running them by chunks: cannot read expert" in caplog.text


def test_a_prompt_of_the_full_context_runs_as_passes(trunk: Trunk) -> None:
    prompt = [index % 89 + 3 for index in range(8 * 16 - NUM_TOKENS)]
    with engine_of(trunk, num_blocks=8) as (engine, _):
        assert texts(engine, [prompt]) == texts_by_chunks(trunk, [prompt])
        assert engine.statistics.prefill_passes == 2
