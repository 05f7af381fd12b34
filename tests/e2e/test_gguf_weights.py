"""Adapters and expert variants over a GGUF file give what they give over the checkpoint that it was made from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.adapters import FUSED, make_adapter
from tests.e2e.processes import Server, serving
from tests.gguf.models import FILES, make_checkpoint
from tests.server.model.checkpoint.gguf.test_gguf_checkpoint import Q8_0, rewrite
from tests.server.model.variants import other, read_tensors, save_variant

MODELS = {"checkpoint": "tiny", "file": "qwen3moe", "quantised": "q8"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """A checkpoint, its file, and its file with quantised matrices, each with adapters and variants."""
    folder = tmp_path_factory.mktemp("weights")
    checkpoint = make_checkpoint("qwen3moe", folder / MODELS["checkpoint"])
    quantised = rewrite(folder / f"{MODELS['quantised']}.gguf", Q8_0, trunk=Q8_0)
    tensors = read_tensors(checkpoint)
    chosen = {"whole": r"layers\.1\.mlp\.experts\.[02]\.", "part": r"layers\.0\.mlp\.experts\.1\.up_proj"}
    for name, pattern in chosen.items():
        save_variant(folder / name, other(tensors, lambda key, p=pattern: re.search(p, key) is not None))  # type: ignore[misc]
    make_adapter(checkpoint, folder / "adapter", target_parameters=FUSED)
    flags = [f"--adapter=adapter={folder / 'adapter'}", *(f"--variant={name}={folder / name}" for name in chosen)]
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(serving(str(path), *(flags if kind != "quantised" else flags[:2])))
            for kind, path in (
                ("checkpoint", checkpoint),
                ("file", FILES / "qwen3moe.gguf"),
                ("quantised", quantised),
            )
        }


def answer(servers: dict[str, Server], kind: str, model: str) -> Any:
    """The text of a model with the logprobs of its tokens."""
    name = model.format(base=MODELS[kind])
    client = servers[kind].client()
    reply = client.completions.create(model=name, prompt="the theatre", max_tokens=8, temperature=0, logprobs=1)
    return reply.choices[0].text, reply.choices[0].logprobs


@pytest.mark.parametrize("model", ["{base}", "adapter", "{base}:whole", "{base}:part"])
def test_bits_are_those_over_the_checkpoint(servers: dict[str, Server], model: str) -> None:
    assert answer(servers, "file", model) == answer(servers, "checkpoint", model)


@pytest.mark.parametrize("model", ["adapter", "{base}:whole", "{base}:part"])
def test_weights_change_the_answer(servers: dict[str, Server], model: str) -> None:
    assert answer(servers, "file", model) != answer(servers, "file", "{base}")


@pytest.mark.parametrize("model", ["adapter", "{base}:whole"])
def test_weights_change_the_answer_of_a_quantised_file(servers: dict[str, Server], model: str) -> None:
    assert answer(servers, "quantised", model) != answer(servers, "quantised", "{base}")
