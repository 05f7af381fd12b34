"""Adapters of the bundled model, from PEFT's files to logprobs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from server.engine.interface import GenerationRequest, SamplingParams
from server.loading.load import LoadedServer, load_server
from server.setting_values import AUTO, NamedPath, parse_budget
from server.settings import ServeSettings, SettingsError
from tests.adapters import FUSED, make_adapter, write_adapter

BUNDLED = Path("server/demo/model")
PROMPT = (5, 17, 300, 42, 8, 99, 1200, 64)


async def prompt_logprobs(server: LoadedServer, model: str | None) -> list[float]:
    """Return the logprob of each token of the prompt but the first."""
    weights = server.directory.resolve(model) if model else None
    sampling = SamplingParams(1, temperature=0.0, prompt_logprobs=0)
    stream = server.engine.submit(GenerationRequest("test-0", PROMPT, sampling, weights=weights))
    events = [event async for event in stream]
    return [each.logprob for event in events for each in event.prompt_logprobs or ()]


@torch.inference_mode()
def expected_logprobs(model: torch.nn.Module) -> list[float]:
    logits = model(torch.tensor([PROMPT])).logits[0]
    picked = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(PROMPT[1:])[:, None])
    values: list[float] = picked[:, 0].tolist()
    return values


@pytest.mark.slow
def test_each_request_of_a_batch_gets_what_peft_computes_with_its_adapter(tmp_path: Path) -> None:
    """The memory holds one adapter at a time, so that the requests also wait for each other."""
    law = make_adapter(
        BUNDLED,
        tmp_path / "law",
        target_modules=["q_proj", "o_proj"],
        target_parameters=FUSED,
        alpha_pattern={"o_proj": 2},
    )
    code = make_adapter(BUNDLED, tmp_path / "code", seed=2, r=8, use_rslora=True, target_modules=["k_proj", "v_proj"])
    settings = ServeSettings(
        dtype="float32",
        adapter=tuple(NamedPath(name, str(tmp_path / name)) for name in ("law", "code")),
        adapter_memory=parse_budget("2MiB"),
    )

    async def scenario() -> list[list[float]]:
        names = [None, "law", "code", "law", None]
        return list(await asyncio.gather(*(prompt_logprobs(server, name) for name in names)))

    server = load_server(None, settings)
    try:
        served = asyncio.run(scenario())
    finally:
        server.close()
    with law.disable_adapter():
        base = expected_logprobs(law)
    expected = [base, expected_logprobs(law), expected_logprobs(code), expected_logprobs(law), base]
    torch.testing.assert_close(torch.tensor(served), torch.tensor(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "memory", "message"),
    [
        ("none", AUTO, "--adapter law=.*none: .* can't be opened"),
        ("law", AUTO, "0 of 2 tensors fit the model"),
        ("law", parse_budget("1000"), "--adapter-memory is 1000 B, but a page"),
    ],
)
def test_an_adapter_that_can_not_be_served_stops_the_start(
    tmp_path: Path, path: str, memory: str, message: str
) -> None:
    write_adapter(tmp_path / "law", inputs=31)
    settings = ServeSettings(adapter=(NamedPath("law", str(tmp_path / path)),), adapter_memory=memory)
    with pytest.raises(SettingsError, match=message):
        load_server(None, settings)


def test_a_folder_of_adapters_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--adapters-dir .*none: there is no such folder"):
        load_server(None, ServeSettings(adapters_dir=tmp_path / "none"))
