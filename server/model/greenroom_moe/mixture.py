"""The feed-forward part of a layer: a router, and experts that are run through transformers' interface."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from server.model.greenroom_moe.configuration import GreenroomMoeConfig
from server.model.routers.base import Dispatch, Router, TokenDispatch
from server.model.routers.expert_choice import ExpertChoiceRouter
from server.model.routers.soft import SoftRouter
from server.model.routers.switch import SwitchRouter
from server.model.routers.top_k import TopKRouter


def make_router(config: GreenroomMoeConfig) -> Router:
    """Return a new router of the config's type."""
    sizes = config.hidden_size, config.num_local_experts
    match config.router_type:
        case "switch":
            return SwitchRouter(*sizes, capacity_factor=config.capacity_factor)
        case "expert_choice":
            return ExpertChoiceRouter(*sizes, capacity_factor=config.capacity_factor or config.num_experts_per_tok)
        case "soft":
            return SoftRouter(*sizes, slots_per_expert=config.slots_per_expert)
        case _:
            return TopKRouter(*sizes, config.num_experts_per_tok, has_noise=config.has_router_noise)


class RoutedExperts(nn.Module):
    """Routes tokens and runs experts on them.

    A router whose tokens depend on each other sees one sequence at a time; Switch with a capacity sees the whole batch,
    as it is trained.
    """

    def __init__(self, config: GreenroomMoeConfig):
        super().__init__()
        self.router = make_router(config)
        self.experts = MixtralExperts(config)
        self._capacity_factors = config.capacity_factor, config.eval_capacity_factor

    def train(self, mode: bool = True) -> RoutedExperts:
        """Set the mode of training, in which Switch has another capacity."""
        if isinstance(self.router, SwitchRouter):
            trained, evaluated = self._capacity_factors
            self.router.capacity_factor = trained if mode else evaluated
        return super().train(mode)

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None, lengths: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Run experts: ``(batch, tokens, hidden)`` to the same shape.

        Args:
            mask: bool ``(batch, tokens)``; False for padding. None for no padding.
            lengths: of the sequences that share the only row, which has no padding; None for one sequence a row.
        """
        if mask is None:
            mask = torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)
        if isinstance(self.router, TopKRouter | SwitchRouter):
            return self._run_choices(hidden_states, mask)
        sequences, masks = list(hidden_states), list(mask)
        if lengths is not None:
            sequences, masks = ([*torch.split(whole[0], list(lengths))] for whole in (hidden_states, mask))
        dispatches: list[Dispatch] = [self.router(*each) for each in zip(sequences, masks, strict=True)]
        rows = [dispatch.rows(tokens) for dispatch, tokens in zip(dispatches, sequences, strict=True)]
        experts = torch.cat([dispatch.experts for dispatch in dispatches]).unsqueeze(-1)
        outputs = self.experts(torch.cat(rows), experts, torch.ones_like(experts, dtype=torch.float32))
        parts = outputs.split([len(each) for each in rows])
        combined = [dispatch.combine(part) for dispatch, part in zip(dispatches, parts, strict=True)]
        return torch.cat(combined).view_as(hidden_states).to(hidden_states.dtype)

    def _run_choices(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run tokens that choose experts; a token that goes nowhere names one beyond the last."""
        tokens = hidden_states.flatten(0, 1)
        dispatch = self.router(tokens, mask.flatten())
        assert isinstance(dispatch, TokenDispatch)
        k = self.router.k if isinstance(self.router, TopKRouter) else 1
        places = dispatch.tokens.view(-1, k)[:, 0]  # the rows of a token adjoin
        index = torch.full((len(tokens), k), self.router.num_experts, device=tokens.device)
        weights = torch.zeros((len(tokens), k), device=tokens.device)
        index = index.index_copy(0, places, dispatch.experts.view(-1, k))
        weights = weights.index_copy(0, places, dispatch.weights.view(-1, k))
        outputs: torch.Tensor = self.experts(tokens, index, weights)
        return outputs.view_as(hidden_states)
