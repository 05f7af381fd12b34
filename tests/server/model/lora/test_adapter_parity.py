"""Sequences with adapters have the logits and tokens of PEFT, whatever else is in their steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from expert_store import ExpertStore, least_bytes
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.checkpoint.trunk_loader import load_trunk
from server.model.chunk_weights import ChunkWeights, WeightedAdapter
from server.model.lora.targets import lora_targets
from tests.checkpoints import make_checkpoint
from tests.expert_store.waiting import TIMEOUT, wait_until_idle
from tests.server.model.lora.peft_adapters import PeftAdapters
from tests.server.model.test_parity import generate

BLOCK = 16
STEPS = 4
TOLERANCE = 1e-5  # of the range of the logits
PROMPTS = [[5, 17, 99, 3, 42, 8, 64], [7], [23, 11, 90, 90, 12, 13, 14, 15, 16, 1, 77], [4, 90, 31], [61, 2, 8]]
MIXES: list[dict[str, float]] = [
    {"law": 1.0},
    {},
    {"code": 1.0},
    {"law": 0.75, "code": -0.5},
    {"law": 1.0},
]  # of each prompt
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
ROUTER = "mlp.gate.weight"

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")]


@dataclass(frozen=True)
class Case:
    """The layers of an architecture that adapters ``law`` and ``code`` change, and its parameters that both change."""

    law: Sequence[str]
    code: Sequence[str]
    parameters: Sequence[str] = ()

    def configs(self) -> dict[str, LoraConfig]:
        ranks = {self.law[0]: 7} if self.law else {}
        common: dict[str, Any] = {"target_parameters": list(self.parameters), "lora_dropout": 0.0}
        return {
            "code": LoraConfig(r=20, lora_alpha=10, target_modules=list(self.code), use_rslora=True, **common),
            "law": LoraConfig(r=3, lora_alpha=6, target_modules=list(self.law), rank_pattern=ranks, **common),
        }


LATENT = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
DENSE = ["gate_proj", "up_proj", "down_proj"]
NATIVE = {
    "qwen3_moe": Case(ATTENTION, ["q_proj", "lm_head"], [*EXPERTS, ROUTER]),
    "mixtral": Case(["v_proj", "k_proj"], ATTENTION, EXPERTS),
    "gpt_oss": Case(ATTENTION, ["o_proj"], EXPERTS),
    "qwen2_moe": Case([*DENSE, "shared_expert_gate"], [*ATTENTION, *DENSE], EXPERTS),
}
MODULES = {
    "deepseek_v3": Case(LATENT, [*LATENT, "lm_head"], [*EXPERTS, ROUTER]),
    "llama4_text": Case([*ATTENTION, *DENSE], ["up_proj"], EXPERTS),
    "qwen3_next": Case(
        ["in_proj_qkvz", "in_proj_ba", "out_proj", *ATTENTION], ["q_proj", "lm_head"], [*EXPERTS, ROUTER]
    ),
    "qwen3_vl_moe": Case(["q_proj", "o_proj"], ["lm_head"], EXPERTS),
    "dots3_note_text": Case([*LATENT, *DENSE], ["q_a_proj"], EXPERTS),
}

Greedy = tuple[list[int], torch.Tensor]


@pytest.fixture
def pool() -> Iterator[ComputePool]:
    if not availability().runnable:
        pytest.skip("the native kernels were not built")
    kernels = Kernels(2)
    yield ComputePool(2, kernels)
    kernels.close()


@dataclass
class Model:
    """A trunk with the adapters of a case, and PEFT's results."""

    folder: Path
    case: Case

    def __post_init__(self) -> None:
        self._peft = PeftAdapters(self.folder, self.case.configs())
        self.expected = [
            self._peft.greedy(prompt, STEPS, mix) if mix else self._base(prompt)
            for prompt, mix in zip(PROMPTS, MIXES, strict=True)
        ]

    def _base(self, prompt: list[int]) -> Greedy:
        return self._peft.greedy(prompt, STEPS, {"law": 0.0})

    def load(self, pool: ComputePool | None, **options: Any) -> None:
        self.trunk = load_trunk(self.folder, torch.float32, pool=pool, **options)
        targets = lora_targets(self.trunk)
        self._adapters = {name: self._peft.adapter(name, targets) for name in ("law", "code")}

    def write(self, wanted: Sequence[int] = range(len(PROMPTS)), *, all_fit: bool = False) -> list[Greedy]:
        """Write after some of the prompts, in one batch."""
        catalog = self.trunk.catalog
        store = ExpertStore(catalog, catalog.total_bytes if all_fit else least_bytes(catalog, self.trunk.facts.top_k))
        try:
            if all_fit:
                store.preload(store.absent(), TIMEOUT)
                wait_until_idle(store)
            weights = [self._weights(MIXES[index]) for index in wanted]
            prompts = [PROMPTS[index] for index in wanted]
            trunk: Any = self.trunk
            return generate(trunk, store, 5, STEPS, block_size=BLOCK, prompts=prompts, weights=weights)
        finally:
            store.close()

    def _weights(self, mix: Mapping[str, float]) -> ChunkWeights:
        return ChunkWeights(None, tuple(WeightedAdapter(self._adapters[name], mix[name]) for name in mix))


def assert_near(found: Sequence[Greedy], expected: Sequence[Greedy]) -> None:
    for (tokens, logits), (expected_tokens, wanted) in zip(found, expected, strict=True):
        assert float((logits - wanted).abs().max()) <= TOLERANCE * float(wanted.max() - wanted.min())
        assert tokens == expected_tokens


@pytest.fixture(scope="module", params=NATIVE)
def native(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    name: str = request.param
    return Model(make_checkpoint(name, tmp_path_factory.mktemp(name)), NATIVE[name])


@pytest.fixture(scope="module", params=MODULES)
def modular(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    name: str = request.param
    return Model(make_checkpoint(name, tmp_path_factory.mktemp(name)), MODULES[name])


@pytest.mark.parametrize("all_fit", [False, True])
def test_native_layers_give_what_peft_gives(native: Model, pool: ComputePool, all_fit: bool) -> None:
    native.load(pool)
    assert native.trunk.facts.is_native
    assert_near(native.write(all_fit=all_fit), native.expected)


def test_other_adapters_change_no_bit_of_native_layers(native: Model, pool: ComputePool) -> None:
    native.load(pool)
    together = native.write()
    for index, (tokens, logits) in enumerate(together):
        ((alone_tokens, alone),) = native.write([index])
        assert tokens == alone_tokens
        assert torch.equal(logits, alone)


def test_modules_give_what_peft_gives(modular: Model) -> None:
    modular.load(None)
    assert_near(modular.write(), modular.expected)


def test_modules_with_native_experts_give_what_peft_gives(modular: Model, pool: ComputePool) -> None:
    modular.load(pool)
    assert_near(modular.write(), modular.expected)


def test_other_adapters_change_no_bit_of_deterministic_steps(tmp_path: Path) -> None:
    model = Model(make_checkpoint("deepseek_v3", tmp_path), MODULES["deepseek_v3"])
    model.load(None, is_deterministic=True)
    together = model.write()
    for index in (0, 3):
        ((alone_tokens, alone),) = model.write([index])
        tokens, logits = together[index]
        assert tokens == alone_tokens
        assert torch.equal(logits, alone)


def test_a_step_with_adapters_leaves_no_hook(tmp_path: Path) -> None:
    model = Model(make_checkpoint("deepseek_v3", tmp_path), MODULES["deepseek_v3"])
    model.load(None)
    model.write()
    linears = [module for module in model.trunk.model.modules() if isinstance(module, torch.nn.Linear)]
    assert not any(module._forward_hooks for module in linears)
