"""Sequences with adapters have the logits and tokens of PEFT, whatever else is in their steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from server.kernels.compute_pool import ComputePool
from server.model.chunk_weights import ChunkWeights, WeightedAdapter
from server.model.trunk.adapter_targets import lora_targets
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint
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

MIXES: list[dict[str, float]] = [
    {"law": 1.0},
    {},
    {"code": 1.0},
    {"law": 0.75, "code": -0.5},
    {"law": 1.0},
]  # of each prompt
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
ROUTER = "mlp.gate.weight"

pytestmark = needs_peft


@dataclass(frozen=True)
class Case:
    """The layers of an architecture that adapters ``law`` and ``code`` change, and its parameters that both change."""

    law: Sequence[str]
    code: Sequence[str]
    parameters: Sequence[str] = ()
    times: int = 1  # by which prompts are longer

    def configs(self) -> dict[str, LoraConfig]:
        ranks = {self.law[0]: 7} if self.law else {}
        common: dict[str, Any] = {"target_parameters": list(self.parameters), "lora_dropout": 0.0}
        return {
            "code": LoraConfig(r=20, lora_alpha=10, target_modules=list(self.code), use_rslora=True, **common),
            "law": LoraConfig(r=3, lora_alpha=6, target_modules=list(self.law), rank_pattern=ranks, **common),
        }


LATENT = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
INDEXER = ["wq_b", "wk", "weights_proj"]
COMPRESSED = [
    "q_a_proj",
    "q_b_proj",
    "kv_proj",
    "gate_proj",
    "weights_proj",
    "o_b_proj",
]  # of compressors and indexes too
NATIVE = {
    "qwen3_moe": Case(ATTENTION, ["q_proj", "lm_head"], [*EXPERTS, ROUTER]),
    "mixtral": Case(["v_proj", "k_proj"], ATTENTION, EXPERTS),
    "gpt_oss": Case(ATTENTION, ["o_proj"], EXPERTS),
    "deepseek_v3": Case(LATENT, [*LATENT, "lm_head"], [*EXPERTS, ROUTER]),
    "deepseek_v32": Case([*LATENT, *INDEXER], ["wk", "q_a_proj"], EXPERTS),
    "deepseek_v4": Case(COMPRESSED, ["kv_proj", "lm_head"], [*EXPERTS, ROUTER]),
    "inkling_text": Case([*ATTENTION, "r_proj", *DENSE], ["r_proj", "lm_head"], [*EXPERTS, ROUTER]),
    "minimax_m3_vl_text": Case(
        [*ATTENTION, "gate_up_proj"], ["indexer.q_proj", "lm_head"], [*EXPERTS, ROUTER], times=5
    ),
    "qwen4_exp_text": Case(
        ["in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj", *GATES, "value_proj"],
        [*ATTENTION, "lm_head", "index_qk_proj", *GATES, "key_proj"],
        [*EXPERTS, ROUTER],
    ),
    "axk2": Case(["q_gate_proj", *INDEXER, "fc1", "fc2"], ["wq_b", "fc2", "lm_head"], EXPERTS),
    "lfm2_moe": Case(["in_proj"], ["in_proj", "out_proj", "q_proj"], EXPERTS),
    "qwen2_moe": Case([*DENSE, "shared_expert_gate"], [*ATTENTION, *DENSE], EXPERTS),
    "qwen3_next": Case(
        ["in_proj_qkvz", "in_proj_ba", "out_proj", *ATTENTION], ["q_proj", "lm_head"], [*EXPERTS, ROUTER]
    ),
}
MODULES = {
    "deepseek_v3": Case(LATENT, [*LATENT, "lm_head"], [*EXPERTS, ROUTER]),
    "llama4_text": Case([*ATTENTION, *DENSE], ["up_proj"], EXPERTS),
    "qwen3_vl_moe": Case(["q_proj", "o_proj"], ["lm_head"], EXPERTS),
    "dots3_note_text": Case([*LATENT, *DENSE], ["q_a_proj"], EXPERTS),
}


@dataclass
class Model(WritingModel):
    """A trunk with the adapters of a case, and PEFT's results."""

    folder: Path
    case: Case

    def __post_init__(self) -> None:
        self.prompts = [prompt * self.case.times for prompt in PROMPTS]
        self._peft = PeftAdapters(self.folder, self.case.configs())
        self.expected = [
            self._peft.greedy(prompt, STEPS, mix) if mix else self._base(prompt)
            for prompt, mix in zip(self.prompts, MIXES, strict=True)
        ]

    def _base(self, prompt: list[int]) -> Greedy:
        return self._peft.greedy(prompt, STEPS, {"law": 0.0})

    def load(self, pool: ComputePool | None, **options: Any) -> None:
        self.trunk = load_trunk(self.folder, torch.float32, pool=pool, **options)
        targets = lora_targets(self.trunk)
        self._adapters = {name: self._peft.adapter(name, targets) for name in ("law", "code")}

    def weights(self, index: int) -> ChunkWeights:
        mix = MIXES[index]
        return ChunkWeights(None, tuple(WeightedAdapter(self._adapters[name], mix[name]) for name in mix))


@pytest.fixture(scope="module", params=NATIVE)
def native(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    name: str = request.param
    return Model(make_checkpoint(name, tmp_path_factory.mktemp(name)), NATIVE[name])


@pytest.fixture(scope="module", params=MODULES)
def modular(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    name: str = request.param
    return Model(make_checkpoint(name, tmp_path_factory.mktemp(name)), MODULES[name])


@pytest.mark.slow
@pytest.mark.parametrize("all_fit", [False, True])
def test_native_layers_give_what_peft_gives(native: Model, pool: ComputePool, all_fit: bool) -> None:
    native.load(pool)
    assert native.trunk.facts.program.is_native
    native.assert_near(native.write(all_fit=all_fit))


@pytest.mark.slow
def test_other_adapters_change_no_bit_of_native_layers(native: Model, pool: ComputePool) -> None:
    native.load(pool)
    native.assert_same_alone(native.write())


@pytest.mark.slow
def test_modules_give_what_peft_gives(modular: Model) -> None:
    modular.load(None)
    modular.assert_near(modular.write())


@pytest.mark.slow
def test_modules_with_native_experts_give_what_peft_gives(modular: Model, pool: ComputePool) -> None:
    modular.load(pool)
    modular.assert_near(modular.write())


@pytest.mark.slow
def test_other_adapters_change_no_bit_of_deterministic_steps(tmp_path: Path) -> None:
    model = Model(make_checkpoint("deepseek_v3", tmp_path), MODULES["deepseek_v3"])
    model.load(None, is_deterministic=True)
    model.assert_same_alone(model.write(), (0, 3))


@pytest.mark.slow
def test_a_step_with_adapters_leaves_no_hook(tmp_path: Path) -> None:
    model = Model(make_checkpoint("deepseek_v3", tmp_path), MODULES["deepseek_v3"])
    model.load(None)
    model.write()
    linears = [module for module in model.trunk.model.modules() if isinstance(module, torch.nn.Linear)]
    assert not any(module._forward_hooks for module in linears)
