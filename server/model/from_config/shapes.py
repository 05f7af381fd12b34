"""Infers a model's sizes from its config alone: builds it without weights and runs it on zeros."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import build_glob_alternation

from server.model.architecture import packs_sequences, text_part
from server.model.attention.by_sequence.attention import probe_sequence_masks
from server.model.attention.by_sequence.modules import SequenceProbe, run_by_sequence
from server.model.attention.key_choice import hook_indexers
from server.model.attention.kv_cache import KVGroup
from server.model.attention.mask_probe import probe_masks
from server.model.attention.mla import replace_projections
from server.model.attention.rope import max_served_length
from server.model.checkpoint.config_checks import CONFIG, config_errors
from server.model.checkpoint.packed_trunk import packed_sizes
from server.model.checkpoint.tensor_map import PackedMatrices, experts_modules, layer_numbers
from server.model.errors import ModelError, NotBatchableError
from server.model.hooks import IMPLEMENTATION, use_hooks
from server.model.model_building import build_model
from server.model.modules.forward import Forward
from server.model.recurrent.recurrent_modules import StateProbe
from server.model.recurrent.states import StateShapes
from server.model.sequential.facts import SequentialFacts
from server.model.sequential.sequential_model import sequential_model
from server.model.transformers_hooks.batching_checks import check_batchable, find_special_layers
from server.model.transformers_hooks.probe import Probe

NUM_TOKENS = 2
MOST_OUTPUTS = 1 << 28  # of a layer, for the tokens of a first pass


@dataclass(frozen=True)
class ModelShapes:
    """The sizes that serving a model depends on."""

    architecture: str
    model: PreTrainedModel  # on the meta device, unmodified, for the names and shapes of its parameters
    dtype: torch.dtype  # compute dtype
    trunk_bytes: int  # bytes of the loaded trunk
    active_trunk_bytes: int  # bytes read per text token; excludes the embedding table, of which it reads one row
    kv_groups: tuple[KVGroup, ...]
    states: StateShapes  # recurrent states of one sequence
    top_k: Mapping[int, int]  # experts per text token, by MoE layer
    max_model_len: int
    sequential_reason: str | None  # the reason that requests run one at a time; None if they are batched

    @property
    def shares_prefixes(self) -> bool:
        """True if a sequence can continue from blocks that another wrote."""
        return self.sequential_reason is None and not any(group.depends_on_prompt for group in self.kv_groups)


def infer_shapes(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    max_model_len: int | None = None,
    packed: Callable[[PreTrainedModel], PackedMatrices] = lambda _: {},
    *,
    has_kernels: bool = False,
) -> ModelShapes:
    """Infer the shapes of a model.

    No weights are allocated: each tensor is an expanded zero, and linear layers return zeros of the right shape. So it
    takes no memory and little time for a model of any size. It can't detect what depends on weights, such as tokens
    that mix in an unnamed layer.

    Args:
        dtype: the compute dtype.
        max_model_len: the requested length, on which the model's rotary frequencies may depend.
        packed: returns the matrices of the trunk that stay quantised, of the model on the meta device.
        has_kernels: whether the native kernels may run it, which keep index keys behind latents.

    Raises:
        ModelError: the architecture can't be served.
    """
    with config_errors(config):
        try:
            return _infer(config, dtype, max_model_len, packed, None, has_kernels=has_kernels)
        except NotBatchableError as error:
            return _infer(config, dtype, max_model_len, packed, str(error))


def _infer(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    max_model_len: int | None,
    packed: Callable[[PreTrainedModel], PackedMatrices],
    sequential_reason: str | None,
    *,
    has_kernels: bool = False,
) -> ModelShapes:
    attention = IMPLEMENTATION if sequential_reason is None else None
    model = build_model(config, dtype, attention)
    name = type(model).__name__
    if sequential_reason is None:
        check_batchable(model)
    model.tie_weights()
    modules = experts_modules(model)
    if not modules:
        raise ModelError(f"{name} has no routed experts that Greenroom can page; give a Mixture-of-Experts model")
    matrices = packed(model)
    resident, active = _trunk_bytes(model, dtype, packed_sizes(model, matrices) if matrices else {})
    text = model.config.get_text_config()
    numbers = layer_numbers(list(modules))
    longest = max_served_length(text, max_model_len)
    if packs_sequences(type(model)):
        from server.model.encoders.facts import encoder_facts  # noqa: PLC0415  few models need it

        facts = encoder_facts(model, numbers.values())
        experts = dict.fromkeys(facts.text_layers, facts.top_k)
        return ModelShapes(name, model, dtype, resident, active, facts.kv_groups, {}, experts, longest, None)
    zero_model = _with_zero_weights(build_model(config, dtype, attention))
    probed: Probe | SequentialFacts
    if sequential_reason is None:
        probed, states, groups = _probe(zero_model, min(NUM_TOKENS, longest), has_kernels=has_kernels)
        if not groups:
            raise NotBatchableError(f"{name} does not use transformers' attention interface")
    else:
        with _ZeroProducts():
            probed = sequential_model(zero_model).probe(int(text.vocab_size), longest)
        states, groups = probed.states, probed.kv_groups
    if not probed.routed:
        raise ModelError(f"{name} does not use transformers' experts interface, so its experts can't be paged")
    top_k = {
        numbers[path]: probed.routed[module].top_k_index.shape[-1]
        for path, module in experts_modules(zero_model).items()
        if module in probed.routed
    }
    return ModelShapes(name, model, dtype, resident, active, groups, states, top_k, longest, sequential_reason)


class _ZeroProducts(TorchFunctionMode):
    """Makes matrix products return zeros of the right shape, without reading any weight.

    They are not computed on the meta device, where torch needs kernels in Python and SymPy. Operands that do not fit
    go to torch, which raises the error.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        options = kwargs or {}
        zeros = PRODUCTS[func](*args, **options) if func in PRODUCTS else None
        return func(*args, **options) if zeros is None else zeros


def _zeros(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Make zeros, of which there is one for each output of a layer and each of a few tokens."""
    if math.prod(shape) > MOST_OUTPUTS:
        raise ModelError(f"{CONFIG} describes a layer with outputs of the shape {list(shape)}; no model has as many")
    return like.new_zeros(*shape)


def _linear(rows: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor | None:
    return _zeros(rows, *rows.shape[:-1], weight.shape[0]) if rows.shape[-1] == weight.shape[-1] else None


def _bmm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor | None:
    return _zeros(left, *left.shape[:-1], right.shape[-1]) if left.shape[::2] == right.shape[:2] else None


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor | None:
    fits = query.shape[-1] == key.shape[-1] and key.shape[-2] == value.shape[-2]
    return _zeros(query, *query.shape[:-1], value.shape[-1]) if fits else None


def _convolution(  # noqa: PLR0917  (the signature of torch's function)
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor | None:
    del bias
    if rows.shape[-2] != weight.shape[1] * groups or weight.shape[0] % groups:
        return None
    channel = rows.new_zeros(1, 1, rows.shape[-1]), weight.new_zeros(1, 1, weight.shape[-1])
    length = F.conv1d(*channel, None, stride, padding, dilation).shape[-1]
    return _zeros(rows, *rows.shape[:-2], weight.shape[0], length)


PRODUCTS: dict[Any, Callable[..., torch.Tensor | None]] = {  # None if the operands do not fit
    F.linear: _linear,
    F.conv1d: _convolution,
    F.scaled_dot_product_attention: _attention,
    torch.bmm: _bmm,
}


@torch.inference_mode()
def _with_zero_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Replace a model's weights by zeros that take no memory."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            setattr(module, name, nn.Parameter(zeros, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            stand_in = torch.zeros(buffer.shape, dtype=buffer.dtype)  # models may write to them
            if not (buffer.is_floating_point() or buffer.is_complex() or buffer.dtype == torch.bool):
                stand_in += 1  # may be sizes of tables, which are divisors
            setattr(module, name, stand_in)
    return model.eval()


@torch.inference_mode()
def _probe(
    model: PreTrainedModel, num_tokens: int, *, has_kernels: bool
) -> tuple[Probe, StateShapes, tuple[KVGroup, ...]]:
    """Run a model, and record its calls of attention and experts, its recurrent states and what it keeps of tokens."""
    is_by_sequence = find_special_layers(model) is not None
    if not is_by_sequence:
        replace_projections(model)
        hook_indexers(model)
    forward = Forward(model)
    probe, state_probe = Probe(), SequenceProbe(model) if is_by_sequence else StateProbe()
    masks = probe_sequence_masks(model) if is_by_sequence else probe_masks(model)
    with use_hooks(probe), _ZeroProducts():
        with masks, state_probe.track_modules(text_part(model)):
            forward([0] * num_tokens, range(num_tokens), [0], state_probe)
        if isinstance(state_probe, SequenceProbe):
            return probe, state_probe.shapes, run_by_sequence(state_probe, num_tokens)
    return probe, state_probe.shapes, probe.kv_groups if has_kernels else probe.indexed_groups


def _trunk_bytes(model: Any, dtype: torch.dtype, packed: Mapping[str, int]) -> tuple[int, int]:
    """The bytes of the loaded trunk, and the part of them that each text token reads.

    Args:
        packed: bytes of the matrices that stay quantised, by the parameters that they replace.
    """
    plan = model._get_dtype_plan(dtype)  # noqa: SLF001
    kept_in_float32 = build_glob_alternation(list(plan))[0] if plan else None
    routed = {id(tensor) for module in experts_modules(model).values() for tensor in module.parameters(recurse=False)}

    def nbytes(name: str, tensor: torch.Tensor) -> int:
        if name in packed:
            return packed[name]
        is_float32 = kept_in_float32 is not None and kept_in_float32.search(name)
        return tensor.numel() * (torch.float32.itemsize if is_float32 else tensor.element_size())

    part, head = text_part(model), model.get_output_embeddings()
    read = {id(tensor) for tensor in (*part.parameters(), *part.buffers())} - {id(model.get_input_embeddings().weight)}
    read |= {id(parameter) for parameter in (head.parameters() if head is not None else ())}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    resident = {id(tensor): nbytes(name, tensor) for name, tensor in tensors if id(tensor) not in routed}
    routed_in_trunk = [module for module in part.modules() if hasattr(module, "share_read")]
    shares = {id(tensor): module.share_read for module in routed_in_trunk for tensor in module.parameters()}
    active = sum(round(size * shares.get(tensor, 1)) for tensor, size in resident.items() if tensor in read)
    return sum(resident.values()), active
