"""Counters and latencies of the engine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from server.engine.histogram import Histogram

StepPhase = Literal["prefill", "decode"]  # decode: one token of each sequence
STEP_PHASES: tuple[StepPhase, ...] = ("prefill", "decode")
FINISHED_REASONS = ("stop", "length", "abort", "error", "deadline")  # abort: the client left

# Bounds in seconds. They are vLLM's, so that both can be compared, and smaller ones for small models.
FIRST_TOKEN_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
INTER_TOKEN_BOUNDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
REQUEST_BOUNDS = (
    0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip


@dataclass
class Latencies:
    """Latencies of requests in seconds; each choice of a request counts by itself.

    Time in the queue ends with the first step. ``request`` counts only requests that ended with ``stop`` or ``length``,
    because cancelled and failed ones would look fast.
    """

    queue: Histogram = field(default_factory=lambda: Histogram(REQUEST_BOUNDS))
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS))  # from submission
    inter_token: Histogram = field(default_factory=lambda: Histogram(INTER_TOKEN_BOUNDS))
    request: Histogram = field(default_factory=lambda: Histogram(REQUEST_BOUNDS))  # from submission to the last event


@dataclass
class EngineStatistics:
    """Counters since the start, and gauges. Each is written by one thread and read without a lock."""

    is_alive: bool = False  # whether the engine's thread runs
    num_running: int = 0
    num_waiting: int = 0
    num_held: int = 0  # running requests that wait for their slice
    num_slices: int = 0  # time slices of decode groups
    stall_share: float = 0.0  # part of recent decode time in which compute waited for experts, 0 to 1
    kv_cache_usage: float = 0.0  # 0 to 1
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    prefill_passes: int = 0  # passes of prompts that have ended with a result
    prefill_pass_saved_bytes: int = 0  # of experts that steps instead of these would have read again, an estimate
    prefix_cache_queries: int = 0  # prompt tokens looked up in the KV cache
    prefix_cache_hits: int = 0  # prompt tokens found there
    num_refused: int = 0  # queue was full; written by the event loop, all others by the engine's thread
    finished: Counter[str] = field(default_factory=Counter)  # requests by reason
    latencies: Latencies = field(default_factory=Latencies)
    steps: Counter[StepPhase] = field(default_factory=Counter)
    step_seconds: dict[StepPhase, float] = field(default_factory=lambda: dict.fromkeys(STEP_PHASES, 0.0))

    def count_step(self, phase: StepPhase, seconds: float) -> None:
        self.steps[phase] += 1
        self.step_seconds[phase] += seconds
