"""Experts stored as linear layers, as quantisers store those of every family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from expert_store import ExpertCatalog, ExpertKey, ExpertStore, PackedRecord, find_shards, least_bytes, read_index
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.checkpoint.read_config import read_config
from server.model.checkpoint.tensor_map import CheckpointMap, experts_modules, map_checkpoint
from server.model.model_building import build_model
from server.model.opening.packing import _read_expert
from server.model.trunk_loader import load_trunk
from tests.checkpoints import save_checkpoint
from tests.expert_linears import split_experts
from tests.families import make_config
from tests.quantised_by_tools.make import PROMPT
from tests.server.model.checkpoint.test_packing import pack
from tests.server.model.test_parity import TOLERANCE, generate

FAMILIES = (
    "aria_text",  # transposed
    "deepseek_v4",
    "gemma4_text",
    "gpt_oss",  # transposed, gate and up alternate, biases
    "granitemoe",
    "jamba",
    "kimi_linear",
    "lfm2_moe",
    "llama4_text",
    "minimax_m2",
    "mistral4",
    "mixtral",
    "nemotron_h",  # no gate
    "phimoe",
    "qwen3_5_moe",
    "qwen3_vl_moe",
)
TOOLS_FAMILIES = ("gpt_oss", "granitemoe", "mixtral")
BLOCK = 16  # tokens; what native attention takes
LEAST_CORRELATION = 0.8  # of 4 bits in a random model
LEAST_CORRELATION_OF_PACK = 0.999  # of bfloat16
MADE = Path(__file__).parents[3] / "quantised_by_tools"


def mapped(folder: Path) -> tuple[Any, CheckpointMap]:
    model = build_model(read_config(folder), torch.float32)
    return model, map_checkpoint(model, read_index(find_shards(folder)))


def experts(catalog: ExpertCatalog) -> dict[tuple[ExpertKey, str], torch.Tensor]:
    found = {}
    for layer, entry in catalog.layers.items():
        for number in range(len(entry.experts)):
            recipe = catalog.recipe(ExpertKey(layer, number))
            assert not isinstance(recipe, PackedRecord)
            for name, tensor in _read_expert(recipe, entry.layout).items():
                found[ExpertKey(layer, number), name] = tensor
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_linear_layers_make_the_parameters_of_the_family(family: str, tmp_path: Path) -> None:
    plain = save_checkpoint(make_config(family), tmp_path / "plain", as_published=False)
    model, wanted = mapped(plain)
    split = split_experts(experts_modules(model), plain, tmp_path / "split")
    found = mapped(split)[1]
    assert found.unused == wanted.unused
    assert set(found.trunk) == set(wanted.trunk)
    tensors, expected = experts(found.catalog), experts(wanted.catalog)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[place], expected[place]) for place in expected)


@pytest.fixture(params=["torch", "native"])
def pool(request: pytest.FixtureRequest) -> Iterator[ComputePool | None]:
    if request.param == "torch":
        yield None
        return
    if not availability().runnable:
        pytest.skip("the native kernels were not built")
    with closing(Kernels(2)) as kernels:
        yield ComputePool(2, kernels)


def served_logits(folder: Path, pool: ComputePool | None) -> torch.Tensor:
    """Compute the logits of each token of ``PROMPT``."""
    trunk = load_trunk(folder, torch.float32, pool=pool)
    with closing(ExpertStore(trunk.catalog, least_bytes(trunk.catalog, trunk.facts.top_k))) as store:
        prefixes = [PROMPT[: end + 1] for end in range(len(PROMPT))]
        return torch.cat([row for _, row in generate(trunk, store, steps=1, block_size=BLOCK, prompts=prefixes)])


def expected_logits(folder: Path) -> torch.Tensor:
    return load_file(folder.with_suffix(".safetensors"))["logits"]


@pytest.mark.slow
@pytest.mark.parametrize("family", TOOLS_FAMILIES)
def test_a_checkpoint_of_llm_compressor_gives_the_logits_of_the_tool(family: str, pool: ComputePool | None) -> None:
    folder = MADE / "llm-compressor" / family
    expected = expected_logits(folder)
    difference = float((served_logits(folder, pool) - expected).abs().max())
    assert difference < TOLERANCE * float(expected.max() - expected.min())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4-double", "fp4", "int8"])
def test_a_checkpoint_of_bitsandbytes_gives_the_logits_of_its_weights(kind: str, pool: ComputePool | None) -> None:
    folder = MADE / f"bitsandbytes-{kind}"
    expected = expected_logits(folder)
    difference = float((served_logits(folder, pool) - expected).abs().max())
    assert difference < TOLERANCE * float(expected.max() - expected.min())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"], ids=["4 bits", "8 bits"])
def test_a_checkpoint_of_mlx_gives_the_logits_of_the_tool(family: str, pool: ComputePool | None) -> None:
    """The router of the first one has 8 bits."""
    folder = MADE / "mlx" / family
    expected = expected_logits(folder)
    difference = float((served_logits(folder, pool) - expected).abs().max())
    assert difference < TOLERANCE * float(expected.max() - expected.min())


@pytest.mark.slow
@pytest.mark.parametrize("family", TOOLS_FAMILIES)
def test_a_checkpoint_of_autoround_gives_about_the_logits_of_the_plain_model(family: str) -> None:
    """Gate and up exchanged, or zeros off by one, leave no correlation."""
    folder = MADE / "auto-round" / family
    rows = torch.stack([served_logits(folder, None).flatten(), expected_logits(folder).flatten()])
    assert float(torch.corrcoef(rows)[0, 1]) > LEAST_CORRELATION


def test_a_pack_keeps_the_order_of_gate_and_up(tmp_path: Path) -> None:
    """In gpt-oss they alternate."""
    folder = MADE / "llm-compressor" / "gpt_oss"
    packed = pack(folder, tmp_path / "pack")
    expected = expected_logits(folder)
    rows = torch.stack([served_logits(packed, None).flatten(), expected.flatten()])
    assert float(torch.corrcoef(rows)[0, 1]) > LEAST_CORRELATION_OF_PACK
