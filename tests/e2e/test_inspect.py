"""The command `greenroom inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.byte_sizes import format_bytes
from server.model.checkpoint.locate import BUNDLED
from tests.e2e.hub import serving_hub
from tests.e2e.processes import run_command, serving

KEYS = {
    "model",
    "architecture",
    "solo_reason",
    "program",
    "source",
    "dtype",
    "trunk_bytes",
    "trunk_format",
    "trunk_fits",
    "refusal",
    "notes",
    "num_unused_tensors",
    "experts",
    "bytes_per_token",
    "prompt_piece",
    "miss",
    "kv_cache",
    "memory",
    "tiers",
    "bandwidth",
    "tokens_per_second",
    "download",
}


def test_inspect_reports_the_sizes_that_serve_logs(tmp_path: Path) -> None:
    budgets = ("--host-expert-memory", "25%", "--device-expert-memory", "2MiB", "--kv-cache-memory", "8MiB")
    budgets += ("--threads", "1")
    inspected = run_command("inspect", "--json", *budgets)
    assert inspected.returncode == 0, inspected.stderr
    report = json.loads(inspected.stdout)
    assert set(report) == KEYS
    assert report["source"] == "checkpoint"
    with serving(*budgets) as server:
        _, _, log = server.interrupt()
    experts, kv, tiers = report["experts"], report["kv_cache"], report["tiers"]
    total = format_bytes(experts["total_bytes"])
    assert f"compute: cpu in {report['dtype']}, threads: 1" in log
    assert f"trunk: {format_bytes(report['trunk_bytes'])} resident" in log
    assert f"experts: {experts['num_experts']} in {experts['num_layers']} layers, {total} on disk" in log
    assert f"host tier: slots for {tiers['host']['slots']} experts" in log
    assert f"device tier: slots for {tiers['device']['slots']} experts" in log
    assert f"{format_bytes(kv['bytes'])} for {kv['num_tokens']} tokens; context {kv['max_model_len']}" in log
    assert all(report["bandwidth"][name] > 0 for name in ("compute_memory", "disk"))
    bounds = report["tokens_per_second"]
    assert 0 < bounds["uniform_routing"] <= bounds["all_in_memory"]


def test_the_table_is_for_people(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((BUNDLED / "config.json").read_bytes())
    inspected = run_command("inspect", str(tmp_path))
    assert inspected.returncode == 0, inspected.stderr
    assert inspected.stderr == ""
    assert f"{tmp_path.name}: Qwen3MoeForCausalLM in" in inspected.stdout
    assert "from its config alone" in inspected.stdout
    assert "96 in 6 layers, 216.0 KiB each" in inspected.stdout


def test_descriptions_in_tensors_of_a_hub_model_are_read(tmp_path: Path) -> None:
    made = Path(__file__).parents[1] / "quantised_by_tools" / "bitsandbytes-nf4-double"
    with serving_hub("somebody/some-model", made) as hub:
        inspected = run_command("inspect", "somebody/some-model", "--json", environment=hub.environment(tmp_path))
    assert inspected.returncode == 0, inspected.stderr
    assert json.loads(inspected.stdout)["experts"]["total_bytes"] == 3 * 8192


def test_a_hub_model_is_looked_up_without_its_weights(tmp_path: Path) -> None:
    with serving_hub("somebody/some-model", BUNDLED) as hub:
        environment = hub.environment(tmp_path)
        inspected = run_command("inspect", "somebody/some-model", "--json", environment=environment)
        assert inspected.returncode == 0, inspected.stderr
        report = json.loads(inspected.stdout)
        assert (report["model"], report["source"]) == ("somebody/some-model", "headers")
        assert report["experts"]["total_bytes"] == 96 * 221184
        assert hub.sent["model.safetensors"] < 1 << 20
        unknown = run_command("inspect", "somebody/other", environment=environment)
    assert unknown.returncode == 1
    assert "the hub has no model somebody/other" in unknown.stderr
    unreachable = run_command("inspect", "somebody/third", environment=environment)
    assert unreachable.returncode == 1
    assert "the hub can't be reached" in unreachable.stderr
    for failed in (unknown, unreachable):
        assert failed.stdout == ""
        assert len(failed.stderr.splitlines()) == 1, failed.stderr


def test_the_first_token_and_the_download_over_a_link_are_predicted() -> None:
    result = run_command("inspect", "--bandwidth", "8Mbit", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    download, total = report["download"], report["trunk_bytes"] + report["experts"]["total_bytes"]
    start = download["start_seconds"]
    assert start > 0
    assert download["complete_seconds"] == pytest.approx(start + total / 1e6)
    one_token = report["trunk_bytes"] + report["bytes_per_token"]["experts"]
    first = download["first_token_seconds"]
    assert first["1"] == pytest.approx(start + one_token / 1e6)
    assert first["1"] < first["32"] < first["512"] <= download["complete_seconds"]


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (("--bandwidth", "fast"), 2, "--bandwidth 'fast' is not a rate; give one such as 100Mbit or 1Gbit"),
        (("./nonesuch",), 1, "there is no folder ./nonesuch"),
        (("--host-expert-memory", "much"), 2, "--host-expert-memory 'much'"),
        (("--port", "1"), 2, "--port"),
    ],
)
def test_failures_are_one_line(arguments: tuple[str, ...], status: int, reason: str) -> None:
    failed = run_command("inspect", *arguments)
    assert failed.returncode == status
    assert reason in failed.stderr
    assert len(failed.stderr.splitlines()) == 1, failed.stderr
    assert failed.stdout == ""


def test_a_budget_that_does_not_fit_is_refused_below_the_report_as_by_serving_and_by_the_doctor() -> None:
    budgets = ("--memory", "345MiB", "--host-expert-memory", "30GiB")
    inspected, served = run_command("inspect", *budgets), run_command("serve", *budgets, "--port", "0")
    examined = run_command("doctor", *budgets, "--port", "0", environment={"FORCE_COLOR": ""})
    assert (inspected.returncode, served.returncode, examined.returncode) == (1, 1, 1)
    (refusal,) = inspected.stderr.splitlines()
    assert refusal.startswith("greenroom: --host-expert-memory 30GiB is 20.2 MiB beside ")
    assert refusal.endswith("MiB at most, or to auto")
    assert served.stderr.splitlines()[-1] == refusal
    (failed,) = [line for line in examined.stdout.splitlines() if line.startswith("fail")]
    assert failed == f"fail  memory plan   {refusal.removeprefix('greenroom: ')}"
    assert "96 in 6 layers, 216.0 KiB each" in inspected.stdout
    assert "does not fit\n  budget         345.0 MiB\n" in inspected.stdout
