"""Muon for stacks of matrices: momentum orthogonalised by a Newton-Schulz iteration (Jordan et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
MATRICES_PER_TASK = 12


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Return about the nearest semi-orthogonal matrix for each of ``(count, rows, columns)``."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: torch.Tensor = matrices.mT if tall else matrices
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon optimiser for parameters ``(rows, columns)`` or ``(experts, rows, columns)``.

    A parameter with the attribute ``muon_blocks`` of ``n`` is ``n`` stacked matrices, such as the two of a fused
    ``gate_up_proj``; each is updated on its own.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
        *,
        pool: ThreadPoolExecutor,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.pool, self.dtype = pool, dtype  # dtype is that of the iteration
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update every parameter; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            stacks: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for param in group["params"]:
                update = self._with_momentum(param, group["momentum"])
                rows, columns = param.shape[-2] // getattr(param, "muon_blocks", 1), param.shape[-1]
                pair = param.view(-1, rows, columns), update.view(-1, rows, columns)
                stacks.setdefault((rows, columns), []).append(pair)
            for (rows, columns), pairs in stacks.items():
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                sizes = [len(update) for _, update in pairs]
                stack = torch.cat([update for _, update in pairs]).to(self.dtype)
                updates = self._orthogonalize(stack).split_with_sizes(sizes)
                for (param, _), update in zip(pairs, updates, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.sub_(update, alpha=scale)

    def _with_momentum(self, param: torch.Tensor, momentum: float) -> torch.Tensor:
        """Return the gradient with Nesterov momentum: moved towards its running mean."""
        gradient = param.grad
        assert gradient is not None
        mean = self.state[param].setdefault("momentum", torch.zeros_like(param))
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)

    def _orthogonalize(self, stack: torch.Tensor) -> torch.Tensor:
        parts = torch.split(stack, MATRICES_PER_TASK)
        return torch.cat(list(self.pool.map(orthogonalize, parts)))
