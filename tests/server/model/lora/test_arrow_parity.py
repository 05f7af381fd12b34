"""Sequences whose adapters are chosen by token have the logits of PEFT's Arrow, whatever else is in their steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import ArrowConfig, LoraConfig, create_arrow_model

from server.kernels.compute_pool import ComputePool
from server.model.adapters.errors import AdapterError
from server.model.adapters.prototypes import prototypes_of
from server.model.chunk_weights import AdapterChooser, ChunkWeights, WeightedAdapter
from server.model.trunk.adapter_targets import lora_targets
from server.model.trunk_loader import load_trunk
from tests.checkpoints import load_transformers_model, make_checkpoint
from tests.server.model.lora.peft_adapters import PeftAdapters
from tests.server.model.lora.written_batch import (
    ATTENTION,
    DENSE,
    GATES,
    PROMPTS,
    STEPS,
    Greedy,
    WritingModel,
    needs_peft,
)

NAMES = ("code", "law", "music", "sea")
ROUTED, FIXED, BASE = "routed", "fixed", "base"
KINDS = [ROUTED, BASE, ROUTED, FIXED, ROUTED]  # of each prompt
LATENT = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"]
NATIVE = {
    "qwen3_moe": [*ATTENTION, "lm_head"],
    "qwen2_moe": ["v_proj", *DENSE, "shared_expert_gate"],
    "deepseek_v3": ["q_b_proj", "kv_a_proj_with_mqa", "o_proj"],
    "qwen4_exp_text": ["index_qk_proj", *GATES, "key_proj"],
    "axk2": ["wq_b", "fc1", "fc2"],
    "deepseek_v4": ["q_b_proj", "o_b_proj"],
    "longcat_flash": ["q_b_proj"],  # whose results are scaled
    "inkling_text": ["lm_head"],  # whose inputs are scaled
}
MODULES = {
    "qwen3_moe": [*ATTENTION, "lm_head"],
    "deepseek_v3": LATENT,
    "qwen3_next": ["in_proj_qkvz", "out_proj", "q_proj", "lm_head"],
}

pytestmark = needs_peft


@dataclass
class Model(WritingModel):
    """A trunk with four adapters on some layers, and PEFT's results."""

    folder: Path
    layers: Sequence[str]
    top_k: int = 2
    temperature: float = 0.7

    def __post_init__(self) -> None:
        self.peft = peft_adapters(self.folder, self.layers)
        arrow = create_arrow_model(
            load_transformers_model(self.folder),
            [str(path) for path in self.peft.save(self.folder / "adapters")],
            ArrowConfig(top_k=self.top_k, router_temperature=self.temperature),
        ).eval()
        self.expected = [
            greedy(arrow, prompt) if kind == ROUTED else self.peft.greedy(prompt, STEPS, {"law": float(kind == FIXED)})
            for prompt, kind in zip(PROMPTS, KINDS, strict=True)
        ]

    def load(self, pool: ComputePool | None, **options: Any) -> None:
        self.trunk = load_trunk(self.folder, torch.float32, pool=pool, **options)
        targets = lora_targets(self.trunk)
        adapters = {name: self.peft.adapter(name, targets) for name in NAMES}
        router = AdapterChooser(tuple(adapters.values()), self.top_k, self.temperature)
        self.of_kind = {
            ROUTED: ChunkWeights(chooser=router),
            FIXED: ChunkWeights(adapters=(WeightedAdapter(adapters["law"]),)),
            BASE: None,
        }

    def weights(self, index: int) -> ChunkWeights | None:
        return self.of_kind[KINDS[index]]


def peft_adapters(folder: Path, layers: Sequence[str]) -> PeftAdapters:
    """Return adapters with one singular value much larger than others: PEFT finds its vector by power iteration."""
    configs = {
        name: LoraConfig(r=4, lora_alpha=4 + 4 * index, target_modules=list(layers)) for index, name in enumerate(NAMES)
    }
    adapters = PeftAdapters(folder, configs)
    for name, parameter in adapters.model.named_parameters():
        if "lora_A" in name:
            parameter.data[0] *= 6
    return adapters


def greedy(model: Any, prompt: Sequence[int]) -> Greedy:
    ids, logits = list(prompt), []
    for _ in range(STEPS):
        with torch.inference_mode():
            logits.append(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1])
        ids.append(int(logits[-1].argmax()))
    return ids[len(prompt) :], torch.stack(logits)


@pytest.fixture(scope="module", params=NATIVE)
def native(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    name: str = request.param
    return Model(make_checkpoint(name, tmp_path_factory.mktemp(name)), NATIVE[name])


@pytest.mark.slow
@pytest.mark.parametrize("all_fit", [False, True])
def test_native_layers_give_what_arrow_gives(native: Model, pool: ComputePool, all_fit: bool) -> None:
    native.load(pool)
    assert native.trunk.facts.program.is_native
    native.assert_near(native.write(all_fit=all_fit))


@pytest.mark.slow
def test_other_sequences_change_no_bit_of_native_layers(native: Model, pool: ComputePool) -> None:
    native.load(pool)
    native.assert_same_alone(native.write())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_modules_give_what_arrow_gives(tmp_path: Path, name: str) -> None:
    model = Model(make_checkpoint(name, tmp_path), MODULES[name])
    model.load(None)
    model.assert_near(model.write())


@pytest.mark.slow
def test_other_sequences_change_no_bit_of_deterministic_steps(tmp_path: Path) -> None:
    model = Model(make_checkpoint("deepseek_v3", tmp_path), LATENT)
    model.load(None, is_deterministic=True)
    model.assert_same_alone(model.write(), (0, 2))


@pytest.mark.slow
def test_more_adapters_than_there_are_are_all_of_them(tmp_path: Path, pool: ComputePool) -> None:
    model = Model(make_checkpoint("qwen3_moe", tmp_path), ATTENTION, top_k=len(NAMES))
    model.top_k = 9
    model.load(pool)
    model.assert_near(model.write())


@pytest.mark.slow
@pytest.mark.parametrize("is_native", [False, True])
def test_latents_that_attention_expands_refuse_routing(tmp_path: Path, pool: ComputePool, *, is_native: bool) -> None:
    checkpoint = make_checkpoint("deepseek_v3", tmp_path)
    model = Model(checkpoint, [*LATENT, "kv_b_proj"])
    model.load(pool if is_native else None)
    with pytest.raises(AdapterError, match=r"'code' can't be chosen by token.*kv_b_proj"):
        model.write([0])


def test_prototypes_are_the_first_right_singular_vectors(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("qwen3_moe", tmp_path)
    adapter = peft_adapters(checkpoint, ATTENTION).adapter("law", lora_targets(load_trunk(checkpoint, torch.float32)))
    for name, found in prototypes_of(adapter).items():
        (matrix,) = adapter.linears[name]
        expected = torch.linalg.svd(matrix.up @ matrix.down).Vh[0]
        torch.testing.assert_close(found * torch.sign(found @ expected), expected, rtol=0, atol=1e-5)
