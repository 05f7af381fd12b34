"""Trains the experts that one domain uses most, and saves them as an expert variant (ESFT, arXiv 2407.01906)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from expert_store import find_shards
from server.model.opening.variant_files import BASE_FIELD
from server.model.trunk.fingerprint import fingerprint
from server.model.trunk_loader import load_trunk
from training.corpus import Tokens
from training.measure import ExpertCounter
from training.tuning import Tuned, Tuning, TuningText, mean_loss, tune

WEIGHTS_NAME = "model.safetensors"


@dataclass(frozen=True)
class LayerExperts:
    """Experts of a layer that are trained, and the share of the router's choices that they get together."""

    experts: list[int]
    share: float


Chosen = dict[int, LayerExperts]  # by layer


@dataclass(frozen=True)
class VariantShape:
    """Settings that say which experts are trained, and the learning rate."""

    share: float = 0.25  # of the domain's token choices in a layer: experts are taken until they have it together
    layers: int = 2  # the last ones, whose routers tell domains apart best
    rows: int = 32  # of training text that are routed to choose the experts
    rate: float = 2e-4


class ExpertWeights:
    """A ``Trainable``: the chosen experts. Everything else, the routers included, stays as it is."""

    def __init__(self, model: PreTrainedModel, chosen: Chosen):
        self.parameters: list[torch.nn.Parameter] = []
        self._places: list[tuple[torch.nn.Parameter, list[int]]] = []
        model.requires_grad_(requires_grad=False)
        for layer, some in chosen.items():
            module = model.model.layers[layer].mlp.experts
            for fused in (module.gate_up_proj, module.down_proj):
                fused.requires_grad_()
                self._places.append((fused, some.experts))
                self.parameters.append(torch.nn.Parameter(fused.detach()[some.experts].float()))

    def collect_gradients(self) -> None:
        for parameter, (fused, experts) in zip(self.parameters, self._places, strict=True):
            assert fused.grad is not None
            parameter.grad = fused.grad[experts].float()
            fused.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        for parameter, (fused, experts) in zip(self.parameters, self._places, strict=True):
            fused[experts] = parameter.to(fused.dtype)


def choose_experts(model: PreTrainedModel, rows: Tokens, shape: VariantShape) -> Chosen:
    """Return the experts of the last layers that get most of a text's tokens.

    This is ESFT's selection by token ratio: in each layer the smallest set of experts whose shares add up to
    ``shape.share``.
    """
    with ExpertCounter(model) as counts:
        mean_loss(model, rows[: shape.rows])
    chosen: Chosen = {}
    for layer in range(max(0, len(counts) - shape.layers), len(counts)):
        ratio = counts[layer] / counts[layer].sum()
        order = np.argsort(-ratio, kind="stable")
        num = int(np.searchsorted(np.cumsum(ratio[order]), shape.share)) + 1
        experts = sorted(int(expert) for expert in order[:num])
        chosen[layer] = LayerExperts(experts, round(float(ratio[experts].sum()), 4))
    return chosen


def train_variant(
    base: Path, text: TuningText, shape: VariantShape, *, tuning: Tuning, out: Path, dtype: torch.dtype, title: str = ""
) -> tuple[Tuned, Chosen]:
    """Choose and train experts of the model in a folder, and write them as a variant in bfloat16.

    Args:
        dtype: of the model while it computes. The experts are trained in float32.
    """
    torch.manual_seed(tuning.seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    chosen = choose_experts(model, text.train, shape)
    weights = ExpertWeights(model, chosen)
    tuned = tune(model, weights, text, shape.rate, tuning=tuning, title=title)
    tensors: dict[str, torch.Tensor] = {}
    for layer, some in chosen.items():
        module = model.model.layers[layer].mlp.experts
        for expert in some.experts:
            gate, up = module.gate_up_proj[expert].detach().chunk(2)
            for name, tensor in (("gate", gate), ("up", up), ("down", module.down_proj[expert].detach())):
                key = f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight"
                tensors[key] = tensor.bfloat16().contiguous()
    out.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", BASE_FIELD: fingerprint(load_trunk(base, torch.bfloat16))}
    save_file(tensors, out / WEIGHTS_NAME, metadata)
    (out / WEIGHTS_NAME).chmod(0o644)
    return tuned, chosen


@torch.no_grad()
def load_variant(base: Path, variant: Path) -> PreTrainedModel:
    """Load a model in float32 with the experts of a variant in place of its own."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    read: Mapping[str, torch.Tensor] = {
        name: tensor for shard in find_shards(variant) for name, tensor in load_file(shard.name).items()
    }
    for name, tensor in read.items():
        _, _, layer, _, _, expert, projection, _ = name.split(".")
        module = model.model.layers[int(layer)].mlp.experts
        if projection == "down_proj":
            module.down_proj[int(expert)] = tensor.float()
        else:
            gate, up = module.gate_up_proj[int(expert)].chunk(2)
            (gate if projection == "gate_proj" else up).copy_(tensor.float())
    return model
