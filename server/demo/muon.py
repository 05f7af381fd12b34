"""Muon for stacks of matrices: momentum, made orthogonal by a Newton-Schulz iteration (Jordan et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Replace each matrix of ``(count, rows, columns)`` by about the nearest semi-orthogonal one."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon over parameters ``(rows, columns)`` or ``(experts, rows, columns)``.

    A parameter whose attribute ``muon_blocks`` is ``n`` holds ``n`` matrices one above the other (a fused
    ``gate_up_proj`` holds two); each is treated alone.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
        pool: ThreadPoolExecutor,
    ):
        self.pool = pool
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            stacks: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for param in group["params"]:
                buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
                buffer.lerp_(param.grad, 1 - group["momentum"])
                update = param.grad.lerp(buffer, group["momentum"])
                blocks = getattr(param, "muon_blocks", 1)
                rows, columns = param.shape[-2] // blocks, param.shape[-1]
                stacks.setdefault((rows, columns), []).append(
                    (param.view(-1, rows, columns), update.view(-1, rows, columns))
                )
            for (rows, columns), pairs in stacks.items():
                stack = torch.cat([update for _, update in pairs])
                updates = torch.cat(list(self.pool.map(orthogonalize, stack.split(12))))
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                offset = 0
                for param, update in pairs:
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.sub_(updates[offset : offset + len(update)], alpha=scale)
                    offset += len(update)
