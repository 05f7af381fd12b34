"""DeepSeek-V4 whose modules compute something else is not run on native layers, and the reason says what differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as modeling

from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.model.blocks.compressed_attention.index_choice import IndexChoice
from server.model.blocks.errors import UnsupportedLayerError
from tests.checkpoints import make_checkpoint
from tests.server.model.native_layers.test_native_layers import load


def of_result(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    """Return what changes the first result of a forward."""

    def changed(forward: Any) -> Any:
        def new(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        return new

    return changed


CASES = {
    "DeepseekV4IndexerScorer": (of_result(torch.neg), "its index chooses other compressed keys"),
    "DeepseekV4CSACompressor": (of_result(lambda keys: keys * 1.5), "off by"),
    "DeepseekV4HCACompressor": (of_result(lambda keys: keys.flip(-1)), "off by"),
    "DeepseekV4HyperConnection": (of_result(lambda weights: weights * 1.5), "off by"),
}


def choice_of(scores: list[float]) -> tuple[IndexChoice, np.ndarray[Any, np.dtype[np.int32]]]:
    """Return a choice of one of two keys for the last of two tokens, and the other choice."""
    own, other = (np.array([[-1], [key]], dtype=np.int32) for key in (0, 1))
    return IndexChoice(own, torch.tensor([scores, scores]), 1, 1), other


@pytest.mark.parametrize("scores", [[0.0, 0.0], [1.0, 1.00001]])
def test_another_of_equal_scores_may_be_chosen(scores: list[float]) -> None:
    choice, other = choice_of(scores)
    choice.check(other, tolerance=1e-4)


def test_a_lower_score_may_not_be_chosen() -> None:
    choice, other = choice_of([1.0, 0.5])
    with pytest.raises(UnsupportedLayerError, match="chooses other compressed keys"):
        choice.check(other, tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")
@pytest.mark.parametrize("name", CASES)
def test_modules_that_differ_run_as_they_are(
    name: str, tmp_path: Path, pool: ComputePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, reason = CASES[name]
    owner: Any = getattr(modeling, name)
    monkeypatch.setattr(owner, "forward", change(owner.forward))
    program = load(make_checkpoint("deepseek_v4", tmp_path), pool).facts.program
    assert not program.is_native
    assert reason in (program.reason or "")
