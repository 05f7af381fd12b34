"""A model whose modules compute something else than the kernels, as of a newer transformers, does not run natively."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import pytest
import torch
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3_moe

from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.blocks.errors import UnsupportedLayerError
from server.model.model_building import build_model
from server.model.recognition.find_program import recognise_twin
from tests.families import make_config

pytestmark = pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")


@pytest.fixture(scope="module")
def kernels() -> Iterator[Kernels]:
    found = Kernels(1)
    yield found
    found.close()


def bend(output: Any) -> Any:
    """Return another output of a module: its first tensor of floating-point numbers is no multiple of the former."""
    if isinstance(output, torch.Tensor):
        return output + 0.01 * output.abs().sqrt()
    if isinstance(output, tuple):
        place = next(place for place, each in enumerate(output) if each.is_floating_point())
        return (*output[:place], bend(output[place]), *output[place + 1 :])
    output.logits = bend(output.logits)
    return output


def bend_weights(output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Return what a router returns with other weights."""
    return tuple(each**2 if each.is_floating_point() and each.shape == output[-1].shape else each for each in output)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("Qwen3MoeAttention", bend, "its layers compute something else"),
        ("Qwen3MoeRMSNorm", bend, "norm"),
        ("Qwen3MoeTopKRouter", bend_weights, "its router chooses in another way"),
        ("Qwen3MoeSparseMoeBlock", bend, "its layers"),
        ("Qwen3MoeDecoderLayer", bend, "its layers"),
        ("Qwen3MoeForCausalLM", bend, "its head differs"),
    ],
)
def test_a_part_that_computes_something_else_is_named_and_not_run_natively(
    name: str, change: Callable[[Any], Any], message: str, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner: Any = getattr(qwen3_moe, name)
    forward = owner.forward

    @wraps(forward)
    def changed(*args: Any, **kwargs: Any) -> Any:
        return change(forward(*args, **kwargs))

    monkeypatch.setattr(owner, "forward", changed)
    with pytest.raises(UnsupportedLayerError, match=message):
        recognise_twin(build_model(make_config("qwen3_moe"), torch.float32), kernels, 64)
