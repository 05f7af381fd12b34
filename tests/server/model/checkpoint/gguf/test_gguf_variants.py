"""Expert variants from GGUF files, and over experts that are quantised in a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from expert_store import CheckpointError, ExpertStore, TensorSource, read_tensor
from server.model.chunk_weights import ChunkWeights
from server.model.model_building import build_model
from server.model.opening.gguf_checkpoint import GgufCheckpoint
from server.model.opening.open_checkpoint import open_checkpoint
from server.model.opening.variant_files import BaseModel, read_variant
from server.model.trunk_loader import load_trunk
from tests.packed_models import pack_model
from tests.server.model.checkpoint.gguf.test_gguf_checkpoint import (
    FLOAT32,
    PROMPT,
    Q4_0,
    Q8_0,
    logits_of,
    rewrite,
)
from tests.server.model.checkpoint.gguf.test_nvfp4 import write as write_nvfp4
from tests.server.model.test_parity import generate
from tests.server.model.variants import save_variant

# Two layers with experts by model; gpt-oss has biases, and its outputs of gate and up alternate.
MODELS = {"qwen3moe": (0, 1), "gpt-oss": (0, 1), "llama4": (1, 3)}
LEAVES = [f"ffn_{part}_exps.{kind}" for part in ("gate", "up", "down") for kind in ("weight", "bias")]


def swapped(name: str) -> dict[str, str | None]:
    """Names of tensors by which two layers get each other's experts."""
    one, other = MODELS[name]
    return {f"blk.{a}.{leaf}": f"blk.{b}.{leaf}" for a, b in ((one, other), (other, one)) for leaf in LEAVES}


def with_variant(path: Path, variant: Path) -> torch.Tensor:
    """The logits of a model with a variant."""
    trunk = load_trunk(path, torch.float32)
    checkpoint = open_checkpoint(path)
    model = build_model(checkpoint.read_config(), torch.float32)
    base = BaseModel(model, trunk.catalog, trunk.routers, "", checkpoint.index())
    files = read_variant(variant, "law", "law@1", base)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    store.add_variant(files.variant.version, files.recipes)
    weights = [ChunkWeights(variant=files.variant)]
    [(_, logits)] = generate(trunk, store, steps=1, prompts=[PROMPT], weights=weights)
    store.close()
    return logits[0]


def as_safetensors(path: Path, folder: Path) -> Path:
    """A variant with the numbers of a file's experts."""
    index = GgufCheckpoint(path.parent, path.name).index()
    return save_variant(folder, {name: read_tensor(each) for name, each in index.items() if ".experts." in name})


@pytest.mark.parametrize("name", MODELS)
def test_the_experts_of_another_file_of_the_same_types_are_a_variant(name: str, tmp_path: Path) -> None:
    (tmp_path / "law").mkdir()
    base = rewrite(tmp_path / "base.gguf", Q4_0, name=name)
    other = rewrite(tmp_path / "law" / "other.gguf", Q4_0, name=name, renamed=swapped(name))
    expected = logits_of(other)
    assert torch.equal(with_variant(base, other.parent), expected)
    assert torch.equal(with_variant(base, other), expected)
    assert not torch.equal(logits_of(base), expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("make", [lambda path, _: path, lambda path, out: pack_model(path, out, "unchanged")])
def test_plain_experts_are_rounded_to_the_types_of_the_base(
    make: Callable[[Path, Path], Path], name: str, tmp_path: Path
) -> None:
    base = make(rewrite(tmp_path / "base.gguf", Q4_0, name=name), tmp_path / "pack")
    floats = rewrite(tmp_path / "floats.gguf", Q4_0, name=name, renamed=swapped(name), stored_as=FLOAT32)
    expected = logits_of(rewrite(tmp_path / "other.gguf", Q4_0, name=name, renamed=swapped(name)))
    assert torch.equal(with_variant(base, as_safetensors(floats, tmp_path / "law")), expected)


def test_a_variant_of_other_types_is_refused(tmp_path: Path) -> None:
    (tmp_path / "law").mkdir()
    rewrite(tmp_path / "law" / "other.gguf", Q8_0)
    with pytest.raises(CheckpointError, match=r"quantised in another way .* quantise it as they are"):
        with_variant(rewrite(tmp_path / "base.gguf", Q4_0), tmp_path / "law")


def test_a_base_to_whose_type_nothing_is_rounded_refuses_plain_experts(tmp_path: Path) -> None:
    base, floats = write_nvfp4(tmp_path / "base.gguf"), write_nvfp4(tmp_path / "floats.gguf", as_floats=True)
    with pytest.raises(CheckpointError, match=r"not in NVFP4 .* give the variant as a GGUF file"):
        with_variant(base, as_safetensors(floats, tmp_path / "law"))


def test_other_tensors_of_a_file_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "law").mkdir()
    path = rewrite(tmp_path / "law" / "other.gguf", Q4_0)
    checkpoint, trunk = open_checkpoint(path), load_trunk(path, torch.float32)
    base = BaseModel(build_model(checkpoint.read_config(), torch.float32), trunk.catalog, trunk.routers, "")
    routers = sum(isinstance(each, TensorSource) and ".gate." in name for name, each in checkpoint.index().items())
    experts = sum(3 * len(layer.experts) for layer in trunk.catalog.layers.values())
    assert read_variant(path.parent, "law", "law@1", base).num_tensors == routers + experts
