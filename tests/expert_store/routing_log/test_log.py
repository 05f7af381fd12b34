"""Traces are written, read again, and refused when they are damaged."""

from __future__ import annotations

import gzip
import json
import logging
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_store.errors import RoutingLogError
from expert_store.routing_log.log import (
    LEASES_PER_FLUSH,
    LoggedLease,
    RoutingLog,
    RoutingLogHeader,
    RoutingLogWriter,
    read_routing_log,
)

HEADER = RoutingLogHeader("tiny", {0: 4, 2: 8}, {0: 4096, 2: 8192})
FIRST = json.dumps(
    {
        "format": "greenroom-trace",
        "version": 1,
        "model": "tiny",
        "layers": {"0": 4, "2": 8},
        "slot_bytes": {"0": 4096, "2": 8192},
    }
)
leases = st.builds(
    lambda layer, numbers, phase: LoggedLease(layer, tuple(n % HEADER.layers[layer] for n in numbers), *phase),
    st.sampled_from([0, 2]),
    st.lists(st.integers(0, 3), unique=True),
    st.sampled_from([("prefill", False), ("prefill", True), ("decode", False)]),
)


def write(path: Path, leases: list[LoggedLease]) -> Path:
    with RoutingLogWriter(path, HEADER) as writer:
        for lease in leases:
            writer.record(lease.layer, lease.experts, lease.phase, is_passing=lease.is_passing)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
@given(recorded=st.lists(leases))
def test_what_is_written_is_read_again(
    name: str, recorded: list[LoggedLease], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("routing_log") / name, recorded)
    assert read_routing_log(path) == RoutingLog(HEADER, recorded)


def test_the_form_of_a_line_is_that_of_the_documentation(tmp_path: Path) -> None:
    leases = [LoggedLease(2, (3, 7), "decode"), LoggedLease(0, (), "prefill"), LoggedLease(0, (1,), "prefill", True)]
    path = write(tmp_path / "t.jsonl", leases)
    assert path.read_text().splitlines() == [FIRST, '[2,[3,7],"d"]', '[0,[],"p"]', '[0,[1],"l"]']


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[0,[1]", "line 3 is not JSON"),
        ("\udcff", "line 3 is not JSON"),
        ("[" * 100_000, "line 3 is not JSON"),
        ("{}", 'line 3 is not a lease such as \\[0,\\[3,7\\],"d"\\]'),
        ('[0,[1],"x"]', "line 3 is not a lease"),
        ('[true,[1],"d"]', "line 3 is not a lease"),
        ('[0,[1],"d",0]', "line 3 is not a lease"),
        ('[1,[1],"d"]', "line 3: the model has no MoE layer 1"),
        ('[0,[4],"d"]', "line 3: layer 0 has no expert 4, only 0 to 3"),
        ('[0,[-1],"d"]', "line 3: layer 0 has no expert -1"),
        ('[0,["a"],"d"]', "line 3: layer 0 has no expert 'a'"),
        ('[0,[1,1],"d"]', "line 3: an expert is named twice"),
    ],
)
def test_a_damaged_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f'{FIRST}\n[0,[1],"d"]\n{line}\n', encoding="utf-8", errors="surrogateescape")
    with pytest.raises(RoutingLogError, match=f"t.jsonl {message}"):
        read_routing_log(path)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("", "t.jsonl is empty"),
        ("hello\n", "t.jsonl line 1 is not JSON"),
        ("[]\n", "t.jsonl is not a routing log: its first line lacks the format 'greenroom-trace'"),
        (FIRST.replace("greenroom", "blueroom") + "\n", "is not a routing log"),
        (
            FIRST.replace('"version": 1', '"version": 2') + "\n",
            "is a routing log of version 2; this program reads version 1",
        ),
        (FIRST.replace('"tiny"', "7") + "\n", "line 1: model 7 is not a name"),
        (FIRST.replace('"2": 8}', '"2": 0}') + "\n", "line 1: 'layers' must give a positive integer"),
        (FIRST.replace('"2": 8}', '"two": 8}') + "\n", "line 1: 'layers' must give a positive integer"),
        (FIRST.replace('"2": 8192', '"3": 8192') + "\n", "'layers' and 'slot_bytes' must name the same layers"),
    ],
)
def test_a_damaged_header_is_refused(first: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(first)
    with pytest.raises(RoutingLogError, match=message):
        read_routing_log(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_a_file_that_breaks_off_anywhere_is_read_as_far_as_it_is_whole(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw = random.Random(0)
    recorded = [LoggedLease(2, tuple(draw.sample(range(8), 2)), "decode") for _ in range(2 * LEASES_PER_FLUSH)]
    path = write(tmp_path / name, recorded)
    whole = path.read_bytes()
    for size in range(len(whole) // 2, len(whole), 101):
        path.write_bytes(whole[:size])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            leases = read_routing_log(path).leases
        assert leases == recorded[: len(leases)]
        assert len(leases) >= LEASES_PER_FLUSH * (size > len(whole) * 0.6)
        # A plain file that is cut at the end of a line is a whole one.
        assert f"breaks off after line {len(leases) + 1}" in caplog.text or whole[:size].endswith(b"\n")


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_a_writer_that_is_killed_leaves_most_of_what_it_recorded(name: str, tmp_path: Path) -> None:
    writer = RoutingLogWriter(tmp_path / name, HEADER)
    try:
        assert read_routing_log(tmp_path / name) == RoutingLog(HEADER, [])
        for _ in range(LEASES_PER_FLUSH):
            writer.record(0, (1, 2), "decode")
        assert len(read_routing_log(tmp_path / name).leases) == LEASES_PER_FLUSH
    finally:
        writer.close()


def test_flipped_bytes_in_a_compressed_trace_are_found(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl.gz", [LoggedLease(2, (n % 8,), "decode") for n in range(1000)])
    damaged = bytearray(path.read_bytes())
    damaged[-6] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(RoutingLogError, match=r"cannot read the routing log .* incorrect data check"):
        read_routing_log(path)
    path.write_bytes(gzip.compress(b"x")[:12] + b"\xff" * 40)
    with pytest.raises(RoutingLogError, match="cannot read the routing log"):
        read_routing_log(path)


def test_files_that_can_not_be_opened_are_named(tmp_path: Path) -> None:
    with pytest.raises(RoutingLogError, match=r"cannot read the routing log .*nowhere.jsonl: No such file"):
        read_routing_log(tmp_path / "nowhere.jsonl")
    with pytest.raises(RoutingLogError, match=r"cannot write the routing log .*: No such file or directory"):
        RoutingLogWriter(tmp_path / "no" / "where.jsonl", HEADER)


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RoutingLogWriter(tmp_path / "t.jsonl.gz", HEADER)

    def full(_: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._file, "write", full)
    with pytest.raises(RoutingLogError, match=r"cannot write the routing log .*t.jsonl.gz: No space left on device"):
        writer.record(0, (1,), "decode")
    monkeypatch.undo()
    writer.close()
