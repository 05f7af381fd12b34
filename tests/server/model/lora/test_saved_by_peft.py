"""Adapters as PEFT saves them by its defaults, from the file to logits: on all linear layers, and on the head."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from expert_store import ExpertStore
from server.model.adapters.errors import AdapterError
from server.model.chunk_weights import ChunkWeights, WeightedAdapter
from server.model.lora.pages import page_layout
from server.model.lora.peft_files import read_adapter
from server.model.lora.targets import LoraTargets
from server.model.trunk.adapter_targets import lora_targets
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint
from tests.server.model.lora.peft_adapters import PeftAdapters
from tests.server.model.lora.test_peft_files import loaded
from tests.server.model.lora.written_batch import BLOCK, PROMPTS, STEPS, assert_near, needs_peft
from tests.server.model.test_parity import generate

FAMILIES = ["deepseek_v3", "qwen3_next", "qwen3_5_moe", "gpt_oss", "gemma4", "glm4_moe"]
TOWERS = re.compile(r"visual|vision|audio")
HEAD = "base_model.model.lm_head.base_layer.weight"
WEIGHTS = "adapter_model.safetensors"
MIXES = ({"law": 1.0}, {"code": 1.0})

pytestmark = needs_peft


def save_adapters(checkpoint: Path, folder: Path) -> PeftAdapters:
    """Save ``law`` on all linear layers, as training on texts alone leaves it, and ``code`` on the head."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that it saves the head
        configs = {
            "law": LoraConfig(r=3, lora_alpha=6, target_modules="all-linear"),
            "code": LoraConfig(r=2, lora_alpha=4, target_modules=["lm_head"]),
        }
        peft = PeftAdapters(checkpoint, configs)
        for name, parameter in peft.model.named_parameters():
            if "lora_B" in name and TOWERS.search(name):
                torch.nn.init.zeros_(parameter)
        peft.model.save_pretrained(folder)
    return peft


def page_bytes(targets: LoraTargets) -> int:
    return page_layout(targets).slot_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_of_all_linear_layers_and_of_the_head_give_what_peft_gives(name: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(name, tmp_path / "model")
    peft = save_adapters(checkpoint, tmp_path / "adapters")
    expected = [peft.greedy(PROMPTS[0], STEPS, mix) for mix in MIXES]

    trunk = load_trunk(checkpoint, torch.float32)
    targets = lora_targets(trunk)
    weights = []
    for mix in MIXES:
        ((adapter, factor),) = mix.items()
        files = read_adapter(tmp_path / "adapters" / adapter, targets, page_bytes(targets))
        weights.append(ChunkWeights(None, (WeightedAdapter(loaded(files, adapter), factor),)))
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    found = generate(trunk, store, 5, STEPS, block_size=BLOCK, prompts=[PROMPTS[0]] * 2, weights=weights)
    store.close()
    assert_near(found, expected)


@pytest.fixture(scope="module")
def towered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoraTargets]:
    """Adapters of a model with a tower, and what the model can take."""
    folder = tmp_path_factory.mktemp("towered")
    checkpoint = make_checkpoint("qwen3_5_moe", folder / "model")
    save_adapters(checkpoint, folder)
    return folder, lora_targets(load_trunk(checkpoint, torch.bfloat16))


def rewritten(source: Path, folder: Path, **changed: torch.Tensor) -> Path:
    """Return a copy of an adapter with some other tensors."""
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    save_file({**load_file(source / WEIGHTS), **changed}, folder / WEIGHTS)
    return folder


@pytest.mark.slow
def test_a_head_that_was_rounded_to_another_dtype_is_the_model_s_own(towered: tuple[Path, LoraTargets]) -> None:
    folder, targets = towered
    match = read_adapter(folder / "code", targets, page_bytes(targets)).match
    assert (match.summary, match.num_idle) == ("2 of 3 applied (1 changes nothing)", 1)


@pytest.mark.slow
def test_another_head_than_the_model_s_is_refused(towered: tuple[Path, LoraTargets], tmp_path: Path) -> None:
    folder, targets = towered
    head = load_file(folder / "code" / WEIGHTS)[HEAD]
    other = rewritten(
        folder / "code", tmp_path / "other", **{HEAD: head + 0.01 * (torch.arange(len(head)) == 7)[:, None]}
    )
    with pytest.raises(AdapterError, match=r"lm_head\.base_layer\.weight is not this model's lm_head"):
        read_adapter(other, targets, page_bytes(targets))


@pytest.mark.slow
def test_a_head_of_another_vocabulary_is_refused(towered: tuple[Path, LoraTargets], tmp_path: Path) -> None:
    folder, targets = towered
    head = load_file(folder / "code" / WEIGHTS)[HEAD]
    other = rewritten(folder / "code", tmp_path / "other", **{HEAD: torch.cat([head, head[:1]])})
    with pytest.raises(AdapterError, match="is not this model's lm_head"):
        read_adapter(other, targets, page_bytes(targets))


@pytest.mark.slow
def test_additions_to_a_tower_that_are_not_zero_are_refused(towered: tuple[Path, LoraTargets], tmp_path: Path) -> None:
    folder, targets = towered
    tensors = load_file(folder / "law" / WEIGHTS)
    name = next(each for each in tensors if "visual" in each and "lora_B" in each)
    other = rewritten(folder / "law", tmp_path / "other", **{name: torch.ones_like(tensors[name])})
    with pytest.raises(AdapterError, match=r"it can't change model.visual.* because it is not part of the text model"):
        read_adapter(other, targets, page_bytes(targets))
