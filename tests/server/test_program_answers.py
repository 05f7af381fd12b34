"""`inspect`, `doctor` and `serve` say the same of what runs a model's layers, for all families and formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from server.doctor.model import check_model
from server.inspection.model_summary import summarise_model
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.trunk_loader import load_trunk
from server.settings import ServeSettings
from tests.checkpoints import make_checkpoint, save_checkpoint
from tests.families import FAMILIES, make_config
from tests.gguf.models import FILES
from tests.quantise import Published, awq, fp8, gptq, mxfp4, publish

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built"),
]
SETTINGS = ServeSettings(dtype="float32")
SERVED = [name for name, family in FAMILIES.items() if family.refusal is None]
QUANTISED: dict[str, tuple[str, Callable[[], Published]]] = {
    "fp8": ("qwen3_moe", fp8),
    "gptq": ("qwen3_moe", gptq),
    "awq": ("mixtral", awq),
    "mxfp4": ("gpt_oss", mxfp4),
}


def assert_same_answers(model: Path) -> None:
    """Compare what the three commands' functions find."""
    inspected = summarise_model(str(model), SETTINGS, torch.device("cpu")).program
    reported = next(finding.message for finding in check_model(str(model), SETTINGS) if finding.name == "layers")
    kernels = Kernels(1)
    try:
        served = load_trunk(model, torch.float32, pool=ComputePool(1, kernels)).facts.program
    finally:
        kernels.close()
    assert (inspected, reported) == (served, served.describe())


@pytest.mark.parametrize("model_type", SERVED)
def test_commands_give_one_answer_for_a_family(model_type: str, tmp_path: Path) -> None:
    assert_same_answers(save_checkpoint(make_config(model_type), tmp_path, torch.bfloat16))


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.glob("*.gguf")))
def test_commands_give_one_answer_for_a_gguf_file(name: str) -> None:
    assert_same_answers(FILES / name)


@pytest.mark.parametrize("form", QUANTISED)
def test_commands_give_one_answer_for_a_quantised_checkpoint(form: str, tmp_path: Path) -> None:
    family, published = QUANTISED[form]
    plain = make_checkpoint(family, tmp_path / "plain", torch.bfloat16)
    assert_same_answers(publish(plain, tmp_path, published())[0])
