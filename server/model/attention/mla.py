"""Multi-head latent attention over the latents themselves.

MLA (DeepSeek-V2, arXiv 2405.04434, section 2.1) makes all heads' keys and values from one latent a token. transformers
expands it in every layer before it calls attention. Here ``kv_b_proj``, which expands, is replaced by a module that
passes the latent to the hooks of the step. The cache keeps only ``[latent | rotated key]``. The expansion is absorbed
into the queries before attention, and applied to its output afterwards.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from server.model.adapters.latents import LatentAdditions
from server.model.adapters.step_adapters import StepAdapters
from server.model.attention.indexer import index_dim
from server.model.attention.invariant_attention import InvariantAttention
from server.model.attention.kv_cache import KVShape
from server.model.attention.paged_attention import StepAttention
from server.model.attention.projected import ProjectedLatents
from server.model.hooks import AttentionOptions, current_hooks
from server.model.quantised.linear import QuantisedLinear


class LatentProjection(nn.Module):
    """Replaces one layer's ``kv_b_proj``.

    At first it holds the original layer, to expand latents in a model's first pass. ``split`` separates the weights of
    keys and values, since products with parts of a tensor would copy them first.

    Args:
        attention: the layer's attention module.
        name: of ``kv_b_proj`` in the model.
    """

    linear: nn.Linear | QuantisedLinear  # until ``split``
    to_keys: nn.Parameter  # (heads, nope_dim, rank)
    to_values: nn.Parameter  # (heads, value_dim, rank)

    def __init__(self, attention: Any, name: str = ""):
        super().__init__()
        self.name = name
        self.layer: int = attention.layer_idx
        self.rank: int = attention.kv_lora_rank
        self.nope_dim: int = attention.qk_nope_head_dim  # the part of a key that is not rotated
        self.value_dim: int = attention.v_head_dim
        self.linear = attention.kv_b_proj
        self.expanded_dim = self.linear.out_features
        self.index_dim = index_dim(attention)  # of the key of an indexer, which native layers keep behind the latent

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Return the model's keys and values: ``(..., rank)`` to ``(..., heads * (nope_dim + value_dim))``."""
        return current_hooks().expand(self, latent)

    def expand(self, latent: torch.Tensor) -> torch.Tensor:
        """Return the output of ``kv_b_proj``."""
        expanded: torch.Tensor = self.linear(latent)
        return expanded

    def split(self) -> None:
        """Split the weights for ``absorb`` and ``values``; ``expand`` can't be called afterwards."""
        weight = self.linear.weight.detach().view(-1, self.nope_dim + self.value_dim, self.rank)
        self.to_keys = nn.Parameter(weight[:, : self.nope_dim].contiguous(), requires_grad=False)
        self.to_values = nn.Parameter(weight[:, self.nope_dim :].contiguous(), requires_grad=False)
        del self.linear

    def release(self) -> None:
        """Drop the weights, of which native layers have their own; neither ``expand`` nor ``absorb`` can be called."""
        del self.linear

    def placeholder(self, latent: torch.Tensor) -> torch.Tensor:
        """Return zeros in the shape of the output of ``kv_b_proj``, which take no memory."""
        return latent.new_zeros(()).expand(*latent.shape[:-1], self.expanded_dim)

    def shape(self, key: torch.Tensor) -> KVShape:
        """Return the shape in the cache of tokens with ``key (heads, tokens, key_dim)``, without an index key."""
        key_dim = self.rank + key.shape[-1] - self.nope_dim
        return KVShape(1, key_dim, self.rank, key.dtype, is_latent=True)

    def row(self, latent: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Return ``[latent | rotated key]`` of each token, ``(1, tokens, rank + rotated)``."""
        return torch.cat([latent.reshape(1, -1, self.rank), key[:1, :, self.nope_dim :]], -1)

    def absorb(self, query: torch.Tensor) -> torch.Tensor:
        """Absorb the expansion into queries: ``(heads, tokens, key_dim)`` to ``(heads, tokens, rank + rotated)``."""
        return torch.cat([query[..., : self.nope_dim] @ self.to_keys, query[..., self.nope_dim :]], -1)

    def values_by_token(self, output: torch.Tensor) -> torch.Tensor:
        """Turn weighted latents into weighted values as ``values`` does, which are contiguous."""
        values = output.new_empty(len(output), len(self.to_values), self.value_dim)
        torch.bmm(output.transpose(0, 1), self.to_values.mT, out=values.transpose(0, 1))
        return values

    def values(self, output: torch.Tensor) -> torch.Tensor:
        """Turn weighted latents ``(tokens, heads, rank)`` into weighted values ``(tokens, heads, value_dim)``."""
        return (output.transpose(0, 1) @ self.to_values.mT).transpose(0, 1)

    def additions(self, adapters: StepAdapters) -> LatentAdditions | None:
        """Return what adapters add to ``kv_b_proj``; None if that is nothing.

        Raises:
            AdapterError: a router chooses adapters for it, so that they differ among a sequence's tokens.
        """
        if adapters.choices is not None:
            adapters.choices.refuse(self.name)
        if not any(self.name in adapter.linears for adapter in adapters.adapters):
            return None
        return LatentAdditions(adapters, self.name, len(self.to_keys), self.nope_dim)

    def makes(self, latent: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
        """Return whether keys and values consist of the expanded latent and one rotated key, as ``row`` assumes."""
        expanded = self.expand(latent.reshape(-1, self.rank)).view(len(value[0]), len(value), -1).transpose(0, 1)
        made_key, made_value = torch.split(expanded, [self.nope_dim, self.value_dim], -1)
        rotated = key[..., self.nope_dim :]
        return (
            torch.equal(key[..., : self.nope_dim], made_key)
            and torch.equal(value, made_value)
            and torch.equal(rotated, rotated[:1].expand_as(rotated))
        )


class LatentAttention:
    """The attention of a step, for layers with latents and without.

    Args:
        adapters: of the step, if it has any.
    """

    def __init__(self, attention: StepAttention | InvariantAttention, adapters: StepAdapters | None = None):
        self._attention, self._adapters = attention, adapters
        self._latents: dict[int, tuple[LatentProjection, torch.Tensor]] = {}  # by layer, until it calls ``attend``

    @property
    def has_adapters(self) -> bool:
        return self._adapters is not None

    def expand(self, projection: LatentProjection, latent: torch.Tensor) -> torch.Tensor:
        self._latents[projection.layer] = projection, latent
        return projection.placeholder(latent)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        if layer not in self._latents:
            return self._attention.attend(layer, query, key, value, options)
        projection, latent = self._latents.pop(layer)
        row = projection.row(latent, key)
        absorbed = projection.absorb(query)
        additions = None if self._adapters is None else projection.additions(self._adapters)
        if additions is not None:
            additions.add_to_queries(query, absorbed)
        output = self._attention.attend(layer, absorbed, row, row, options)
        values = projection.values(output)
        if additions is not None:
            additions.add_to_values(output, values)
        return values


def attend_latents(
    attention: StepAttention, projection: LatentProjection, latents: ProjectedLatents, options: AttentionOptions
) -> torch.Tensor:
    """Attend to latents by projections; return values ``(tokens, heads, value_dim)``."""
    output = attention.attend_latents(projection.layer, latents, projection.to_keys, options)
    return projection.values_by_token(output)


def latent_linears(model: nn.Module) -> set[nn.Linear]:
    """Return the ``kv_b_proj`` of each attention module that looks like MLA."""
    return {module.kv_b_proj for module in _latent_modules(model)}


def replace_projections(model: nn.Module) -> None:
    """Replace ``kv_b_proj`` in each attention module that looks like MLA by a ``LatentProjection``."""
    names = {module: f"{name}.kv_b_proj" for name, module in model.named_modules()}
    for module in _latent_modules(model):
        module.kv_b_proj = LatentProjection(module, names[module])


def resolve_projections(model: nn.Module, latent_layers: Collection[int], native: Collection[nn.Module] = ()) -> None:
    """Split the projections of layers that keep latents, and restore the original ``kv_b_proj`` of the others.

    Args:
        native: attention modules whose projections have been copied, and are not called any more.
    """
    for module in list(model.modules()):
        projection = getattr(module, "kv_b_proj", None)
        if not isinstance(projection, LatentProjection):
            continue
        if module in native:
            projection.release()
        elif projection.layer in latent_layers:
            projection.split()
        else:
            module.kv_b_proj = projection.linear


def _latent_modules(model: nn.Module) -> list[Any]:
    """Return attention modules that look like MLA, by the names of their parts."""
    found: list[Any] = []
    for module in model.modules():
        linear, sizes = getattr(module, "kv_b_proj", None), ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim")
        if linear is None or type(linear) not in {nn.Linear, QuantisedLinear} or linear.bias is not None:
            continue
        if all(isinstance(getattr(module, name, None), int) for name in ("layer_idx", *sizes)):
            found.append(module)
    return found
