"""Builds the twin of a model: its first layers with random weights in float32, made from its config alone.

What a model computes is found on its twin, so no number of a checkpoint's weights decides what runs where.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from server.kernels.compute_pool import ComputePool
from server.kernels.expert import ExpertsModule
from server.model.architecture import decoder_layers, text_body
from server.model.attention.key_choice import hook_indexers
from server.model.attention.mla import replace_projections
from server.model.attention.rope import apply_max_length
from server.model.blocks.errors import UnsupportedLayerError
from server.model.checkpoint.config_catalog import catalog_from_config
from server.model.experts.expert_layer import ExpertLayer, expert_layers
from server.model.first_pass import FirstPass
from server.model.forward import Forward
from server.model.model_building import build_model, empty_experts, load_trunk_weights
from server.model.native_layers.depth_scales import INDICES
from server.model.native_layers.scales import NamedFactors
from server.model.transformers_hooks.batching_checks import find_special_layers

DTYPE = torch.float32
HIDDEN_SIZE, WIDTH = 72, 40  # of narrow twins; the root of the first is no number of a config
OF_HEADS = ("head_dim", "scaling")  # attributes of modules
HEADS, FEW_HEADS = ("num_attention_heads", "num_key_value_heads"), 8  # keys of latent attention, and their value
MOST_TOKENS = 256  # of the vocabulary, whose size changes no layer
SPARE_NUMBERS = 1 << 16  # by which parameters that share random numbers begin in different places
PLACES = {"layer_idx", *INDICES}  # attributes of modules that tell the place of their layer
SHARED, KEPT = "num_kv_shared_layers", "store_full_length_kv"  # such an attribute, where no layer takes others' keys


@dataclass(frozen=True)
class Twin:
    """A model with the first layers of another one, as many as show one of each kind."""

    model: PreTrainedModel
    forward: Forward
    experts: Mapping[ExpertsModule, ExpertLayer]
    first: FirstPass
    layer_of: Sequence[int]  # for each layer of the other model, the twin's layer of the same kind
    hidden_size: int  # of the other model
    factors: NamedFactors  # that the other model's config names

    @property
    def recurrent(self) -> Sequence[nn.Module]:
        """The modules that keep states."""
        return self.first.recurrent

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens to run it on."""
        return self.first.tokens


@torch.inference_mode()
def build_twin(model: PreTrainedModel, longest: int, *, is_narrow: bool) -> Twin:
    """Return the twin of a model.

    Args:
        model: with or without weights.
        longest: tokens of the longest sequence.
        is_narrow: whether it has small widths, where its config allows.

    Raises:
        UnsupportedLayerError: narrow layers compute something else than wide ones.
        NotBatchableError: the model can't run many sequences in one step.
        ModelError: no twin can be built.
    """
    config = deepcopy(model.config)
    config.quantization_config = None
    text = config.get_text_config()
    hidden_size = int(text.hidden_size)
    factors = NamedFactors.of(text, _narrow(text) if is_narrow else ())
    text.vocab_size = min(MOST_TOKENS, text.vocab_size)
    if getattr(text, "pad_token_id", None) is not None:
        text.pad_token_id = min(text.pad_token_id, text.vocab_size - 1)
    twin = build_model(config, DTYPE, model_class=type(model))
    layer_of = _keep_one_of_each_kind(twin)
    _check_heads(twin, model)
    catalog = catalog_from_config(twin)
    experts = expert_layers(empty_experts(twin), catalog, ComputePool(1))
    load_trunk_weights(twin, _random_weights(twin), DTYPE, type(model).__name__)
    _initialise_constants(twin)
    twin.eval()
    apply_max_length(twin, text, longest)
    is_by_sequence = find_special_layers(twin) is not None
    if not is_by_sequence:
        replace_projections(twin)
        hook_indexers(twin)
    forward = Forward(twin)
    first = FirstPass(twin, forward, min(longest, text.vocab_size), is_by_sequence=is_by_sequence)
    return Twin(twin, forward, experts, first, layer_of, hidden_size, factors)


def _narrow(config: Any) -> set[str]:
    """Make the widths of a config small that no number depends on but the shapes of weights.

    Numbers of a head stay, as attention is scaled by them.

    Returns:
        The keys that have other values now.
    """
    known = vars(config)  # some configs refuse to read what differs by layer
    widths = {key: WIDTH for key in known if key.endswith("intermediate_size")} | {"hidden_size": HIDDEN_SIZE}
    heads = [known.get(key) for key in HEADS]
    if known.get("kv_lora_rank"):
        widths |= dict.fromkeys(HEADS, FEW_HEADS) if heads[0] == heads[1] else {}
    elif known.get("head_dim") is None and heads[0] and config.hidden_size % heads[0] == 0:
        config.head_dim = config.hidden_size // heads[0]
    narrowed = {key for key, width in widths.items() if isinstance(value := known.get(key), int) and value > width}
    for key in narrowed:
        setattr(config, key, widths[key])
    return narrowed


def _check_heads(twin: PreTrainedModel, model: PreTrainedModel) -> None:
    """Raise ``UnsupportedLayerError`` if a module's heads have other sizes or scales than those of the other model."""
    own = dict(text_body(model).named_modules())
    for name, module in text_body(twin).named_modules():
        for key in OF_HEADS:
            if getattr(module, key, None) != getattr(own.get(name), key, None):
                raise UnsupportedLayerError(f"{key} of its {type(module).__name__} depends on a width")


def _initialise_constants(model: PreTrainedModel) -> None:
    """Give buffers of several dimensions, which are constants, the values that the model computes for them."""
    for module in model.modules():
        constants = [buffer for buffer in module.buffers(recurse=False) if buffer.ndim > 1]
        if not constants or any(True for _ in module.parameters(recurse=False)):
            continue
        for buffer in constants:
            buffer._is_hf_initialized = False  # noqa: SLF001
        model._init_weights(module)  # noqa: SLF001


def _keep_one_of_each_kind(model: PreTrainedModel) -> Sequence[int]:
    """Remove the layers behind the first one of the last kind.

    Returns:
        For each layer, the kept one of the same kind.
    """
    layers: Any = decoder_layers(text_body(model)) or ()
    config = model.config.get_text_config()
    settings = getattr(config, "layer_types", None) or [None] * len(layers)
    places = PLACES if getattr(config, SHARED, 0) else {*PLACES, KEPT}
    kinds = [(kind, _kind_of(layer, places)) for kind, layer in zip(settings, layers, strict=False)]
    if not kinds:
        return range(len(layers))
    count = 1 + max(kinds.index(kind) for kind in kinds)
    del layers[count:]
    return [index if index < count else kinds.index(kind) for index, kind in enumerate(kinds)]


def _kind_of(layer: nn.Module, places: Collection[str]) -> Hashable:
    """Return what distinguishes a layer from others: its modules, their parameters and settings, but not its place."""
    return tuple(
        (
            name,
            type(module),
            tuple((parameter, tuple(value.shape)) for parameter, value in module.named_parameters(recurse=False)),
            tuple(
                (key, value)
                for key, value in vars(module).items()
                if isinstance(value, bool | int | float | str) and key not in places
            ),
        )
        for name, module in layer.named_modules()
    )


def _random_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    model.tie_weights()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    state = {
        name: value for name, value in model.state_dict().items() if value.numel()
    }  # not experts, which do not run
    random, count = torch.Generator().manual_seed(0), max(value.numel() for value in state.values())
    numbers = torch.empty(min(count, 1 << 20) + SPARE_NUMBERS).normal_(generator=random)
    numbers = numbers.repeat(-(-(count + SPARE_NUMBERS) // len(numbers)))
    weights: dict[str, torch.Tensor] = {}
    names: dict[int, str] = {}  # of parameters, of which some have several
    for name, value in state.items():
        tied = names.setdefault(id(parameters.get(name, value)), name)
        first = int(torch.randint(SPARE_NUMBERS, (), generator=random))
        own = numbers[first : first + value.numel()].view(value.shape)
        if tied in weights:
            weights[name] = weights[tied]
        elif not value.is_floating_point():
            weights[name] = torch.ones(value.shape, dtype=value.dtype)
        elif value.ndim > 1:
            weights[name] = (own * value.shape[-1] ** -0.5).to(value.dtype)
        else:
            is_factor = value.numel() == 1 or ("norm" in name and name.endswith("weight"))
            weights[name] = (own * 0.1 + is_factor).to(value.dtype)
    return weights
