"""The engine over an encoder-decoder model, which answers prompts instead of continuing them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from expert_store import ExpertStore
from server.engine.interface import GenerationRequest, RequestRefusedError, SamplingParams
from server.model.trunk_loader import load_trunk
from tests.checkpoints import load_transformers_model, save_checkpoint
from tests.families import make_config
from tests.server.engine.test_models import NUM_TOKENS, engine_over, some_prompts, write, write_company

pytestmark = pytest.mark.slow


def test_batched_requests_equal_transformers_generate(tmp_path: Path) -> None:
    """Prompts are chunked, the cache forces preemption, and the store holds the fewest experts."""
    folder = save_checkpoint(make_config("switch_transformers"), tmp_path)
    stock, prompts, expected = load_transformers_model(folder), some_prompts(1), []
    for prompt in prompts:
        ids = stock.generate(torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None)
        expected.append(ids[0, 1:].tolist())
    written, statistics = write_company(load_trunk(folder, torch.float32), prompts)
    assert written == expected
    assert statistics.prompt_tokens >= sum(map(len, prompts))


def test_a_cancelled_request_frees_the_memory_of_its_prompt(tmp_path: Path) -> None:
    trunk = load_trunk(save_checkpoint(make_config("switch_transformers"), tmp_path), torch.float32)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    sampling = SamplingParams(NUM_TOKENS, temperature=0.0)

    async def scenario() -> None:
        stream = engine.submit(GenerationRequest("left", (5, 6, 7), sampling))
        await anext(aiter(stream))
        stream.cancel()
        assert len((await write(engine, [8, 9], sampling)).token_ids) == NUM_TOKENS
        refused = SamplingParams(1, prompt_logprobs=0)
        with pytest.raises(RequestRefusedError, match="prompt tokens have no logprobs"):
            engine.submit(GenerationRequest("logprobs", (5, 6, 7), refused))

    with engine_over(trunk, store, num_blocks=40) as (engine, blocks):
        asyncio.run(scenario())
        assert blocks.usage == 0
    store.close()
