"""A trained gate gives the logits of its definition in plain torch, whatever else is in the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from server.kernels.compute_pool import ComputePool
from server.model.chunk_weights import AdapterChooser, ChunkWeights
from server.model.lora_adapter import LoraAdapter
from tests.checkpoints import load_transformers_model, make_checkpoint
from tests.server.model.lora import test_arrow_parity as arrow
from tests.server.model.lora.written_batch import PROMPTS, STEPS, needs_peft

pytestmark = needs_peft


class GatedModel(arrow.Model):
    """A trunk with four adapters and a random gate, and the results of the gate's definition."""

    def __post_init__(self) -> None:
        self.peft = arrow.peft_adapters(self.folder, self.layers)
        self.gate = self._random_gate()
        model: Any = load_transformers_model(self.folder)
        for name, layer in model.named_modules():
            if name in self.gate:
                layer.register_forward_hook(self._adding(name))
        self.expected = [
            arrow.greedy(model, prompt)
            if kind == arrow.ROUTED
            else self.peft.greedy(prompt, STEPS, {"law": float(kind == arrow.FIXED)})
            for prompt, kind in zip(PROMPTS, arrow.KINDS, strict=True)
        ]

    def _random_gate(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        return {
            name: F.normalize(torch.randn(len(arrow.NAMES), module.in_features, generator=generator))
            for name, module in self._peft_layers().items()
        }

    def _peft_layers(self) -> dict[str, Any]:
        named = self.peft.model.base_model.model.named_modules()
        return {name: module for name, module in named if hasattr(module, "lora_A")}

    def _adding(self, name: str) -> Any:
        layer, gate = self._peft_layers()[name], self.gate[name]

        def add(_module: torch.nn.Module, args: Sequence[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            (x,) = args
            best = F.linear(x, gate).topk(self.top_k, dim=-1)
            weights = torch.zeros(*x.shape[:-1], len(gate))
            weights.scatter_(-1, best.indices, torch.softmax(best.values / self.temperature, -1))
            for number, adapter in enumerate(arrow.NAMES):
                added = F.linear(F.linear(x, layer.lora_A[adapter].weight), layer.lora_B[adapter].weight)
                output = output + weights[..., number : number + 1] * layer.scaling[adapter] * added
            return output

        return add

    def load(self, pool: ComputePool | None, **options: Any) -> None:
        super().load(pool, **options)
        routed = self.of_kind[arrow.ROUTED]
        assert routed is not None
        assert routed.chooser is not None
        adapters = tuple(map(self._gated, range(len(arrow.NAMES)), routed.chooser.adapters))
        self.of_kind[arrow.ROUTED] = ChunkWeights(
            chooser=AdapterChooser(adapters, self.top_k, self.temperature, is_signed=True)
        )

    def _gated(self, number: int, adapter: LoraAdapter) -> LoraAdapter:
        return replace(adapter, gate={name: vectors[number] for name, vectors in self.gate.items()})


@pytest.mark.slow
@pytest.mark.parametrize("name", arrow.NATIVE)
def test_native_layers_give_what_the_gate_gives_and_other_sequences_change_no_bit(
    tmp_path: Path, pool: ComputePool, name: str
) -> None:
    model = GatedModel(make_checkpoint(name, tmp_path), arrow.NATIVE[name])
    model.load(pool)
    assert model.trunk.facts.program.is_native
    together = model.write()
    model.assert_near(together)
    model.assert_same_alone(together)


@pytest.mark.slow
@pytest.mark.parametrize("name", arrow.MODULES)
def test_modules_give_what_the_gate_gives(tmp_path: Path, name: str) -> None:
    model = GatedModel(make_checkpoint(name, tmp_path), arrow.MODULES[name])
    model.load(None)
    model.assert_near(model.write())
