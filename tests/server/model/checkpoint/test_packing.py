"""Packed models give the results of their checkpoints."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Literal, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from expert_store import CheckpointError, ExpertLoadError, ExpertStore, Manifest, open_pack
from server.kernels.formats import block_int4, block_int8
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.locate import BUNDLED, BUNDLED_NAME, config_folder, find_checkpoint
from server.model.checkpoint.weight_formats import WeightFormat
from server.model.errors import ModelError
from server.model.multimodal.image_processor import MediaProcessor
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import CONFIGS, make_checkpoint
from tests.expert_store.lease_rows import one_row_each
from tests.old_packs import pack_as_before
from tests.packed_models import pack_model as pack
from tests.server.model.multimodal.test_image_parity import make_prompts, save_model, write
from tests.server.model.test_parity import generate

STEPS = 3


def logits_of(trunk: Trunk, steps: int = STEPS) -> list[torch.Tensor]:
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    try:
        return [logits for _, logits in generate(trunk, store, steps=steps)]
    finally:
        store.close()


@pytest.fixture(scope="module", params=list(CONFIGS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / cast("str", request.param)
    return make_checkpoint(folder.name, folder, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_bfloat16_packs_of_bfloat16_checkpoints_give_the_same_bits(
    checkpoint: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    wanted = logits_of(load_trunk(checkpoint, dtype))
    found = logits_of(load_trunk(pack(checkpoint, tmp_path / "out"), dtype))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_quantised_packs_give_the_results_of_their_dequantised_weights(
    checkpoint: Path, tmp_path: Path, weights: WeightFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = block_int8 if weights == "int8" else block_int4
    out = pack(checkpoint, tmp_path / "out", weights)
    found = logits_of(load_trunk(out, torch.float32))

    def reference(
        tensors: dict[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        return torch.nn.functional.linear(rows, kernel.dequantise(tensors, name), bias)

    monkeypatch.setattr(kernel, "project", reference)
    wanted = logits_of(load_trunk(out, torch.float32))
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(found, wanted, strict=True))
    monkeypatch.undo()
    exact = logits_of(load_trunk(checkpoint, torch.float32))
    similarity = [torch.cosine_similarity(one[0], other[0], dim=0) for one, other in zip(found, exact, strict=True)]
    assert min(similarity) > (0.999 if weights == "int8" else 0.9)


@pytest.mark.slow
def test_slots_of_quantised_packs_have_the_size_of_their_weights(tmp_path: Path) -> None:
    sizes = {
        weights: open_pack(pack(BUNDLED, tmp_path / weights, weights)).catalog.total_bytes
        for weights in ("bfloat16", "int8", "int4")
    }
    assert sizes["int8"] < 0.54 * sizes["bfloat16"]
    assert sizes["int4"] < 0.3 * sizes["bfloat16"]


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "block"), [("int8", 64), ("int4", 64), ("int4", 32)])
def test_packs_of_the_older_layout_are_served(
    tiny: Path, tmp_path: Path, weights: Literal["int8", "int4"], block: int
) -> None:
    found = logits_of(load_trunk(pack_as_before(tiny, tmp_path / "out", weights, block), torch.float32))
    exact = logits_of(load_trunk(tiny, torch.float32))
    similarity = [torch.cosine_similarity(one[0], other[0], dim=0) for one, other in zip(found, exact, strict=True)]
    assert min(similarity) > (0.999 if weights == "int8" else 0.9)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3_moe", tmp_path_factory.mktemp("checkpoints") / "tiny", torch.bfloat16)


@pytest.fixture
def packed(tiny: Path, tmp_path: Path) -> Path:
    return pack(tiny, tmp_path / "out")


def test_a_packed_folder_is_found_under_the_name_of_its_model(packed: Path) -> None:
    assert find_checkpoint(str(packed), None) == (packed, "tiny")
    assert (config_folder(packed) / "config.json").is_file()
    assert find_checkpoint(str(BUNDLED), None) == (BUNDLED, BUNDLED_NAME)


def test_a_pack_is_not_packed_again(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is packed already; give the checkpoint"):
        pack(packed, tmp_path / "again")


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("num_local_experts", 6, "has 8 experts in layer 0, but its model has 6"),
        ("num_hidden_layers", 2, r"experts in layers \[0, 1, 2\], but its model in layers \[0, 1\]"),
        ("moe_intermediate_size", 20, "the experts in layer 0 of out do not have the model's shapes"),
    ],
)
def test_experts_that_do_not_match_the_model_are_refused(packed: Path, key: str, value: int, complaint: str) -> None:
    """The manifest is valid, but not one that `greenroom pack` would write."""
    path = config_folder(packed) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    content = json.loads((packed / "manifest.json").read_bytes())
    del content["checksum"], content["format"], content["version"]
    content["files"]["config.json"] = [path.stat().st_size, None]
    (packed / "manifest.json").write_bytes(Manifest.model_validate(content).to_bytes())
    with pytest.raises(CheckpointError, match=complaint):
        load_trunk(packed, torch.float32)


def test_a_damaged_expert_is_refused_and_the_others_serve(packed: Path) -> None:
    trunk = load_trunk(packed, torch.float32)
    (path,) = config_folder(packed).glob("*.pack")
    raw = bytearray(path.read_bytes())
    raw[trunk.catalog.layout(0).slot_bytes * 3 + 5] ^= 1
    path.write_bytes(raw)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    with (
        pytest.raises(ExpertLoadError, match="cannot read expert 3 of layer 0: the checksum"),
        store.lease(one_row_each(0, [3])) as lease,
    ):
        list(lease)
    with store.lease(one_row_each(0, [0, 7])) as lease:
        assert {key.expert for key, _ in lease} == {0, 7}
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_named_and_not_quantised(tiny: Path, tmp_path: Path, value: float) -> None:
    folder = shutil.copytree(tiny, tmp_path / "odd")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.experts.4.down_proj.weight"][0, 0] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match="expert 4 of layer 1: down_proj holds NaN or infinity"):
        pack(folder, tmp_path / "out", "int4")
    pack(folder, tmp_path / "out", "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "most"), [("int8", "8.32e+06"), ("int4", "7.46e+04")])
def test_weights_beyond_a_format_are_named(tiny: Path, tmp_path: Path, weights: WeightFormat, most: str) -> None:
    folder = shutil.copytree(tiny, tmp_path / "large")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.experts.4.down_proj.weight"][0, 0] = 2.0**30
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        ModelError, match=f"down_proj holds 1.07e.09, more than the largest number of {weights}, {re.escape(most)}"
    ):
        pack(folder, tmp_path / "out", weights)


def test_a_pack_has_the_files_of_tokenizer_and_generation_config(tmp_path: Path) -> None:
    data = config_folder(pack(BUNDLED, tmp_path / "out"))
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (data / name).read_bytes() == (BUNDLED / name).read_bytes()


@pytest.mark.slow
def test_a_packed_model_takes_images(tmp_path: Path) -> None:
    """The pack has the image processor, the vision towers and the experts for images."""
    folder = save_model("ernie4_5_vl_moe", tmp_path / "checkpoint", torch.bfloat16)
    out = pack(folder, tmp_path / "out")
    results = []
    for place in (folder, out):
        prompts = make_prompts(MediaProcessor(FolderCheckpoint(config_folder(place))))
        results.append(write(load_trunk(place, torch.float32), prompts, 64, steps=2))
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(*results, strict=True))
