"""What the engine counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

StepPhase = Literal["prefill", "decode"]  # decode: one token of each sequence, and nothing else
STEP_PHASES: tuple[StepPhase, ...] = ("prefill", "decode")


@dataclass
class EngineStatistics:
    """Counters since the start, and what is going on now; written by the engine thread, read without a lock."""

    num_running: int = 0
    num_waiting: int = 0
    num_held: int = 0  # of those that run, the ones that wait for their turn on stage
    num_turns: int = 0
    stall_share: float = 0.0  # of recent decode time, 0 to 1
    kv_cache_usage: float = 0.0  # 0 to 1
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    prefix_cache_queries: int = 0  # tokens of prompts that were looked for in the KV cache
    prefix_cache_hits: int = 0  # of these, the ones that were there
    finished: Counter[str] = field(default_factory=Counter)  # requests by reason
    steps: Counter[StepPhase] = field(default_factory=Counter)
    step_seconds: dict[StepPhase, float] = field(default_factory=lambda: dict.fromkeys(STEP_PHASES, 0.0))

    def count_step(self, phase: StepPhase, seconds: float) -> None:
        self.steps[phase] += 1
        self.step_seconds[phase] += seconds
