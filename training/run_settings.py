"""Settings of a training run, and the schedule of its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from training.errors import RunError

WARM_UP = 30  # steps


@dataclass(frozen=True)
class Settings:
    """Settings of a run; the command line has the same defaults."""

    dense: bool = False
    tokens: int = 14_000_000
    batch_tokens: int = 12_288
    length: int = 256
    final_length: int = 1024
    final_share: float = 0.1
    micro_tokens: int = 2048
    decay: float = 0.5
    muon_lr: float = 0.02
    lr: float = 3e-3
    balance_weight: float = 0.01
    z_weight: float = 1e-3
    repeat: dict[str, int] = field(default_factory=lambda: {"chat": 2})
    eval_every: int = 100
    save_minutes: float = 4
    seed: int = 1
    start: str = ""  # folder of an exported model; empty to train from scratch
    bfloat16: bool = False  # compute gradients and Muon's iteration in bfloat16; weights stay in float32
    threads: int = field(default_factory=torch.get_num_threads)

    def __post_init__(self) -> None:
        for length in (self.length, self.final_length):
            if self.batch_tokens % length:
                raise RunError(f"a batch of {self.batch_tokens} tokens is not a multiple of rows of {length}")

    @property
    def short_tokens(self) -> int:
        """Tokens that are trained in short rows, in complete batches; the rest is trained in long rows."""
        wanted = (1 - self.final_share) * self.tokens
        return math.ceil(wanted / self.batch_tokens) * self.batch_tokens


def learning_rate_scale(done: int, settings: Settings) -> float:
    """Return the learning rate relative to its peak, after ``done`` tokens."""
    warm_up = min(1.0, (done / settings.batch_tokens + 1) / WARM_UP)
    left = (settings.tokens - done) / (settings.decay * settings.tokens)
    return warm_up * max(0.03, min(1.0, left))
