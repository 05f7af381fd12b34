"""Routers on a CUDA device, which choose and weight experts in one launch after their product."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from server.kernels.native.structures.layers import NormKind, RouterKind
from server.model.blocks.cuda import check_known
from server.model.blocks.errors import UnsupportedLayerError
from server.model.declarations.declaration import Router
from server.model.native_layers.own_router import find_own_router
from server.model.native_layers.parts import FACTOR

if TYPE_CHECKING:
    from server.kernels.triton.router_choice import RouterRule

KINDS = (RouterKind.SOFTMAX_FIRST, RouterKind.TOP_FIRST, RouterKind.SIGMOID, RouterKind.TOP_SIGMOID)


class CudaRouter:
    """A router that returns logits, weights and choices.

    Tensors are those that the module has when it is called, so that variants may replace them.

    Args:
        module: with the matrix.
        declared: what it does.
        dtype: of the rows that it is called with.

    Raises:
        UnsupportedLayerError: the kernel does not know it.
    """

    def __init__(self, module: Any, declared: Router, dtype: torch.dtype):
        prefix, bias, correction = f"{declared.module}.", declared.bias, declared.correction or ""
        is_given = bool(correction) and not correction.startswith(prefix)  # it is called with the correction
        owner, _, self._correction = ("" if is_given else correction.removeprefix(prefix)).rpartition(".")
        check_known(
            {
                "its matrix": declared.weight != f"{prefix}weight",
                "its biases": bias != (None if getattr(module, "bias", None) is None else f"{prefix}bias"),
                "its arguments": len(inspect.signature(module.forward).parameters) > 1 + is_given,
                "its factor of logits": declared.logits_scale != 1,
            }
        )
        self._module, self._owner = module, module.get_submodule(owner)
        self._rule = _rule(module, declared, len(module.weight))
        given = [torch.zeros(len(module.weight), device=module.weight.device)] if is_given else []
        logits, self._dtype = _returned_dtypes(module, module.weight.shape[1], dtype, *given)
        self._is_wide = logits == torch.float32

    def install(self) -> None:
        """Let the block of the router call it in the place of its module."""
        self._module.forward = self

    def __call__(
        self, hidden_states: torch.Tensor, correction: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from server.kernels.triton.router_choice import choose  # noqa: PLC0415  Triton may not be installed

        module = self._module
        weight, bias = module.weight, module._parameters.get("bias")  # noqa: SLF001  which may not be there
        rows = hidden_states.reshape(-1, weight.shape[1])
        if self._is_wide:
            rows, weight, bias = rows.float(), weight.float(), None if bias is None else bias.float()
        logits = F.linear(rows, weight, bias)
        if self._correction:
            correction = getattr(self._owner, self._correction)
        chosen, weights = choose(logits, correction, self._rule, self._dtype)
        return logits, weights, chosen


class CudaNormedRouter:
    """A router that norms its rows, and returns scores, weights and choices: a norm, a product and a choice (Gemma 4).

    Args:
        module: whose norm is a module of transformers still.
        declared: what it does.
        dtype: of the rows that it is called with.

    Raises:
        UnsupportedLayerError: the kernels do not know it.
    """

    def __init__(self, module: Any, declared: Router, dtype: torch.dtype):
        from server.kernels.triton.rms_norm import MOST_NUMBERS, RmsNorm  # noqa: PLC0415  Triton may not be installed

        self._module, self._linear = module, next(each for each in module.children() if isinstance(each, nn.Linear))
        own = find_own_router(module, self._linear.out_features, declared.top_k)
        check_known(
            {"its norm": own.norm.kind is not NormKind.RMS, "its rows": self._linear.in_features > MOST_NUMBERS}
        )
        self._rule = _rule(module, declared, self._linear.out_features)
        if _returned_dtypes(module, self._linear.in_features, dtype) != (torch.float32, torch.float32):
            raise UnsupportedLayerError("it does not return scores and weights in float32")
        named = dict(module.named_parameters(recurse=False))
        self._scales = next(
            (name for name, value in named.items() if value.numel() == self._linear.out_features), None
        )  # factors of the experts' weights
        self._norm = RmsNorm(own.norm.weight.to(self._linear.weight.device), own.norm.epsilon)

    def install(self) -> None:
        """Let the layer call it in the place of its module."""
        self._module.forward = self

    def __call__(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from server.kernels.triton.router_choice import choose  # noqa: PLC0415  Triton may not be installed

        logits = self._linear(self._norm(hidden_states))
        scores = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        scales = None if self._scales is None else getattr(self._module, self._scales)
        chosen, weights = choose(logits, None, self._rule, torch.float32, expert_scales=scales, scores=scores)
        return scores, weights, chosen


def router_of(module: nn.Module, declared: Router, dtype: torch.dtype) -> CudaRouter | CudaNormedRouter:
    """Return a router as the kernels run it.

    Args:
        module: that has its parameters.
        dtype: of the rows that it is called with.

    Raises:
        UnsupportedLayerError: they do not know it.
    """
    return (CudaNormedRouter if declared.weight is None else CudaRouter)(module, declared, dtype)


def _rule(module: nn.Module, declared: Router, num_experts: int) -> RouterRule:
    """Return the rule of a router's choices.

    Raises:
        UnsupportedLayerError: the kernel does not have it.
    """
    from server.kernels.triton.router_choice import MOST_EXPERTS, RouterRule  # noqa: PLC0415  may not be installed

    check_known(
        {
            "choices outside of the router's module": not declared.chooses,
            declared.kind.name: declared.kind not in KINDS,
            "experts by token": declared.has_table,
            "weights of shared experts": declared.num_shared,
            "a factor among the weights": hasattr(module, FACTOR),
            f"{num_experts} experts": num_experts > MOST_EXPERTS,
        }
    )
    return RouterRule(
        int(declared.kind), declared.top_k, declared.groups, declared.top_groups, declared.is_by_best,
        declared.is_normalised, declared.scale,
    )  # fmt: skip


@torch.inference_mode()
def _returned_dtypes(
    module: nn.Module, size: int, dtype: torch.dtype, *others: torch.Tensor
) -> tuple[torch.dtype, torch.dtype]:
    """Return the types of the logits and of the weights that a router's module returns.

    Raises:
        UnsupportedLayerError: it takes rows of another type.
    """
    device = next(module.parameters()).device
    try:
        logits, weights, _ = module(torch.zeros((1, size), device=device, dtype=dtype), *others)
    except RuntimeError as error:
        raise UnsupportedLayerError(f"its router does not take rows in {dtype}") from error
    return logits.dtype, weights.dtype
