"""A mixture of LoRA adapters whose gate is trained together with them, beside a frozen model.

At each linear layer an adapter's score for a token is ``x . v``, with a vector for each adapter. The best ``top_k`` are
added, by the softmax of their scores, as the server does it (``server.model.adapters.chosen_adapters``).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from server.model.adapters.prototypes import prototype
from server.model.checkpoint.locate import BUNDLED_NAME
from server.model.lora import gate_files, peft_config, peft_files
from server.model.lora.pairs import DOWN, UP
from server.model.lora.target_names import PEFT_PREFIX
from server.model.lora_adapter import LoraMatrix
from training.corpus import Tokens
from training.errors import DemoError
from training.lora_training import ATTENTION, save_tensors, write_json

SHARPNESS = 4.0  # of a new gate: the difference of scores that it aims at between a token's domain and the others
RIDGE = 1e-2  # of the mean square of a layer's inputs


@dataclass(frozen=True)
class GateShape:
    """Settings of a mixture."""

    top_k: int = 2
    rank: int = 4  # of adapters that begin from nothing
    scale: float = 2.0  # alpha / rank of these
    rate: float = 5e-4  # of adapters that are trained already


class GatedLinear(nn.Module):
    """A frozen linear layer with several adapters, which its gate mixes unless ``weights`` or ``prototypes`` is set."""

    def __init__(self, base: nn.Linear, num_adapters: int, shape: GateShape):
        super().__init__()
        inputs, outputs = base.in_features, base.out_features
        self.base, self.top_k, self.scale = base, shape.top_k, shape.scale
        self.down = nn.Parameter(torch.empty(num_adapters, shape.rank, inputs))
        self.up = nn.Parameter(torch.zeros(num_adapters, outputs, shape.rank))
        self.gate = nn.Parameter(torch.zeros(num_adapters, inputs))
        self.weights: torch.Tensor | None = None  # (adapters,) of all tokens, in the place of a router's
        self.prototypes: torch.Tensor | None = None  # (adapters, inputs), of Arrow, in the place of the gate
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def take(self, number: int, down: torch.Tensor, up: torch.Tensor, scale: float) -> None:
        """Take the matrices of one adapter."""
        self.down.data[number] = down.float()
        self.up.data[number] = up.float() * (scale / self.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = torch.einsum("...i,ari->...ar", x, self.down) * self.factors(x).unsqueeze(-1)  # (..., adapters, rank)
        added = torch.einsum("...ar,aor->...o", low, self.up)
        y: torch.Tensor = self.base(x) + self.scale * added
        return y

    def factors(self, x: torch.Tensor) -> torch.Tensor:
        """Return how much of each adapter is added to each token, ``(..., adapters)``."""
        if self.weights is not None:
            return self.weights
        scores = F.linear(x, self.gate) if self.prototypes is None else F.linear(x, self.prototypes).abs()
        best = scores.topk(self.top_k, dim=-1)
        return torch.zeros_like(scores).scatter(-1, best.indices, best.values.softmax(-1))


class Mixture:
    """A ``Trainable``: the gate and the adapters of a model, whose linear layers of attention it replaces.

    Args:
        names: of the adapters.
    """

    def __init__(self, model: PreTrainedModel, names: Sequence[str], shape: GateShape):
        model.requires_grad_(False)
        self.model, self.names, self.shape = model, tuple(names), shape
        self.layers: dict[str, GatedLinear] = {}
        for name, module in list(model.named_modules()):
            if name.rpartition(".")[2] in ATTENTION and isinstance(module, nn.Linear):
                self.layers[name] = GatedLinear(module, len(names), shape)
                model.set_submodule(name, self.layers[name])

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [each for layer in self.layers.values() for each in (layer.down, layer.up, layer.gate)]

    def collect_gradients(self) -> None:
        """Do nothing: the backward pass has set them."""

    def publish(self) -> None:
        """Do nothing: the model has the parameters themselves."""

    @contextmanager
    def fixed(self, weights: Mapping[str, float]) -> Iterator[None]:
        """Give all tokens the same weights of adapters; those that are not named get 0."""
        values = torch.tensor([weights.get(name, 0.0) for name in self.names])
        for layer in self.layers.values():
            layer.weights = values
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.weights = None

    @contextmanager
    def arrow(self) -> Iterator[None]:
        """Let Arrow choose adapters, by their prototypes as they are now."""
        for layer in self.layers.values():
            pairs = zip(layer.down.detach(), layer.up.detach(), strict=True)
            layer.prototypes = torch.stack([prototype([LoraMatrix(down, up, layer.scale)]) for down, up in pairs])
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.prototypes = None

    @torch.no_grad()
    def begin_gate(self, rows: Mapping[str, Tokens]) -> None:
        """Let the gate begin as the linear least-squares guess of each token's domain from the inputs of a layer.

        Args:
            rows: of training text, ``(rows, length + 1)``, of each adapter's domain.
        """
        squares = {name: torch.zeros(layer.gate.shape[1], layer.gate.shape[1]) for name, layer in self.layers.items()}
        sums = {name: torch.zeros_like(layer.gate) for name, layer in self.layers.items()}
        for number, domain in enumerate(self.names):
            handles = [
                layer.register_forward_pre_hook(_summing(squares[name], sums[name], number))
                for name, layer in self.layers.items()
            ]
            with self.fixed({}):
                self.model.model(input_ids=torch.from_numpy(rows[domain][:, :-1].astype("int64")), use_cache=False)
            for handle in handles:
                handle.remove()
        for name, layer in self.layers.items():
            square = squares[name]
            ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square))
            layer.gate.data = SHARPNESS * torch.linalg.solve(square + ridge, sums[name].T).T.contiguous()

    def save(self, folder: Path, fingerprint: str) -> None:
        """Write the gate, and each adapter in PEFT's format in bfloat16, into an empty folder.

        Args:
            fingerprint: of the base model.
        """
        shutil.rmtree(folder, ignore_errors=True)
        for number, name in enumerate(self.names):
            place, rank = folder / name, next(iter(self.layers.values())).down.shape[1]
            config = LoraConfig(
                r=rank,
                lora_alpha=self.shape.scale * rank,
                target_modules=sorted({each.rpartition(".")[2] for each in self.layers}),
                task_type="CAUSAL_LM",
                base_model_name_or_path=BUNDLED_NAME,
                inference_mode=True,
            )
            place.mkdir(parents=True)
            values = {key: sorted(each) if isinstance(each, set) else each for key, each in config.to_dict().items()}
            write_json(place / peft_config.CONFIG_NAME, values)
            tensors = {}
            for each, layer in self.layers.items():
                tensors[f"{PEFT_PREFIX}{each}{DOWN}"] = layer.down.detach()[number].bfloat16().contiguous()
                tensors[f"{PEFT_PREFIX}{each}{UP}"] = layer.up.detach()[number].bfloat16().contiguous()
            save_tensors(place / peft_files.WEIGHTS_NAME, tensors)
        gate = {name: layer.gate.detach() for name, layer in self.layers.items()}
        save_tensors(folder / gate_files.WEIGHTS_NAME, gate)
        settings = {"adapters": [*self.names], "top_k": self.shape.top_k, gate_files.BASE_FIELD: fingerprint}
        write_json(folder / gate_files.CONFIG_NAME, settings)

    def read(self, folder: Path) -> None:
        """Take the gate and the adapters as ``save`` has written them, rounded to bfloat16."""
        gate = load_file(folder / gate_files.WEIGHTS_NAME)
        for name, layer in self.layers.items():
            layer.gate.data = gate[name]
        for number, name in enumerate(self.names):
            self.take(number, folder / name)

    def take(self, number: int, folder: Path) -> None:
        """Take an adapter's additions to attention from a folder in PEFT's format; others are left out.

        Raises:
            DemoError: it lacks some, or they have another rank than this mixture.
        """
        config = peft_config.read_peft_config(folder / peft_config.CONFIG_NAME)
        tensors = load_file(folder / peft_files.WEIGHTS_NAME)
        for name, layer in self.layers.items():
            down, up = (tensors.get(f"{PEFT_PREFIX}{name}{end}") for end in (DOWN, UP))
            if down is None or up is None or down.shape != layer.down.shape[1:]:
                raise DemoError(
                    f"{folder} has no addition of rank {layer.down.shape[1]} to {name}; give adapters on "
                    f"{', '.join(ATTENTION)}, all of one rank, or none"
                )
            layer.take(number, down, up, config.scale_of(name, len(down)))


def rank_of(folder: Path) -> int:
    """Return the rank of an adapter in PEFT's format on attention."""
    return peft_config.read_peft_config(folder / peft_config.CONFIG_NAME).rank_of(ATTENTION[0])


def _summing(square: torch.Tensor, sums: torch.Tensor, number: int) -> Callable[[nn.Module, Any], None]:
    """Return a hook that adds up the products of a layer's inputs, and the inputs of one domain."""

    def add(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0].flatten(0, -2)
        square.add_(x.T @ x)
        sums[number].add_(x.sum(0))

    return add
