"""Contexts that engines keep between rounds and runs of ``benchmarks.compare``."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.comparison import interleaved
from benchmarks.comparison.engine_process import Measurement, Workload
from benchmarks.comparison.plan import Task, select, tasks
from benchmarks.comparison.weights import CacheSizes, Weights
from benchmarks.peers.kept_contexts import KeptContexts


def test_kept_prompts_are_the_same_in_all_rounds_and_begin_longer_ones() -> None:
    short, long = tasks("resident", ["decode"], [2], [], 8, contexts=[1000, 3000], are_kept=True)
    (first, second), (longer, _) = short.prompts(0, 5000), long.prompts(7, 5000)
    assert (first, second) == tuple(short.prompts(1, 5000))
    assert first == longer[:1000] != second


def test_kept_prompts_are_read_once_before_the_first_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    work: list[Workload] = []

    class Engine(nullcontext[Any]):
        about, load_seconds = {"version": "1"}, 0.0

        def measure(self, workload: Workload) -> Measurement:
            work.append(workload)
            return Measurement(1.0, 1, 1.0)

        def peak_bytes(self) -> int:
            return 0

        group_peak_bytes = peak_bytes

    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 1000}))
    monkeypatch.setattr(interleaved, "cache_sizes", lambda *_: CacheSizes([]))
    monkeypatch.setattr(interleaved, "weights_of", lambda *_: Weights(1, 1, 1, 1, 1))
    monkeypatch.setattr(interleaved, "memory_bytes_per_second", lambda _: 1.0)
    setup: Any = SimpleNamespace(model=tmp_path, greenroom="", threads=1, start=lambda *_: (Engine(), tmp_path))
    comparison = interleaved.Comparison(setup, [], select(["llama.cpp"]), retries=0)
    task = Task("decode", 1, 600, 8, is_kept=True)
    comparison.run_group("resident", "bf16", [task], rounds=2)
    after_warm_up = work[len(interleaved.WARM_UP) :]
    assert [workload.new_tokens for workload in after_warm_up] == [1, 8, 8]
    assert all(workload.prompts == task.prompts(0, 1000) for workload in after_warm_up)


def test_longest_kept_beginning_of_a_prompt_is_found(tmp_path: Path) -> None:
    kept, prompt = KeptContexts(tmp_path / "kept", "a-bf16"), [3, 1, 4, 1, 5]
    for ids in ([3], [3, 1, 4], [3, 1, 4, 2], [*prompt, 9]):
        kept.path(ids).touch()
    assert kept.longest(prompt) == 3
    assert KeptContexts(tmp_path / "kept", "b-bf16").longest(prompt) == 0
