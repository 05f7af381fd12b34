"""Timed traces: those that showed something once, and two random ones; `make fuzz` plays others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.comparison import Answer, difference
from tests.fuzz.generator import make_trace
from tests.fuzz.shrink import shrink
from tests.fuzz.trace import FOLDER, Trace

COUNT, SEED = 2, 22  # the second is played on the real command
KEPT = sorted(FOLDER.glob("*.json"))


def fuzz(*arguments: str) -> None:
    """Run the fuzzer in a process of its own, which can be killed if a server hangs."""
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=580)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.timeout(600)
def test_answers_in_random_traces_are_those_of_the_requests_alone(tmp_path: Path) -> None:
    fuzz("--count", str(COUNT), "--seconds", "500", "--seed", str(SEED), "--out", str(tmp_path), "--keep-events")


@pytest.mark.timeout(600)
def test_what_traces_once_showed_does_not_come_back() -> None:
    fuzz(*map(str, KEPT))


def test_a_seed_gives_the_same_trace_and_a_file_holds_all_of_it(tmp_path: Path) -> None:
    trace = make_trace(7)
    path = tmp_path / "trace.json"
    path.write_text(trace.to_json("something"), "utf-8")
    assert Trace.read(path) == trace == make_trace(7)


def test_shrinking_leaves_the_events_that_fail_together_at_their_times() -> None:
    events = [{"after": 1.0, "do": str(number)} for number in range(30)]
    small = shrink(
        Trace("qwen3_moe", 1, {}, events), lambda trace: {"4", "21"} <= {each["do"] for each in trace.events}
    )
    assert small.events == [{"after": 5.0, "do": "4"}, {"after": 17.0, "do": "21"}]


def answer(*chunks: dict[str, object], is_complete: bool = True) -> Answer:
    made = Answer(200, is_complete=is_complete)
    for chunk in chunks:
        made.add({"choices": [{"index": 0, **chunk}]})
    return made


WHOLE = answer({"text": "ab", "logprobs": {"tokens": ["a", "b"]}}, {"text": "c", "logprobs": {"tokens": ["c"]}})


def test_an_answer_is_compared_as_far_as_its_client_has_read_it() -> None:
    part = answer({"text": "ab", "logprobs": {"tokens": ["a", "b"]}}, is_complete=False)
    assert difference(part, WHOLE, is_exact=True) is None
    part.is_complete = True
    assert difference(part, WHOLE, is_exact=True) == "choice 0.text: 'ab', alone 'abc'"


def test_an_adapter_counts_as_the_same_under_the_name_that_it_was_loaded_by() -> None:
    found, alone = (
        Answer(200, {0: {"text": "x", "adapters": [None, {name: 1.0}]}}, is_complete=True) for name in ("mine", "a2")
    )
    assert difference(found, alone, is_exact=True) is not None
    assert difference(found, alone.with_adapter_names({"a2": "mine"}), is_exact=True) is None


def test_an_answer_with_another_token_is_different() -> None:
    other = answer({"text": "abc", "logprobs": {"tokens": ["a", "x", "c"]}})
    assert difference(other, WHOLE, is_exact=True) == "choice 0.logprobs.tokens[1]: 'x', alone 'b'"
