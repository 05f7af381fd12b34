"""The engine over models with images: preemption, cancellation, failures, batches."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from expert_store import ExpertStore
from server.engine.engine import Engine
from server.engine.interface import GenerationFailedError, GenerationRequest, Media, SamplingParams, TokenStream
from server.engine.kv.prefix_cache_ids import prefix_cache_ids
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.multimodal.image_processor import MediaProcessor
from server.model.prompt_media import PromptMedia
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.server.engine.test_models import decode, engine_over
from tests.server.model.multimodal.test_image_parity import NEW_TOKENS, Prompt, make_prompts, save_model, write

pytestmark = pytest.mark.slow

MODELS = [
    "ernie4_5_vl_moe",  # separate experts and positions for images
    "hy_v4_vl",  # keys chosen by an indexer; separate positions for images
    "unlimited_ocr",  # prompts are seen differently from generated tokens
]
# In deterministic steps: these, and models with bidirectional images, with images in several layers, with attention in
# chunks, and with recurrent layers. Others embed images and place them in the prompt by the same functions.
DETERMINISTIC = [*MODELS, "gemma4", "llama4", "qwen3_5_moe", "qwen3_vl_moe"]


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(request.param, tmp_path_factory.mktemp("checkpoints") / request.param)


@pytest.fixture(scope="module")
def trunk(folder: Path) -> Trunk:
    return load_trunk(folder, torch.float32)


@pytest.fixture
def store(trunk: Trunk) -> Iterator[ExpertStore]:
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    yield store
    store.close()


@pytest.fixture
def prompts(folder: Path) -> list[Prompt]:
    return make_prompts(MediaProcessor(FolderCheckpoint(folder)))


def request_of(prompt: Prompt) -> GenerationRequest:
    token_ids, media = prompt
    content = prefix_cache_ids(token_ids, 100, [str(id(media)).encode()])
    sampling = SamplingParams(NEW_TOKENS, temperature=0.0)
    found = None if media is None else Media(media, content, tuple(media.bidirectional_spans))
    return GenerationRequest("test", tuple(token_ids), sampling, media=found)


def submit(engine: Engine, prompt: Prompt) -> TokenStream:
    return engine.submit(request_of(prompt))


async def collect(stream: TokenStream) -> str:
    return "".join([event.text async for event in stream])


def texts_alone(trunk: Trunk, prompts: Sequence[Prompt]) -> list[str]:
    return [decode(tokens) for prompt in prompts for tokens, _ in write(trunk, [prompt], 64)]


@pytest.mark.parametrize("num_blocks", [100, 9])
def test_images_are_encoded_again_after_preemption(
    trunk: Trunk, store: ExpertStore, prompts: list[Prompt], num_blocks: int
) -> None:
    """Sequences preempt each other, and prompts are chunked."""
    several = prompts * 2

    async def scenario(engine: Engine) -> list[str]:
        return await asyncio.gather(*[collect(submit(engine, prompt)) for prompt in several])

    with engine_over(trunk, store, num_blocks) as (engine, _):
        assert asyncio.run(scenario(engine)) == texts_alone(trunk, prompts) * 2
        assert (engine.statistics.preemptions > 0) is (num_blocks == 9)


def test_a_copy_of_a_request_with_images_has_the_same_answer(
    trunk: Trunk, store: ExpertStore, prompts: list[Prompt]
) -> None:
    async def scenario(engine: Engine) -> list[str]:
        copies = [pickle.loads(pickle.dumps(request_of(prompt))) for prompt in prompts]
        return await asyncio.gather(*[collect(engine.submit(request)) for request in copies])

    for _, media in prompts:
        if media is not None:
            media.on_embedded = lambda: None  # what this process counts does not go with it
    with engine_over(trunk, store, 100) as (engine, _):
        assert asyncio.run(scenario(engine)) == texts_alone(trunk, prompts)


def test_an_image_that_the_model_refuses_fails_only_its_own_request(
    trunk: Trunk, store: ExpertStore, prompts: list[Prompt]
) -> None:
    token_ids, media = prompts[0]
    assert media is not None
    torn = {**media.inputs, "pixel_values": media.inputs["pixel_values"][:-3]}
    bad = (token_ids, PromptMedia(token_ids, torn))

    async def scenario(engine: Engine) -> list[str]:
        streams = [submit(engine, prompt) for prompt in [*prompts, bad]]
        good = await asyncio.gather(*map(collect, streams[:-1]))
        with pytest.raises(GenerationFailedError, match="the model failed to compute this request"):
            await collect(streams[-1])
        return [*good, await collect(submit(engine, prompts[0]))]

    with engine_over(trunk, store, 100) as (engine, _):
        alone = texts_alone(trunk, prompts)
        assert asyncio.run(scenario(engine)) == [*alone, alone[0]]


def test_a_request_with_an_image_may_be_cancelled(trunk: Trunk, store: ExpertStore, prompts: list[Prompt]) -> None:
    async def scenario(engine: Engine) -> str:
        left = submit(engine, prompts[1])
        async for _ in left:
            left.cancel()
            break
        return await collect(submit(engine, prompts[0]))

    with engine_over(trunk, store, 100) as (engine, blocks):
        assert asyncio.run(scenario(engine)) == texts_alone(trunk, prompts)[0]
    blocks.check_integrity([])


@pytest.mark.parametrize("model_type", DETERMINISTIC)
def test_deterministic_requests_with_images_are_batch_invariant(model_type: str, tmp_path: Path) -> None:
    save_model(model_type, tmp_path, torch.bfloat16)
    trunk = load_trunk(tmp_path, torch.bfloat16, is_deterministic=True)
    processor = MediaProcessor(FolderCheckpoint(tmp_path))
    alone = [result for prompt in make_prompts(processor)[1:] for result in write(trunk, [prompt], 64, steps=2)]
    fresh = make_prompts(processor)[1:]  # encoded images keep no pixels
    for (_, one), (_, other) in zip(alone, write(trunk, fresh, 5, steps=2), strict=True):
        assert torch.equal(one, other)
