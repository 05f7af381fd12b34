"""Routers of expert variants: other weights, more experts, or fewer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from expert_store import CheckpointError, ExpertCatalog, ExpertKey
from server.model.expert_variant import VariantLayer
from server.model.experts.router import RouterWeights
from server.model.experts.variant_routing import unchangeable

REMOVED_FIELD = "greenroom_removed_experts"  # metadata: JSON, a list of experts for all layers, or lists by layer


def read_removed(text: str | None, catalog: ExpertCatalog) -> dict[int, frozenset[int]]:
    """Return the experts that a variant removes, by layer.

    Args:
        text: the value of ``REMOVED_FIELD``.

    Raises:
        CheckpointError: it is malformed, or names an expert that the model does not have.
    """
    if text is None:
        return {}
    try:
        value = json.loads(text)
        by_layer = value if isinstance(value, dict) else dict.fromkeys(catalog.layers, value)
        removed = {int(layer): frozenset(map(int, experts)) for layer, experts in by_layer.items()}
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{REMOVED_FIELD} is {text[:80]!r}; give a JSON list of experts, or an object of such lists by layer"
        ) from error
    for layer, experts in removed.items():
        count = len(catalog.layers[layer].experts) if layer in catalog.layers else 0
        for expert in experts:
            if not 0 <= expert < count:
                raise CheckpointError(
                    f"{REMOVED_FIELD} names {ExpertKey(layer, expert)}, which this model does not have"
                )
    return {layer: experts for layer, experts in removed.items() if experts}


def variant_layer(
    model: nn.Module,
    router: RouterWeights | None,
    keys: Sequence[ExpertKey],
    given: Mapping[str, torch.Tensor],
    removed: frozenset[int],
) -> VariantLayer:
    """Return a layer of a variant.

    Args:
        model: the base model, of which no weights are needed.
        router: the base's, if it was found.
        keys: all experts of the layer, before any is removed.
        given: the variant's own tensors of the router, by role.

    Raises:
        CheckpointError: the router does not fit the experts, or can't be changed.
    """
    num_own = 0 if router is None else router.weight.shape[0]
    if not given and not removed and (router is None or len(keys) == num_own):
        return VariantLayer(tuple(keys))
    layer = keys[0].layer
    if router is None:
        raise CheckpointError(f"the router of layer {layer} was not found, so no variant can change it")
    for role, tensor in given.items():
        _check_shape(router, role, tensor, len(keys))
    own = {"weight": router.weight, "bias": router.bias, "correction": router.correction}
    tensors = {role: tensor for role, tensor in own.items() if tensor is not None}
    tensors.update({role: tensor if role == "weight" else tensor.flatten() for role, tensor in given.items()})
    lacking = [router.names[role] for role, tensor in tensors.items() if len(tensor) < len(keys)]
    if lacking:
        raise CheckpointError(f"layer {layer} gets more experts: give {lacking[0]} with {len(keys)} rows")
    rows = [row for row in range(len(keys)) if row not in removed]
    check_rows(model, router, layer, len(rows))
    if not removed and len(keys) == num_own:
        tensors = {role: tensors[role] for role in given}
    return VariantLayer(
        tuple(keys[row] for row in rows),
        {role: _rows(tensor, rows, own[role]) for role, tensor in tensors.items()},
    )


def check_rows(model: nn.Module, router: RouterWeights, layer: int, num_rows: int) -> None:
    """Check that a router can have so many rows.

    Raises:
        CheckpointError: it can't.
    """
    num_own = router.weight.shape[0]
    reason = unchangeable(model, router) if num_rows != num_own else None
    if reason is not None:
        raise CheckpointError(f"layer {layer} can't have {num_rows} instead of {num_own} experts: {reason}")
    if num_rows < router.top_k:
        raise CheckpointError(f"layer {layer} keeps {num_rows} experts, but a token chooses {router.top_k}")


def _rows(tensor: torch.Tensor, rows: Sequence[int], like: torch.Tensor | None) -> torch.Tensor:
    """Return some rows of a tensor, on the device and in the dtype of another."""
    return (tensor if like is None else tensor.to(like)).detach()[list(rows)]


def _check_shape(router: RouterWeights, role: str, tensor: torch.Tensor, num_experts: int) -> None:
    wanted = [num_experts, router.weight.shape[1]] if role == "weight" else [num_experts]
    found = list(tensor.shape) if role == "weight" else list(tensor.flatten().shape)
    if found != wanted:
        raise CheckpointError(
            f"{router.names[role]} has shape {list(tensor.shape)}; with {num_experts} experts it needs {wanted}"
        )
