"""Records the inputs and outputs of a model's own layers for some tokens, with experts that add nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from server.kernels.expert import ExpertsModule
from server.model.architecture import text_body
from server.model.attention.mask_probe import probe_masks
from server.model.blocks.errors import UnsupportedLayerError
from server.model.forward import Forward
from server.model.hooks import AttentionOptions, use_hooks
from server.model.recurrent.recurrent_modules import ModuleCall
from server.model.recurrent.states import RecurrentCache
from server.model.transformers_hooks.probe import Probe


@dataclass(frozen=True)
class Routing:
    """The arguments of a layer's experts."""

    hidden_states: torch.Tensor  # (tokens, hidden)
    top_k_index: torch.Tensor  # (tokens, k)
    top_k_weights: torch.Tensor


@dataclass(frozen=True)
class LayerCapture:
    """The input and output of one decoder layer."""

    given: torch.Tensor  # float32 (tokens, hidden)
    output: torch.Tensor
    positions: Any  # cosines and sines, if the layer takes them as an argument
    options: AttentionOptions | None  # None if it has no attention
    queries: torch.Tensor  # float32 (heads, tokens, dim), as attention gets them; empty if there is none
    keys: torch.Tensor  # float32 (kv_heads, tokens, dim)
    routing: Routing | None
    mixer: ModuleCall | None = None  # the call of its mixer, if that was to be recorded
    is_latent: bool = False  # its keys and values are made from one latent a token (MLA)


@dataclass(frozen=True)
class Capture:
    """A pass over some tokens."""

    layers: Sequence[LayerCapture]
    logits: torch.Tensor  # float32 (tokens, vocabulary)


class _Probe(Probe):
    def __init__(self) -> None:
        super().__init__()
        self.begin_layer()

    def begin_layer(self) -> None:
        self.options: AttentionOptions | None = None
        self.queries = self.keys = torch.empty(0)
        self.routing: Routing | None = None
        self.mixer: ModuleCall | None = None
        self.is_latent = False

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        self.options, self.queries, self.keys = options, query.float(), key.float()
        output = super().attend(layer, query, key, value, options)
        self.is_latent = layer in self.latent_layers
        return output

    def run_experts(
        self, module: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        self.routing = Routing(hidden_states, top_k_index, top_k_weights)
        return super().run_experts(module, hidden_states, top_k_index, top_k_weights)


def capture(
    model: PreTrainedModel,
    forward: Forward,
    tokens: Sequence[int],
    mixers: Collection[nn.Module] = (),
    first: int = 0,
    *,
    keeps_states: bool = False,
) -> Capture:
    """Run the modules, and record the input and output of each layer.

    Args:
        model: with its weights.
        forward: calls the model.
        tokens: of one sequence.
        mixers: modules whose calls are recorded, too, one of a layer.
        first: position of the first token.
        keeps_states: whether some of them read and write recurrent states.

    Raises:
        UnsupportedLayerError: the layers are not called one after the other with the hidden states of all tokens.
    """
    probe, found = _Probe(), []

    def before(_layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        found.append((hidden[0].float().clone(), kwargs.get("position_embeddings")))
        probe.begin_layer()

    def after(_layer: Any, _args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        given, positions = found.pop()
        call = probe.options, probe.queries, probe.keys, probe.routing, probe.mixer, probe.is_latent
        layers.append(LayerCapture(given, hidden[0].float(), positions, *call))

    def after_mixer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        probe.mixer = ModuleCall(module, args, kwargs, output)

    layers: list[LayerCapture] = []
    hooks = []
    for layer in text_body(model).layers:
        hooks += [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(after)]
    hooks += [module.register_forward_hook(after_mixer, with_kwargs=True) for module in mixers]
    cache = RecurrentCache() if keeps_states else None
    try:
        with torch.inference_mode(), use_hooks(probe), probe_masks(model):
            logits = forward(tokens, range(first, first + len(tokens)), range(len(tokens)), cache)
    except (KeyError, IndexError, TypeError) as error:
        raise UnsupportedLayerError(f"its layers are called in another way ({error})") from error
    finally:
        for hook in hooks:
            hook.remove()
    return Capture(layers, logits)
