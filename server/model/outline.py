"""A model's shapes from its config alone: built without weights, and looked at with zeros in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import build_glob_alternation

from .architecture import text_part
from .cells import Discovery
from .checkpoint_map import PackedMatrices, experts_modules, layer_numbers
from .encdec import stock_model
from .errors import ModelError, NotBatchableError
from .forward import Forward
from .kv_cache import KVGroup
from .loading import build_model
from .masks import with_masks
from .mla import replace_projections
from .packed_trunk import packed_sizes
from .probe import Probe
from .rope import longest_served
from .seam import IMPLEMENTATION, running
from .states import StateShapes
from .stock import StockFacts
from .support import check_layers

NUM_TOKENS = 2
PRODUCTS = {F.linear, F.conv1d, F.scaled_dot_product_attention, torch.bmm}


@dataclass(frozen=True)
class Outline:
    """What serving a model takes."""

    architecture: str
    model: PreTrainedModel  # on the meta device, as it was built: for the names and shapes of its parameters
    dtype: torch.dtype  # of compute
    trunk_bytes: int  # resident
    active_trunk_bytes: int  # read for each token of text: not its table of embeddings, of which it reads one row
    kv_groups: tuple[KVGroup, ...]
    states: StateShapes  # of one sequence, in recurrent layers
    top_k: Mapping[int, int]  # by MoE layer, experts a token of text
    max_model_len: int
    solo_reason: str | None  # why requests are computed one after the other, if they are


def outline(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    max_model_len: int | None = None,
    packed: PackedMatrices = MappingProxyType({}),
) -> Outline:
    """The shapes of a model.

    Weights are never made: each is one zero that stands for all, and linear layers give zeros of the right shape.
    So it takes no memory and little time, however large the model is. What only weights show is not seen, such as
    tokens that mix by a layer without a name for it.

    Args:
        dtype: of compute.
        max_model_len: that is asked for, where the model's rotary frequencies depend on it.
        packed: the matrices of its trunk that stay quantised.

    Raises:
        ModelError: the architecture can't be served.
    """
    try:
        return _outline(config, dtype, max_model_len, packed, None)
    except NotBatchableError as error:
        return _outline(config, dtype, max_model_len, packed, str(error))


def _outline(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    max_model_len: int | None,
    packed: PackedMatrices,
    solo_reason: str | None,
) -> Outline:
    attention = IMPLEMENTATION if solo_reason is None else None
    model = build_model(config, dtype, attention)
    name = type(model).__name__
    if solo_reason is None:
        check_layers(model)
    model.tie_weights()
    modules = experts_modules(model)
    if not modules:
        raise ModelError(f"{name} has no routed experts that Greenroom can page; give a Mixture-of-Experts model")
    resident, active = _trunk_bytes(model, dtype, packed_sizes(model, packed) if packed else {})
    text = model.config.get_text_config()
    numbers = layer_numbers(list(modules))
    hollow = _hollow(build_model(config, dtype, attention))
    seen: Probe | StockFacts
    longest = longest_served(text, max_model_len)
    if solo_reason is None:
        seen, states = _look(hollow, min(NUM_TOKENS, longest))
        if not seen.kv_groups:
            raise NotBatchableError(f"{name} does not use transformers' attention interface")
    else:
        with _ZeroProducts():
            seen = stock_model(hollow).look(int(text.vocab_size), longest)
        states = seen.states
    if not seen.routed:
        raise ModelError(f"{name} does not use transformers' experts interface; it can't be paged")
    top_k = {
        numbers[path]: seen.routed[module].top_k_index.shape[-1]
        for path, module in experts_modules(hollow).items()
        if module in seen.routed
    }
    return Outline(name, model, dtype, resident, active, seen.kv_groups, states, top_k, longest, solo_reason)


class _ZeroProducts(TorchFunctionMode):
    """Products of matrices are zeros of their shape, and no weight is touched."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        shapes = func(*map(_on_meta, args), **{name: _on_meta(value) for name, value in (kwargs or {}).items()})
        return torch.zeros_like(shapes, device="cpu")


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


@torch.inference_mode()
def _hollow(model: PreTrainedModel) -> PreTrainedModel:
    """The model with zeros for weights, which take no memory."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            setattr(module, name, nn.Parameter(zeros, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            stand_in = torch.zeros(buffer.shape, dtype=buffer.dtype)  # models may write to them
            if not (buffer.is_floating_point() or buffer.is_complex() or buffer.dtype == torch.bool):
                stand_in += 1  # sizes of tables, which are divided by
            setattr(module, name, stand_in)
    return model.eval()


@torch.inference_mode()
def _look(model: PreTrainedModel, num_tokens: int) -> tuple[Probe, StateShapes]:
    """What a model asks of attention and experts."""
    replace_projections(model)
    forward = Forward(model)
    probe, discovery = Probe(), Discovery()
    with running(probe), with_masks(model), discovery.watching(text_part(model)), _ZeroProducts():
        forward([0] * num_tokens, range(num_tokens), [0], discovery)
    return probe, discovery.shapes


def _trunk_bytes(model: Any, dtype: torch.dtype, packed: Mapping[str, int]) -> tuple[int, int]:
    """Bytes of the trunk once it is loaded, and of these the ones that each token of text reads.

    Args:
        packed: bytes of matrices that stay quantised, by the parameters in whose place they are.
    """
    plan = model._get_dtype_plan(dtype)  # noqa: SLF001
    kept = build_glob_alternation(list(plan))[0] if plan else None
    routed = {id(tensor) for module in experts_modules(model).values() for tensor in module.parameters(recurse=False)}

    def nbytes(name: str, tensor: torch.Tensor) -> int:
        if name in packed:
            return packed[name]
        size = torch.float32.itemsize if kept is not None and kept.search(name) else tensor.element_size()
        return tensor.numel() * size

    part, head = text_part(model), model.get_output_embeddings()
    read = {id(tensor) for tensor in (*part.parameters(), *part.buffers())} - {id(model.get_input_embeddings().weight)}
    read |= {id(parameter) for parameter in (head.parameters() if head is not None else ())}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    resident = {id(tensor): nbytes(name, tensor) for name, tensor in tensors if id(tensor) not in routed}
    chosen = [module for module in part.modules() if hasattr(module, "share_read")]  # experts that stay in the trunk
    shares = {id(tensor): module.share_read for module in chosen for tensor in module.parameters()}
    active = sum(round(size * shares.get(tensor, 1)) for tensor, size in resident.items() if tensor in read)
    return sum(resident.values()), active
