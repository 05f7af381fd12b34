"""`greenroom adapter check`, with the bundled model."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from expert_store import CheckpointError
from server.cli import adapter
from server.loading import check_adapter
from server.loading.load_model import load_model
from tests.adapters import change_config, write_adapter
from tests.e2e.processes import run_command
from tests.gates import write_mixture

HIDDEN = 192


def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_command("adapter", "check", *map(os.fspath, arguments))


@pytest.mark.slow
def test_an_adapter_that_fits_is_described(tmp_path: Path) -> None:
    write_adapter(tmp_path / "law", num_layers=2, inputs=HIDDEN)
    result = run_command("adapter", "check", str(tmp_path / "law"), fresh=True)
    assert (result.returncode, result.stderr) == (0, "")
    lines = dict(line.split(":", 1) for line in result.stdout.splitlines())
    assert {name: text.strip() for name, text in lines.items()} == {
        "adapter": str(tmp_path / "law"),
        "model": "greenroom-demo",
        "tensors": "4 of 4 applied, 12.0 KiB",
        "ranks": "4 (2 matrices)",
        "targets": "q_proj (2)",
        "memory": "1.0 MiB, 1 page of 1.0 MiB",
    }


@pytest.mark.slow
def test_an_adapter_that_does_not_fit_is_refused_with_its_problems(tmp_path: Path) -> None:
    write_adapter(tmp_path / "law", num_layers=50, inputs=HIDDEN)
    result = check(tmp_path / "law")
    assert result.returncode == 1
    assert "problem: the model has no layer model.layers.10.self_attn.q_proj" in result.stdout
    assert "of 100 tensors fit the model" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_folder_without_an_adapter_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    write_adapter(tmp_path / "law")
    change_config(tmp_path / "law", r=0)
    result = check(tmp_path / "law")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("greenroom: ")
    assert result.stderr.endswith("'r' is 0; ranks from 1 to 1024 are supported\n")
    (tmp_path / "empty").mkdir()
    result = check(tmp_path / "empty")
    assert result.stderr.endswith("has no adapter_config.json; give a folder that PEFT has written\n")


def test_a_folder_of_adapters_and_further_paths_are_checked_with_one_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[object] = []
    for set_up in ("set_up_logging", "set_up_torch"):  # of the whole process
        monkeypatch.setattr(adapter, set_up, lambda *_: None)
    monkeypatch.setattr(check_adapter, "load_model", lambda *given: loads.append(given) or load_model(*given))
    write_adapter(tmp_path / "all" / "law", inputs=HIDDEN)
    write_adapter(tmp_path / "all" / "narrow", inputs=31)
    write_adapter(tmp_path / "code", inputs=HIDDEN)
    parser = argparse.ArgumentParser()
    adapter.add_arguments(parser)
    arguments = parser.parse_args(["check", *(str(tmp_path / name) for name in ("all", "code", "none"))])
    assert adapter.run(arguments) == 1
    output, errors = capsys.readouterr()
    checked = [line.removeprefix("adapter: ") for line in output.splitlines() if line.startswith("adapter:")]
    assert checked == [str(tmp_path / name) for name in ("all/law", "all/narrow", "code")]
    assert output.endswith("\n2 of 4 adapters can be served\n")
    assert [line.partition(" tensors")[0] for line in errors.splitlines()] == [
        f"greenroom: {tmp_path}/all/narrow: 0 of 2",
        f"greenroom: {tmp_path}/none can't be opened: No such file or directory",
    ]
    assert len(loads) == 1


@pytest.mark.slow
def test_a_mixture_that_fits_is_described(tmp_path: Path) -> None:
    write_mixture(tmp_path / "mix", {"law": 1.0, "code": 2.0}, inputs=HIDDEN)
    result = check(tmp_path / "mix")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[2:] == [
        "gate:     the best 1 of 2 adapters for each token and layer",
        "adapter:  law, 2 tensors of rank 4, 6.0 KiB",
        "adapter:  code, 2 tensors of rank 4, 6.0 KiB",
        "memory:   2.0 MiB, and 1.5 KiB for the gate",
    ]


@pytest.mark.slow
def test_a_mixture_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_mixture(tmp_path / "mix", {"law": 1.0}, inputs=HIDDEN, greenroom_base="77aa")
    result = check(tmp_path / "mix")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "trained for a model with the fingerprint 77aa" in result.stderr


@pytest.mark.slow
def test_another_action_is_wrong_usage(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "greenroom", "adapter", "train", os.fspath(tmp_path)]
    assert subprocess.run(command, capture_output=True, timeout=110, check=False).returncode == 2


def test_a_model_that_cannot_be_read_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_model(*_: object) -> NoReturn:
        raise CheckpointError("the model lacks a file")

    for set_up in ("set_up_logging", "set_up_torch"):  # of the whole process
        monkeypatch.setattr(adapter, set_up, lambda *_: None)
    monkeypatch.setattr(check_adapter, "load_model", load_model)
    for name in ("law", "code"):
        write_adapter(tmp_path / name, inputs=HIDDEN)
    parser = argparse.ArgumentParser()
    adapter.add_arguments(parser)
    assert adapter.run(parser.parse_args(["check", str(tmp_path)])) == 1
    assert capsys.readouterr() == ("", "greenroom: the model lacks a file\n")
