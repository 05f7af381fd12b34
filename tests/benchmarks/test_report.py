"""The report of ``benchmarks.compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.compare import merged
from benchmarks.comparison.chart import COLORS, draw
from benchmarks.comparison.engine_process import decode_speed
from benchmarks.comparison.markdown_page import BEGIN, END, write_page
from benchmarks.comparison.plan import Task, select, tasks
from benchmarks.comparison.report import make_rows, slower_rows
from benchmarks.exactness import mean_divergence
from benchmarks.load_generator import Timing


def entry(engine: str, speeds: list[float], **more: Any) -> dict[str, Any]:
    fields = {"condition": "resident", "weights": "bf16", "format": "bf16", "kind": "decode", "streams": 1}
    fields |= {"prompt_tokens": 64, "step_bytes": 500, "block_bytes": 100, "peak_bytes": 1 << 30}
    samples = [{"first_token_seconds": 1.0, "tokens": 10, "seconds": 10 / speed, "bytes_read": 220} for speed in speeds]
    return fields | {"engine": engine, "is_greenroom": engine == "greenroom", "samples": samples} | more


def result(*entries: dict[str, Any]) -> dict[str, Any]:
    machine = {"cpu": "a CPU", "family": "1", "model": "2", "cores": 2, "memory_bytes": 1 << 30, "flags": ["avx2"]}
    return {
        "date": "2026-11-26",
        "model": "M",
        "threads": 2,
        "machine": machine,
        "versions": {"greenroom": "1"},
        "bandwidth": {"memory": [9000.0, 10000.0], "disk": {"100": [30.0, 40.0, 50.0]}},
        "entries": list(entries),
        "skipped": [],
    }


def test_decoding_after_long_prompts_is_a_task_of_its_own() -> None:
    work = tasks("resident", ["decode"], [1], [], 8, contexts=[64, 12_000])
    assert [len(task.prompts(0, 1000)[0]) for task in work] == [64, 12_000]
    rows = make_rows(result(*(entry("greenroom", [5], prompt_tokens=task.prompt_tokens) for task in work)))
    assert [row.task for row in rows] == ["1 stream", "1 stream after 12,000"]


def test_ratio_compares_medians_with_the_best_peer() -> None:
    rows = make_rows(result(entry("greenroom", [5, 9, 6]), entry("a", [3, 3, 100]), entry("b", [12, 12, 1])))
    assert [round(row.ratio, 3) for row in rows] == [0.5, 0.25, 1.0]


def test_first_tokens_are_shown_in_seconds_and_compared_as_speeds() -> None:
    slow, fast = entry("greenroom", [1], kind="prompt"), entry("a", [1], kind="prompt")
    fast["samples"][0]["first_token_seconds"] = 0.5
    rows = make_rows(result(slow, fast))
    assert [(row.median, row.ratio) for row in rows] == [(1.0, 0.5), (0.5, 1.0)]


def test_memory_share_counts_the_weights_of_each_step() -> None:
    (row,) = make_rows(result(entry("greenroom", [16], streams=8)))
    assert row.memory_share == pytest.approx(2 * 500 / 10000)


def test_disk_share_counts_bytes_over_the_whole_time() -> None:
    (row,) = make_rows(result(entry("greenroom", [1], condition="half")))
    assert row.disk_share == pytest.approx(220 / 11 / 40)


def test_slower_rows_are_greenrooms_only_slowest_first() -> None:
    rows = make_rows(
        result(
            entry("greenroom", [5]),
            entry("a", [10]),
            entry("greenroom", [1], streams=8),
            entry("a", [10], streams=8),
            entry("greenroom", [20], weights="int8"),
            entry("a", [10], weights="int8"),
        )
    )
    assert [row.task for row in slower_rows(rows)] == ["8 streams", "1 stream"]


def test_engines_are_compared_within_their_run_only() -> None:
    first = result(entry("greenroom", [5]), entry("a", [10]))
    second = result(entry("greenroom", [5]), entry("b", [5]))
    assert [row.ratio for row in make_rows(merged([first, second]))] == [0.5, 1.0, 1.0, 1.0]


def test_page_keeps_the_text_around_the_results(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    found = result(entry("greenroom", [5]), entry("a", [10]))
    write_page(page, found, make_rows(found))
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "0.50 of the best peer's speed" in text


def test_picture_has_a_bar_in_each_engines_colour(tmp_path: Path) -> None:
    found = result(entry("greenroom", [50.0]), entry("llama.cpp", [40.0], condition="half"))
    draw(tmp_path / "picture.png", found, make_rows(found))
    with Image.open(tmp_path / "picture.png") as picture:
        colours = {
            f"#{red:02x}{green:02x}{blue:02x}" for _, (red, green, blue) in picture.convert("RGB").getcolors(1 << 16)
        }
    assert {COLORS["greenroom"], COLORS["llama.cpp"]} <= colours


def test_page_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n")
    with pytest.raises(ValueError, match="no markers"):
        write_page(page, result(), [])


def test_decode_speed_starts_when_all_streams_have_a_token() -> None:
    early = Timing(0.0, [1.0, 2.0, 3.0, 4.0], 4)
    late = Timing(0.0, [2.0, 3.0, 4.0, 5.0], 8)  # two tokens per chunk
    assert decode_speed([early, late]) == {"first_token_seconds": 2.0, "tokens": 8, "seconds": 3.0}


def test_prompts_differ_by_round_but_not_by_engine() -> None:
    task = Task("decode", 2, 8, 4)
    assert task.prompts(1, 1000) == task.prompts(1, 1000)
    assert task.prompts(1, 1000) != task.prompts(2, 1000)


def test_only_accepts_words_of_every_kind() -> None:
    chosen = select(["int8", "half", "llama.cpp"])
    assert (list(chosen.conditions), list(chosen.formats), list(chosen.engines)) == (["half"], ["int8"], ["llama.cpp"])
    assert list(chosen.kinds) == ["decode", "prompt"]


def test_unknown_word_of_only_is_refused() -> None:
    with pytest.raises(ValueError, match="int7"):
        select(["int7"])


def test_divergence_is_of_the_distributions() -> None:
    expected, actual = np.log([[0.5, 0.5]]) + 3, np.log([[0.25, 0.75]]).astype(np.float32)
    assert mean_divergence(expected, actual) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
