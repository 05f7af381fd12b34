"""Findings of each check, and of checks that can not read something."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import psutil
import pytest
import torch

from server.doctor import disk, environment, memory, processor
from server.doctor.finding import Finding
from server.doctor.model import check_model
from server.doctor.report import as_object, serve_command
from server.inspection import memory_fit
from server.kernels.native import available
from server.kernels.native.available import Availability
from server.kernels.native.library import LEVELS
from server.memory.control_group import MemoryLimit
from server.settings import ServeSettings
from tests.checkpoints import make_checkpoint


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores with two threads each; this process may use four threads."""
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(processor, "processor_limit", lambda: None)


@pytest.mark.usefixtures("eight_cores")
def test_thread_counts_other_than_the_usable_cores_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    right = processor.check_cores(4)
    assert (right.level, right.flags) == ("ok", ())
    assert right.message == "8 cores, 16 hardware threads, 4 usable by this process; 4 compute threads"
    many = processor.check_cores(8)
    assert (many.level, many.flags) == ("warn", ("--threads 4",))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    few = processor.check_cores(1)
    assert (few.level, few.advice, few.flags) == ("warn", "OMP_NUM_THREADS is 1", ("--threads 4",))


@pytest.mark.usefixtures("eight_cores")
def test_a_quota_limits_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "processor_limit", lambda: 2.5)
    found = processor.check_cores(None if torch.get_num_threads() > 2 else 4)
    assert found.flags == ("--threads 2",)
    assert "4 usable by this process with a CPU quota of 2.5" in found.message


def test_instructions_are_reported_or_unknown(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert f"unknown, as {cpuinfo} can't be read; bfloat16 is " in processor.check_instructions(cpuinfo).message
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu avx2 avx512f\n")
    found = processor.check_instructions(cpuinfo)
    assert found.level == "ok"
    assert found.message.startswith("AVX2, AVX-512; missing: AVX-512 BF16, AMX BF16; bfloat16 is ")
    cpuinfo.write_text("flags : sse\n")
    assert processor.check_instructions(cpuinfo).level == "warn"


def test_kernels_are_reported_with_levels_missing_from_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Availability(("portable", "avx2"), ("avx512_bf16",), None)
    for module in (available, processor):
        monkeypatch.setattr(module, "availability", lambda: found)
    assert processor.check_kernels("auto") == Finding("kernels", "ok", "avx2; not in this build: avx512_bf16")
    lower = "portable, set by --kernels; this CPU can run avx2; not in this build: avx512_bf16"
    assert processor.check_kernels("portable") == Finding("kernels", "ok", lower)
    refused = processor.check_kernels("avx512")
    assert (refused.level, refused.advice) == ("fail", "choose auto, portable, avx2 or off")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("auto", "avx512_bf16; this CPU can also run amx, whose speed is unknown: try --kernels amx"),
        ("avx512_bf16", "avx512_bf16, set by --kernels"),
        ("amx", "amx, set by --kernels; auto is avx512_bf16"),
    ],
)
def test_amx_is_reported_and_never_urged(wanted: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (available, processor):
        monkeypatch.setattr(module, "availability", lambda: Availability(LEVELS, (), None))
    assert processor.check_kernels(wanted) == Finding("kernels", "ok", message)


def test_missing_kernels_are_warned_of_with_their_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (available, processor):
        monkeypatch.setattr(module, "availability", lambda: Availability((), LEVELS, "pip found no C++ compiler"))
    assert processor.check_kernels("auto") == Finding(
        "kernels",
        "warn",
        "no native kernels: pip found no C++ compiler",
        "install g++ and reinstall; without, decoding is about six times slower",
    )
    assert processor.check_kernels("off").level == "ok"


def test_memory_reports_the_control_group_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: MemoryLimit(3 << 30, 1 << 30))
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 30)
    found = memory.check_memory()
    assert found.level == "warn"
    assert found.message.startswith("1.0 GiB available of ")
    assert "control group limit 3.0 GiB, 1.0 GiB of it used" in found.message


@pytest.mark.parametrize(
    ("asked", "level", "message"),
    [
        ("auto", "ok", "12.0 GiB for the server and its child processes, from --memory auto"),
        ("2GiB", "ok", "2.0 GiB for the server and its child processes, from --memory 2GiB; auto would be 12.0 GiB"),
        (
            "14GiB",
            "warn",
            "14.0 GiB for the server and its child processes, from --memory 14GiB; auto would be 12.0 GiB",
        ),
        (
            "90GiB",
            "warn",
            "12.0 GiB for the server and its child processes, from --memory 90GiB, which is more than is available",
        ),
    ],
)
def test_budget_is_reported_beside_the_automatic_one(
    asked: str, level: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = {"auto": 12 << 30, "2GiB": 2 << 30, "14GiB": 14 << 30, "90GiB": 12 << 30}
    monkeypatch.setattr(memory, "host_budget", lambda settings: budgets[str(settings.memory)])
    found = memory.check_budget(ServeSettings(memory=asked))
    assert (found.level, found.message) == (level, message)


@pytest.mark.parametrize(
    ("text", "level", "message"),
    [
        ("always [madvise] never\n", "ok", "madvise (transparent)"),
        ("always madvise [never]\n", "warn", "never (transparent)"),
        (None, "ok", "can't be read: No such file or directory"),
    ],
)
def test_huge_pages(text: str | None, level: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "enabled"
    if text is not None:
        path.write_text(text)
    found = memory.check_huge_pages(path)
    assert found.level == level
    assert message in found.message


def test_few_open_files_are_warned_of_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 524288))
    found = memory.check_open_files()
    assert found.level == "warn"
    assert found.advice is not None
    assert found.advice.endswith("ulimit -n 524288")


def test_a_package_out_of_range_fails_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.check_versions().level == "ok"
    monkeypatch.setattr(environment, "version", lambda name: "9.9" if name == "transformers" else "100")
    found = environment.check_versions()
    assert found.level == "fail"
    assert "transformers is 9.9" in found.message
    assert found.advice is not None
    assert found.advice.startswith("pip install '")
    assert "'transformers<" in found.advice


def test_a_driver_without_a_torch_for_it_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    driver = tmp_path / "version"
    assert environment.check_devices(driver).level == "ok"
    driver.write_text("NVRM version: NVIDIA UNIX Open Kernel Module  570.1\nGCC version: 12\n")
    found = environment.check_devices(driver)
    assert found.level == "warn"
    assert "NVIDIA UNIX Open Kernel Module  570.1" in found.message


def test_a_token_is_reported_but_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "get_token", lambda: "hf_secret")
    found = environment.check_hub()
    assert found.message.endswith("token found")
    assert "secret" not in str(found)
    monkeypatch.setattr(environment, "get_token", lambda: None)
    assert "no token" in environment.check_hub().message


def test_a_port_in_use_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = environment.check_port("127.0.0.1", taken.getsockname()[1])
    assert found.level == "fail"
    assert "Address already in use" in found.message
    assert environment.check_port("127.0.0.1", 0).message == "127.0.0.1 has free ports"


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "measure_disk", lambda catalog: 2e9)


@pytest.mark.usefixtures("instant")
def test_a_disk_is_measured_before_the_model_folder_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = disk.check_disk(tmp_path / "not" / "yet", None, 10**7)
    assert found.message.startswith(f"{tmp_path}/not/yet: ")
    assert "2.00 GB/s" in found.message
    assert found.message.endswith("5.0 ms to read the experts of a token if none is in memory")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(disk, "takes_direct_reads", lambda _: False)
    indirect = disk.check_disk(tmp_path, None, 10**7)
    assert indirect.level == "warn"
    assert "through the page cache" in indirect.message


def test_a_disk_that_can_not_be_written_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("server.inspection.bandwidth.TemporaryDirectory", refuse)
    found = disk.check_disk(tmp_path, None, 1)
    assert found.level == "warn"
    assert found.message.endswith("its speed can't be measured: Permission denied")


@pytest.mark.usefixtures("instant")
def test_a_model_is_reported_with_its_layers_its_disk_and_its_memory_plan(tmp_path: Path) -> None:
    folder = make_checkpoint("mixtral", tmp_path / "tiny")
    model, layers, where, plan = check_model(str(folder), ServeSettings(host_expert_memory="50%"))
    assert (model.level, layers.level, where.level, plan.level) == ("ok", "ok", "ok", "ok")
    assert model.message.startswith("tiny: MixtralForCausalLM, trunk ")
    assert layers.message == "native kernels run all 3 layers"
    assert where.message.startswith(f"{folder}: ")
    assert plan.message.startswith("9 of 18 experts (50%) in ")
    assert plan.message.endswith("context 256")


@pytest.mark.usefixtures("instant")
def test_a_model_that_does_not_fit_fails_with_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint("mixtral", tmp_path)
    monkeypatch.setattr(memory_fit, "host_budget", lambda _: 1000)
    *_, plan = check_model(str(folder), ServeSettings(dtype="float32"))
    assert (plan.level, plan.advice) == ("fail", "try --dtype bfloat16")


def test_a_folder_without_a_model_fails_as_serving_does(tmp_path: Path) -> None:
    (found,) = check_model(str(tmp_path), ServeSettings())
    assert found.level == "fail"
    assert "has no config.json" in found.message


def test_the_command_has_the_given_and_the_advised_flags() -> None:
    findings = [Finding("cores", "warn", "", "slow", ("--threads 4",)), Finding("port", "fail", "")]
    assert serve_command("a b", ["--port", "1"], findings) == "greenroom serve 'a b' --port 1 --threads 4"
    assert serve_command(None, ["--threads", "8"], findings) == "greenroom serve --threads 8"
    report = as_object(findings, "x")
    assert report["can_serve"] is False
    assert json.loads(json.dumps(report))["checks"][0]["flags"] == ["--threads 4"]
