"""Builds the twin of a model: its first layers with random weights in float32, made from its config alone.

What a model computes is found on its twin, so no number of a checkpoint's weights decides what runs where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from server.kernels.compute_pool import ComputePool
from server.kernels.expert import ExpertsModule
from server.model.architecture import decoder_layers, head_of, text_body, text_part
from server.model.attention.key_choice import hook_indexers
from server.model.attention.mla import replace_projections
from server.model.attention.rope import apply_max_length
from server.model.checkpoint.config_catalog import catalog_from_config
from server.model.experts.expert_layer import ExpertLayer, expert_layers
from server.model.layer_kinds import LayerKinds
from server.model.model_building import build_model, empty_experts, load_trunk_weights
from server.model.modules.forward import Forward
from server.model.modules.probe_run import ProbeRun
from server.model.recognition.narrowing import Narrowing, check_heads
from server.model.recognition.scales import NamedFactors
from server.model.transformers_hooks.batching_checks import find_special_layers

DTYPE = torch.float32
UNPADDED = "unpadded_vocab_size"  # key of the number of tokens, where the head has more rows
NGRAMS = "ngram_vocab_size_base"  # key of the number of rows of each table of n-grams
MOST_TOKENS = 256  # of the vocabulary, whose size changes no layer
SPARE_NUMBERS = 1 << 16  # by which parameters that share random numbers begin in different places


@dataclass(frozen=True)
class Twin:
    """A model with the first layers of another one, as many as show one of each kind."""

    model: PreTrainedModel
    forward: Forward
    experts: Mapping[ExpertsModule, ExpertLayer]
    first: ProbeRun
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
def build_twin(model: PreTrainedModel, longest: int, narrow: Narrowing | None = None) -> Twin:
    """Return the twin of a model.

    Args:
        model: with or without weights.
        longest: tokens of the longest sequence.
        narrow: makes the widths of its config small; None to keep them.

    Raises:
        UnsupportedLayerError: narrow layers compute something else than wide ones.
        NotBatchableError: the model can't run many sequences in one step.
        ModelError: no twin can be built.
    """
    hidden_size = int(model.config.get_text_config().hidden_size)
    twin, layer_of, factors = shape_twin(model, narrow)
    text = twin.config.get_text_config()
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
    first = ProbeRun(twin, forward, min(longest, text.vocab_size), is_by_sequence=is_by_sequence)
    return Twin(twin, forward, experts, first, layer_of, hidden_size, factors)


def shape_twin(
    model: PreTrainedModel, narrow: Narrowing | None = None
) -> tuple[PreTrainedModel, Sequence[int], NamedFactors]:
    """Return a model's twin without weights, for each layer the twin's of the same kind, and the config's factors.

    Args:
        model: with or without weights.
        narrow: makes the widths of its config small; None to keep them.

    Raises:
        UnsupportedLayerError: the config can't be made narrow, or narrow layers compute something else.
        ModelError: no twin can be built.
    """
    config = deepcopy(model.config)
    config.quantization_config = None
    text = config.get_text_config()
    factors = NamedFactors.of(text, narrow(text) if narrow is not None else ())
    _shorten_vocabulary(text)
    if getattr(text, "pad_token_id", None) is not None:
        text.pad_token_id = min(text.pad_token_id, text.vocab_size - 1)
    twin = build_model(config, DTYPE, model_class=type(model))
    _remove_towers(twin)
    layer_of = _keep_one_of_each_kind(twin)
    check_heads(twin, model)
    return twin, layer_of, factors


def _shorten_vocabulary(config: Any) -> None:
    """Give a config fewer tokens, and as many rows of the head without a token as before."""
    used = getattr(config, UNPADDED, None) or config.vocab_size
    unused = max(config.vocab_size - used, 0)
    config.vocab_size = min(MOST_TOKENS, config.vocab_size - unused) + unused
    if getattr(config, NGRAMS, 0):
        setattr(config, NGRAMS, min(MOST_TOKENS, getattr(config, NGRAMS)))
    if unused:
        setattr(config, UNPADDED, config.vocab_size - unused)


def _initialise_constants(model: PreTrainedModel) -> None:
    """Give buffers of several dimensions, which are constants, the values that the model computes for them."""
    for module in model.modules():
        constants = [buffer for buffer in module.buffers(recurse=False) if buffer.ndim > 1]
        if not constants or any(True for _ in module.parameters(recurse=False)):
            continue
        for buffer in constants:
            buffer._is_hf_initialized = False  # noqa: SLF001
        model._init_weights(module)  # noqa: SLF001


def _remove_towers(model: PreTrainedModel) -> None:
    """Empty the modules that tokens of text do not go through, whose weights may be larger than the memory."""
    needed = {*text_part(model).modules(), model.get_input_embeddings(), head_of(model)}
    for module in [*model.modules()]:
        if module not in needed and any(each in needed for each in module.modules()):
            for name, child in module.named_children():
                if next(child.parameters(), None) is not None and not any(each in needed for each in child.modules()):
                    setattr(module, name, nn.Module())


def _keep_one_of_each_kind(model: PreTrainedModel) -> Sequence[int]:
    """Remove the layers behind the first one of the last kind.

    Returns:
        For each layer, the kept one of the same kind.
    """
    kinds, layers = LayerKinds(model), decoder_layers(text_body(model))
    if layers is not None:
        del layers[kinds.count :]
    return kinds.layer_of


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
            # A row of a table of tokens' experts has different ones: equal ones have equal weights, however made.
            row = torch.arange(value.shape[-1]) if value.ndim > 1 else torch.ones(())
            weights[name] = row.expand(value.shape).to(value.dtype).contiguous()
        elif value.ndim > 1:
            weights[name] = (own * value.shape[-1] ** -0.5).to(value.dtype)
        else:
            is_factor = value.numel() == 1 or ("norm" in name and name.endswith("weight"))
            weights[name] = (own * 0.1 + is_factor).to(value.dtype)
    return weights
