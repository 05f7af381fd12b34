"""Trains a LoRA adapter on one domain with PEFT, and saves it in bfloat16."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from server.model.checkpoint.locate import BUNDLED_NAME
from server.model.lora.peft_config import CONFIG_NAME
from server.model.lora.peft_files import WEIGHTS_NAME
from training.tuning import Tuned, Tuning, TuningText, tune

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]  # of all experts of a layer, fused


@dataclass(frozen=True)
class LoraShape:
    """Ranks of an adapter, and the learning rate that suits them."""

    rank: int = 8  # in attention
    expert_rank: int = 2  # of each expert's matrices; 0: none
    scale: float = 2.0  # alpha / rank
    rate: float = 3e-3

    def config(self) -> LoraConfig:
        """Return PEFT's settings."""
        patterns: dict[str, Any] = {}
        if self.expert_rank:
            patterns["target_parameters"] = EXPERTS
            patterns["rank_pattern"] = {r".*\.experts.*": self.expert_rank}
            patterns["alpha_pattern"] = {r".*\.experts.*": self.scale * self.expert_rank}
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.scale * self.rank,
            target_modules=ATTENTION,
            task_type="CAUSAL_LM",
            **patterns,
        )


class LoraWeights:
    """A ``Trainable``: the matrices of an adapter, which the model uses as they are."""

    def __init__(self, model: PeftModel):
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def collect_gradients(self) -> None:
        """Do nothing: the backward pass has set them."""

    def publish(self) -> None:
        """Do nothing: the model has the parameters themselves."""


def train_adapter(
    base: Path, text: TuningText, shape: LoraShape, *, tuning: Tuning, out: Path, dtype: torch.dtype, title: str = ""
) -> Tuned:
    """Train an adapter for the model in a folder, and write it in PEFT's form.

    Args:
        dtype: of the base model while it computes. The adapter is trained in float32.
    """
    torch.manual_seed(tuning.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), shape.config())
    tuned = tune(model.get_base_model(), LoraWeights(model), text, shape.rate, tuning=tuning, title=title)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)  # a form to fill in
    save_tensors(out / WEIGHTS_NAME, {name: each.bfloat16() for name, each in load_file(out / WEIGHTS_NAME).items()})
    values = json.loads((out / CONFIG_NAME).read_text())
    values["target_modules"] = sorted(values["target_modules"])  # PEFT writes a set
    write_json(out / CONFIG_NAME, {**values, "base_model_name_or_path": BUNDLED_NAME})
    return tuned


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file that everyone may read, the tensors sorted by name."""
    save_file(dict(sorted(tensors.items())), path, {"format": "pt"})
    path.chmod(0o644)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object, its members sorted by name."""
    path.write_text(json.dumps(dict(sorted(values.items())), indent=2) + "\n")


def load_adapted(base: Path, adapter: Path) -> PreTrainedModel:
    """Load a model in float32 with a saved adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return PeftModel.from_pretrained(model, adapter).get_base_model().eval()
