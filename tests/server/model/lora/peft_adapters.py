"""Random adapters made by PEFT, PEFT's own logits with them, and the same adapters as a trunk takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper

from server.model.lora.targets import LoraTargets
from server.model.lora_adapter import ExpertTarget, LoraAdapter, LoraMatrix
from tests.checkpoints import load_transformers_model


class PeftAdapters:
    """A checkpoint's model with random adapters.

    Args:
        configs: PEFT's configuration of each adapter, by name.
    """

    def __init__(self, checkpoint: Path, configs: Mapping[str, LoraConfig]):
        (first, config), *others = configs.items()
        self.model: Any = get_peft_model(load_transformers_model(checkpoint), config, first)
        for name, other in others:
            self.model.add_adapter(name, other)
        torch.manual_seed(1)
        for name, parameter in self.model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.5 * parameter.shape[-1] ** -0.5)
        self.model.eval()

    def greedy(self, prompt: Sequence[int], steps: int, weights: Mapping[str, float]) -> tuple[list[int], torch.Tensor]:
        """Return greedy tokens after a prompt, and the logits that chose them, by PEFT.

        Args:
            weights: factor of each adapter that is active.
        """
        layers = [module for module in self.model.modules() if isinstance(module, LoraLayer)]
        scales = [dict(layer.scaling) for layer in layers]
        self.model.base_model.set_adapter(list(weights))
        for layer in layers:
            layer.scaling.update({name: scale * weights.get(name, 1.0) for name, scale in layer.scaling.items()})
        ids, logits = list(prompt), []
        for _ in range(steps):
            with torch.inference_mode():
                logits.append(self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1])
            ids.append(int(logits[-1].argmax()))
        for layer, scale in zip(layers, scales, strict=True):
            layer.scaling.update(scale)
        return ids[len(prompt) :], torch.stack(logits)

    def save(self, folder: Path) -> list[Path]:
        """Save all adapters in PEFT's format; return their folders, sorted by name."""
        self.model.save_pretrained(folder, save_embedding_layers=False)
        return [folder / name for name in sorted(self.model.peft_config)]

    def adapter(self, name: str, targets: LoraTargets) -> LoraAdapter:
        """Return an adapter as a trunk takes it.

        PEFT takes the second dimension of a parameter for its outputs unless the module says ``is_transposed``.
        """
        linears: dict[str, tuple[LoraMatrix, ...]] = {}
        experts: dict[ExpertTarget, tuple[LoraMatrix, ...]] = {}
        for path, module in self.model.base_model.model.named_modules():
            if not isinstance(module, LoraLayer) or name not in module.lora_A:
                continue
            down, up = module.lora_A[name].weight.detach(), module.lora_B[name].weight.detach()
            scale, target = module.scaling[name], path.replace(".base_layer", "")
            if not isinstance(module, ParamWrapper) or module.num_experts == 1:
                linears[target] = (LoraMatrix(down, up, scale),)
                continue
            count = module.num_experts
            downs, ups = down.unflatten(0, (count, -1)), up.unflatten(1, (-1, count)).permute(2, 0, 1)
            layer, parameter = targets.expert_modules[target], module.parameter_name
            if (downs.shape[2], ups.shape[1]) != targets.experts[layer, parameter]:
                downs, ups = ups.mT, downs.mT
            for expert in range(count):
                key = ExpertTarget(layer, expert, parameter)
                experts[key] = (LoraMatrix(downs[expert], ups[expert], scale),)
        return LoraAdapter(name, linears, experts)
