"""Computes the gradients of one step, in float32 or bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from training.gate import worker
from training.run_settings import Settings


def row_losses(model: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of each row in nats per token: ``(rows, length + 1)`` to ``(rows,)``."""
    hidden = model.model(input_ids=rows[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden).float()  # (rows, length, vocabulary)
    losses = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    return losses.view(len(rows), -1).mean(1)


def add_gradients(
    model: PreTrainedModel,
    targets: Sequence[nn.Parameter],
    rows: torch.Tensor,
    settings: Settings,
    *,
    step: int,
    pool: ThreadPoolExecutor,
) -> list[float]:
    """Set the gradients of ``targets``, in float32, to those of the model, and return the loss of each row.

    Each of n threads takes every n-th micro-batch and sums its gradients; the sums are then added in the order of the
    threads. On two cores this is twice as fast as one micro-batch after the other on two compute threads.
    """
    params = [param for param in model.parameters() if param.requires_grad]
    length = rows.shape[1] - 1
    parts = torch.split(rows, max(1, settings.micro_tokens // length))
    threads = min(settings.threads, len(parts))

    def work(index: int) -> tuple[list[torch.Tensor], list[tuple[int, list[float]]]]:
        worker.generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + step) * 64 + index)
        total: list[torch.Tensor] = []
        losses = []
        for number in range(index, len(parts), threads):
            worker.losses = []
            part_losses = row_losses(model, parts[number])
            objective = part_losses.mean() + sum(worker.losses)
            gradients = torch.autograd.grad(objective * (len(part_losses) / len(rows)), params)
            total = [a + b for a, b in zip(total, gradients, strict=True)] if total else [g.float() for g in gradients]
            losses.append((number, part_losses.tolist()))
        return total, losses

    results = list(pool.map(work, range(threads)))
    for param, *gradients in zip(targets, *(total for total, _ in results), strict=True):
        param.grad = sum(gradients[1:], gradients[0])
    by_number = sorted(item for _, losses in results for item in losses)
    return [loss for _, part in by_number for loss in part]


def bfloat16_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy with weights in bfloat16; buffers such as the rotary frequencies keep their precision."""
    low = copy.deepcopy(model)
    for param in low.parameters():
        param.data = param.data.bfloat16()
    return low
