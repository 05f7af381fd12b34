"""The router in training: noise in its logits, and a load-balance loss and a z-loss per layer."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter


@dataclass
class WorkerState(threading.local):
    """State of one training thread during a forward pass."""

    generator: torch.Generator | None = None
    losses: list[torch.Tensor] = field(default_factory=list)


worker = WorkerState()
counting = threading.Lock()  # guards the counts of all routers; all threads add to them


class TrainingRouter(Qwen3MoeTopKRouter):  # type: ignore[misc]
    """Top-k router with Gaussian noise of deviation ``1 / experts`` (Riquelme et al., 2021) during training.

    Each call appends the auxiliary loss of its layer to ``worker.losses``: the load-balance loss (Fedus et al., 2021,
    eq. 4), ``experts * sum(f * P)``, and the z-loss of Zoph et al., 2022. The usage ``f`` is averaged over the last
    complete batches, so that experts are balanced over the corpus and not over every few rows (Qiu et al., 2025).
    """

    usage: torch.Tensor  # (experts,) share of the choices, averaged over recent steps
    counts: torch.Tensor  # (experts,) choices of the step that is running
    balance_weight: float
    z_weight: float

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = F.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight).float()  # (tokens, experts)
        noisy = logits
        if self.training:
            noisy = logits + torch.randn(logits.shape, generator=worker.generator) / self.num_experts
        scores, chosen = noisy.softmax(-1).topk(self.top_k, dim=-1)  # (tokens, k)
        if self.norm_topk_prob:
            scores = scores / scores.sum(-1, keepdim=True)
        if self.training:
            with counting:
                self.counts += torch.bincount(chosen.flatten(), minlength=self.num_experts)
            balance = self.num_experts * (self.usage * logits.softmax(-1).mean(0)).sum()
            z_loss = logits.logsumexp(-1).square().mean()
            worker.losses.append(self.balance_weight * balance + self.z_weight * z_loss)
        return logits, scores.to(hidden_states.dtype), chosen

    @property
    def imbalance(self) -> float:
        """Coefficient of variation of recent expert usage."""
        return float(self.usage.std(unbiased=False) / self.usage.mean())

    def end_step(self) -> None:
        """Add the finished step to the averaged usage."""
        self.usage.lerp_(self.counts / self.counts.sum(), 0.3)
        self.counts.zero_()


def train_routers(model: nn.Module, balance_weight: float, z_weight: float) -> list[TrainingRouter]:
    """Turn every router of a model into a training router, in place, and return them; none in a dense model."""
    routers = []
    for module in model.modules():
        if isinstance(module, Qwen3MoeTopKRouter):
            module.__class__ = TrainingRouter
            assert isinstance(module, TrainingRouter)
            module.usage = torch.full((module.num_experts,), 1 / module.num_experts)
            module.counts = torch.zeros(module.num_experts)
            module.balance_weight, module.z_weight = balance_weight, z_weight
            routers.append(module)
    return routers
