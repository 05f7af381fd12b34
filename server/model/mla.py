"""Multi-head latent attention over the latents themselves.

MLA (DeepSeek-V2, arXiv 2405.04434, section 2.1) makes all heads' keys and values from one latent a token. transformers
expands it in every layer before it calls attention. Here ``kv_b_proj``, which expands, is replaced by a module that
hands the latent to the running step instead. The step keeps ``[latent | rotated key]`` and nothing else; the expansion
is absorbed into the queries on one side of attention and applied to its output on the other.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from .attention import StepAttention
from .invariant_attention import InvariantAttention
from .kv_cache import KVShape
from .seam import AttentionOptions, current_seam


class LatentProjection(nn.Module):
    """In the place of one layer's ``kv_b_proj``.

    It has the same weight, at first as it is, to expand latents while the model is looked at. After ``split``, it has
    what makes keys and what makes values apart: products with parts of a tensor copy them first.
    """

    linear: nn.Linear  # until split
    to_keys: nn.Parameter  # (heads, nope_dim, rank)
    to_values: nn.Parameter  # (heads, value_dim, rank)

    def __init__(self, attention: Any):
        super().__init__()
        self.layer: int = attention.layer_idx
        self.rank: int = attention.kv_lora_rank
        self.nope_dim: int = attention.qk_nope_head_dim  # of a key, what is not rotated
        self.value_dim: int = attention.v_head_dim
        self.linear = attention.kv_b_proj
        self._expanded_dim = self.linear.out_features

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """``(..., rank)`` to what the model takes for keys and values, ``(..., heads * (nope_dim + value_dim))``."""
        return current_seam().expand(self, latent)

    def expand(self, latent: torch.Tensor) -> torch.Tensor:
        """What ``kv_b_proj`` gives."""
        expanded: torch.Tensor = self.linear(latent)
        return expanded

    def split(self) -> None:
        """Make ready for ``absorb`` and ``values``; ``expand`` is no more."""
        weight = self.linear.weight.detach().view(-1, self.nope_dim + self.value_dim, self.rank)
        self.to_keys = nn.Parameter(weight[:, : self.nope_dim].contiguous(), requires_grad=False)
        self.to_values = nn.Parameter(weight[:, self.nope_dim :].contiguous(), requires_grad=False)
        del self.linear

    def hollow(self, latent: torch.Tensor) -> torch.Tensor:
        """Zeros of the shape of what ``kv_b_proj`` gives, which take no memory."""
        return latent.new_zeros(()).expand(*latent.shape[:-1], self._expanded_dim)

    def shape(self, key: torch.Tensor) -> KVShape:
        """What is kept of a token whose keys are ``key (heads, tokens, key_dim)``."""
        return KVShape(1, self.rank + key.shape[-1] - self.nope_dim, self.rank, key.dtype, is_latent=True)

    def row(self, latent: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """``[latent | rotated key]`` of each token, ``(1, tokens, rank + rotated)``."""
        return torch.cat([latent.reshape(1, -1, self.rank), key[:1, :, self.nope_dim :]], -1)

    def absorb(self, query: torch.Tensor) -> torch.Tensor:
        """Queries to compare with rows: ``(heads, tokens, key_dim)`` to ``(heads, tokens, rank + rotated)``."""
        return torch.cat([query[..., : self.nope_dim] @ self.to_keys, query[..., self.nope_dim :]], -1)

    def values(self, output: torch.Tensor) -> torch.Tensor:
        """Weighted latents ``(tokens, heads, rank)`` to weighted values ``(tokens, heads, value_dim)``."""
        return (output.transpose(0, 1) @ self.to_values.mT).transpose(0, 1)

    def makes(self, latent: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
        """Whether keys and values are what this class takes them for: the expanded latent, and one rotated key."""
        expanded = self.expand(latent.reshape(-1, self.rank)).view(len(value[0]), len(value), -1).transpose(0, 1)
        made_key, made_value = torch.split(expanded, [self.nope_dim, self.value_dim], -1)
        rotated = key[..., self.nope_dim :]
        return (
            torch.equal(key[..., : self.nope_dim], made_key)
            and torch.equal(value, made_value)
            and torch.equal(rotated, rotated[:1].expand_as(rotated))
        )


class LatentAttention:
    """The attention of a step, of layers with latents and without."""

    def __init__(self, attention: StepAttention | InvariantAttention):
        self._attention = attention
        self._given: dict[int, tuple[LatentProjection, torch.Tensor]] = {}  # by layers that have yet to attend

    def expand(self, projection: LatentProjection, latent: torch.Tensor) -> torch.Tensor:
        self._given[projection.layer] = projection, latent
        return projection.hollow(latent)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        if layer not in self._given:
            return self._attention.attend(layer, query, key, value, options)
        projection, latent = self._given.pop(layer)
        row = projection.row(latent, key)
        return projection.values(self._attention.attend(layer, projection.absorb(query), row, row, options))


def latent_linears(model: nn.Module) -> set[nn.Linear]:
    """The ``kv_b_proj`` of each attention module that looks like MLA."""
    return {module.kv_b_proj for module in _latent_modules(model)}


def replace_projections(model: nn.Module) -> None:
    """Put a ``LatentProjection`` into each attention module that looks like MLA."""
    for module in _latent_modules(model):
        module.kv_b_proj = LatentProjection(module)


def settle_projections(model: nn.Module, latent_layers: Collection[int]) -> None:
    """Split the projections of layers that keep latents, and put back what the others were."""
    for module in list(model.modules()):
        projection = getattr(module, "kv_b_proj", None)
        if not isinstance(projection, LatentProjection):
            continue
        if projection.layer in latent_layers:
            projection.split()
        else:
            module.kv_b_proj = projection.linear


def _latent_modules(model: nn.Module) -> list[Any]:
    """Attention modules that look like MLA, by what they call their parts."""
    found: list[Any] = []
    for module in model.modules():
        linear, sizes = getattr(module, "kv_b_proj", None), ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim")
        if type(linear) is not nn.Linear or linear.bias is not None:
            continue
        if all(isinstance(getattr(module, name, None), int) for name in ("layer_idx", *sizes)):
            found.append(module)
    return found
