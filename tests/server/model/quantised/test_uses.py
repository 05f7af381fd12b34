"""Quantised checkpoints are packed, inspected and served batch-invariantly."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from expert_store import ExpertStore, is_pack, least_bytes
from server.inspection.model_summary import summarise_model
from server.model.checkpoint.read_config import read_config
from server.model.checkpoint.weight_formats import WeightFormat
from server.model.dtype import compute_dtype
from server.model.trunk_loader import load_trunk
from tests.checkpoints import save_checkpoint
from tests.families import make_config
from tests.modelopt import mixed
from tests.quantise import GROUP, awq, compressed_tensors, edit_config, fp8, gptq, mxfp4, publish
from tests.server.inspection.test_inspect import SETTINGS, headers_of
from tests.server.model.checkpoint.test_packing import logits_of, pack
from tests.server.model.test_parity import generate

CPU = torch.device("cpu")
INT4 = partial(compressed_tensors, "pack-quantized", num_bits=4, type="int", strategy="group", group_size=GROUP)
FORMATS = {
    "mxfp4": ("gpt_oss", mxfp4),
    "fp8": ("qwen3_moe", fp8),
    "fused fp8": ("gemma4_text", fp8),
    "ct int4": ("qwen3_moe", INT4),
    "ct int8": ("mixtral", partial(compressed_tensors, "int-quantized", num_bits=8, strategy="channel")),
    "modelopt": ("qwen3_moe", mixed),
    "awq": ("deepseek_v3", awq),
    "gptq": ("qwen3_moe", partial(gptq, has_order=True)),
}


def checkpoints(name: str, folder: Path) -> tuple[Path, Path]:
    model_type, published = FORMATS[name]
    config = make_config(model_type)
    if name in {"mxfp4", "modelopt"}:
        config.hidden_size = 64
        config.intermediate_size = config.moe_intermediate_size = 32
    quantised, reference = publish(save_checkpoint(config, folder / "plain"), folder, published())
    edit_config(quantised, dtype="bfloat16")  # the dtype of its scales
    return quantised, reference


@pytest.fixture(scope="module", params=FORMATS)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return checkpoints(request.param, tmp_path_factory.mktemp("published"))


@pytest.mark.slow
def test_a_trunk_is_as_large_as_that_of_the_unquantised_checkpoint(published: tuple[Path, Path]) -> None:
    quantised, reference = (load_trunk(folder, torch.bfloat16) for folder in published)
    assert quantised.nbytes == reference.nbytes


@pytest.mark.slow
def test_headers_or_config_alone_give_the_bytes_of_the_checkpoint(published: tuple[Path, Path], tmp_path: Path) -> None:
    complete, _ = published
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "config.json").write_bytes((complete / "config.json").read_bytes())
    found = [
        summarise_model(str(folder), SETTINGS, CPU)
        for folder in (complete, headers_of(complete, tmp_path / "headers"), alone)
    ]
    trunk = load_trunk(complete, found[0].outline.dtype)
    assert [each.source for each in found] == ["checkpoint", "headers", "config"]
    assert {each.outline.trunk_bytes for each in found} == {trunk.nbytes}
    assert {each.catalog.total_bytes for each in found} == {trunk.catalog.total_bytes}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("published", "weights"),
    [*((name, "bfloat16") for name in FORMATS), ("fp8", "int8"), ("mxfp4", "int4"), ("gptq", "int4")],
    indirect=["published"],
)
def test_a_pack_equals_that_of_the_dequantised_checkpoint(
    published: tuple[Path, Path], weights: WeightFormat, tmp_path: Path
) -> None:
    """Its experts equal those of a pack of the dequantised checkpoint; its trunk keeps the published tensors."""
    found, wanted = (pack(folder, tmp_path / f"{folder.name}-pack", weights) for folder in published)
    assert is_pack(found)
    results = [logits_of(load_trunk(folder, torch.float32)) for folder in (found, wanted)]
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.slow
def test_results_are_batch_invariant_in_deterministic_mode(published: tuple[Path, Path]) -> None:
    trunk = load_trunk(published[0], torch.bfloat16, is_deterministic=True)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    complete, pieces = (generate(trunk, store, chunk, steps=1) for chunk in (64, 5))
    store.close()
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(complete, pieces, strict=True))


@pytest.mark.slow
def test_a_device_tier_and_few_slots_give_the_same_bits(published: tuple[Path, Path]) -> None:
    trunk = load_trunk(published[0], torch.bfloat16)
    results = []
    for host_bytes, device_bytes in ((trunk.catalog.total_bytes, 0), (least_bytes(trunk.catalog, 4),) * 2):
        store = ExpertStore(trunk.catalog, host_bytes, device_bytes=device_bytes)
        results.append(generate(trunk, store, steps=2))
        store.check_integrity()
        store.close()
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(*results, strict=True))


@pytest.mark.slow
def test_int4_experts_take_a_quarter_of_bfloat16(tmp_path: Path) -> None:
    """The size needs no padding of blocks, and few scales."""
    config = make_config("qwen3_moe")
    config.hidden_size, config.moe_intermediate_size = 256, 128
    plain = save_checkpoint(config, tmp_path / "plain", torch.bfloat16)
    quantised, reference = publish(plain, tmp_path, INT4(group_size=64))
    sizes = [load_trunk(folder, torch.bfloat16).catalog.total_bytes for folder in (quantised, reference)]
    assert sizes[0] < 0.3 * sizes[1]


def test_float16_scales_are_computed_in_bfloat16_if_that_is_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = checkpoints("gptq", tmp_path)
    edit_config(folder, dtype="float16")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert compute_dtype("auto", read_config(folder), CPU) == torch.bfloat16
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert compute_dtype("auto", read_config(folder), CPU) == torch.float32
