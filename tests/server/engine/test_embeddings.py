"""Embeddings of real architectures, next to requests that generate, compared with transformers' hidden states."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from expert_store import ExpertStore, least_bytes
from server.engine.engine import Engine
from server.engine.interface import GenerationRequest, Pooling, RequestRefusedError, SamplingParams
from server.model.trunk_loader import load_trunk
from tests.checkpoints import load_transformers_model, make_checkpoint
from tests.server.engine.test_models import engine_over, some_prompts, write

PROMPTS = [[token % 110 + 3 for token in prompt] for prompt in some_prompts(1)]
POOLINGS: tuple[Pooling, ...] = ("mean", "last")
TOLERANCE = 2e-5  # part of the largest value of a vector, in float32


async def embed(engine: Engine, prompt: Sequence[int], pooling: Pooling) -> npt.NDArray[np.float32]:
    request = GenerationRequest("test", tuple(prompt), SamplingParams(0), pooling=pooling)
    (event,) = [event async for event in engine.submit(request)]
    assert event.embedding is not None
    return event.embedding


async def embed_in_company(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
    """Pool each prompt in both ways while it is also continued."""
    writing = [asyncio.create_task(write(engine, prompt, SamplingParams(12, temperature=0.0))) for prompt in prompts]
    vectors = await asyncio.gather(*(embed(engine, prompt, pooling) for prompt in prompts for pooling in POOLINGS))
    await asyncio.gather(*writing)
    return list(vectors)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "qwen3_next", "jamba", "llama4", "gemma4", "deepseek_v4"]
)
def test_embeddings_equal_pooled_hidden_states_of_transformers(name: str, tmp_path: Path) -> None:
    """Prompts are chunked and share prefixes, the cache forces preemption, and the store holds the fewest experts."""
    folder = make_checkpoint(name, tmp_path)
    whole, trunk = load_transformers_model(folder), load_trunk(folder, torch.float32)
    # Llama 4 around its text ends in an error in transformers 5.25; the text has a head of its own
    stock = whole.get_decoder() if hasattr(whole.get_decoder(), "lm_head") else whole
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, trunk.facts.top_k))
    with engine_over(trunk, store, num_blocks=40) as (engine, _):
        vectors = asyncio.run(embed_in_company(engine, PROMPTS))
    store.close()
    found = iter(vectors)
    for prompt in PROMPTS:
        with torch.inference_mode():
            output = stock(torch.tensor([prompt]), use_cache=False, output_hidden_states=True)
        hidden = output.hidden_states[-1][0]  # (tokens, hidden)
        for expected in (hidden.mean(0), hidden[-1]):
            error = np.abs(next(found) - expected.numpy()).max() / float(expected.abs().max())
            assert error < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_next"])  # with states too; steps pool the rows of any model alike
def test_deterministic_embeddings_are_batch_invariant(name: str, tmp_path: Path) -> None:
    """They are bitwise equal, although prompts are cut into other chunks."""
    trunk = load_trunk(make_checkpoint(name, tmp_path), torch.float32, is_deterministic=True)
    store, prompts = ExpertStore(trunk.catalog, trunk.catalog.total_bytes), PROMPTS[:4]
    with engine_over(trunk, store, num_blocks=200) as (engine, _):
        together = asyncio.run(embed_in_company(engine, prompts))
        alone = [asyncio.run(embed(engine, prompt, pooling)) for prompt in prompts for pooling in POOLINGS]
    store.close()
    for found, expected in zip(together, alone, strict=True):
        assert found.tobytes() == expected.tobytes()


def test_an_encoder_decoder_model_has_no_embeddings(tmp_path: Path) -> None:
    trunk = load_trunk(make_checkpoint("switch_transformers", tmp_path), torch.float32)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    with (
        engine_over(trunk, store, num_blocks=40) as (engine, _),
        pytest.raises(RequestRefusedError, match="it has no embeddings"),
    ):
        asyncio.run(embed(engine, [5, 6], "mean"))
    store.close()
