"""The command `greenroom replay` on the routing logs of the bundled model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expert_store.policies import POLICIES
from expert_store.routing_log.log import RoutingLogHeader, RoutingLogWriter, read_routing_log
from tests.e2e.processes import run_command
from training.traces import FOLDER

PHASES = (("prefill", "decode"), ("decode",))  # all, and those of decoding
CHAT, MIXED = str(FOLDER / "chat.jsonl.gz"), str(FOLDER / "mixed.jsonl.gz")


def write_trace(path: Path, num_steps: int) -> str:
    with RoutingLogWriter(path, RoutingLogHeader("tiny", {0: 8, 1: 8}, {0: 1 << 20, 1: 1 << 20})) as writer:
        for step in range(num_steps):
            for layer in (0, 1):
                writer.record(layer, [step % 5, 5 + step % 3], "prefill")
    return str(path)


def test_a_table_has_a_row_a_policy_and_ends_with_the_optimum() -> None:
    result = run_command("replay", CHAT, "--sizes", "25%,1MiB,100%", fresh=True)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    leases = read_routing_log(Path(CHAT)).leases
    total, decoding = (sum(len(each.experts) for each in leases if each.phase in phases) for phases in PHASES)
    assert lines[0] == (
        f"chat.jsonl.gz: greenroom-demo, 96 experts in 6 layers, {total} look-ups, {decoding} of them decoding"
    )
    assert lines[1].split() == ["hit", "ratio,", "decode", "25%", "1MiB", "100%"]
    assert lines[2].split() == ["slots", "24", "4", "96"]
    assert [line.split()[0] for line in lines[3:9]] == [*POLICIES, "optimal"]
    rows = {name: [float(x) for x in ratios] for name, *ratios in map(str.split, lines[3:9])}
    assert all(ratio <= best for row in rows.values() for ratio, best in zip(row, rows["optimal"], strict=True))


def test_json_is_one_object_with_every_trace_and_the_mean(tmp_path: Path) -> None:
    plot = tmp_path / "curves.png"
    result = run_command(
        "replay", CHAT, MIXED, "--json", "--policies", "lfru,lru", "--sizes", "25%", "--plot", str(plot)
    )
    assert (result.returncode, result.stderr) == (0, "")
    value = json.loads(result.stdout)
    assert [trace["file"] for trace in value["traces"]] == ["chat.jsonl.gz", "mixed.jsonl.gz"]
    policies = [trace["sizes"][0]["policies"] for trace in value["traces"]]
    assert [list(each) for each in policies] == [["lfru", "lru", "optimal"]] * 2
    chat = policies[0]["lru"]
    assert chat["hit_ratio"]["decode"] == chat["hits"]["decode"] / chat["lookups"]["decode"]
    mean = sum(each["lfru"]["hit_ratio"]["decode"] for each in policies) / 2
    assert value["mean_hit_ratio"]["decode"]["lfru"]["25%"] == mean
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_truncated_log_is_replayed_with_a_warning(tmp_path: Path) -> None:
    path = Path(write_trace(tmp_path / "t.jsonl", 20))
    path.write_bytes(path.read_bytes()[:-3])
    result = run_command("replay", str(path), "--policies", "lru", "--sizes", "50%")
    assert result.returncode == 0
    assert "t.jsonl breaks off after line 40; the lines before are used" in result.stderr
    assert "78 look-ups, 0 of them decoding" in result.stdout
    assert next(line.split()[-1] for line in result.stdout.splitlines() if line.startswith("lru")) == "-"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ((), 2, "the following arguments are required: TRACE; see greenroom replay --help"),
        (("nowhere.jsonl",), 1, "cannot read the routing log nowhere.jsonl: No such file or directory"),
        ((__file__,), 1, "test_replay.py line 1 is not JSON"),
        ((CHAT, "--policies", "lru,fifo"), 2, "--policies: 'fifo' is not a cache policy; choose from lru, lfru,"),
        ((CHAT, "--sizes", "10%,lots"), 2, "--sizes: 'lots' is not a size; write it as 6GiB, or as a share up to 100%"),
        ((CHAT, "--sizes", "auto"), 2, "--sizes: 'auto' is not a size"),
        ((CHAT, "--sizes", "1KB"), 2, "--sizes 1KB of greenroom-demo: 0 slots leave none for the experts of layer 0"),
        ((CHAT, "--sizes", "50%", "--plot", "/nowhere/x.png"), 1, "No such file or directory: '/nowhere/x.png'"),
        ((CHAT, "--sizes", "50%", "--plot", "x.abc"), 1, "--plot x.abc: Format 'abc' is not supported"),
    ],
)
def test_wrong_usage_is_one_line_that_says_what_to_do(arguments: tuple[str, ...], status: int, message: str) -> None:
    result = run_command("replay", *arguments)
    assert (result.returncode, result.stdout) == (status, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
