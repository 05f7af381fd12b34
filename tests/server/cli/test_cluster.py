"""`greenroom cluster`, without starting one."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.cli import cluster
from server.cli.main import parse
from server.cluster.deploy_file import read


@pytest.fixture(autouse=True)
def _keeps_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "set_up_logging", lambda *_: None)  # of the whole process


def run(*words: str) -> int:
    arguments = parse(["cluster", *words])
    return int(arguments.run(arguments))


def test_config_prints_a_file_that_can_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--memory", "4GiB", "--replicas", "3", "--cpus", "2", "--port", "9000", "--adapter", "law=/adapters/law")
    assert run("config", "org/model", *flags) == 0
    file = tmp_path / "cluster.yaml"
    file.write_text(capsys.readouterr().out)
    content, options = read(file)
    assert content["http_options"]["port"] == 9000
    assert (options.model, options.replicas, options.memory_bytes) == ("org/model", 3, 4 << 30)
    assert options.engine_settings() == {
        "threads": 2,
        "device": "cpu",
        "adapter": ["law=/adapters/law"],
        "memory": "4GiB",
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("MODEL", "--memory", "1GiB"), "there is no folder"),
        (("--memory", "900000GiB", "--replicas", "3"), "3 replicas of 900000GiB are more than this machine's"),
        (("--memory", "1GiB", "--api-key-file", "/no/such/keys"), "--api-key-file /no/such/keys: No such file"),
    ],
)
def test_what_a_replica_lacks_on_this_machine_is_told_before_ray_starts(
    words: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cluster, "running_cluster", lambda *_: pytest.fail("Ray starts"))
    model = tmp_path / "model"  # that another machine has
    model.mkdir()
    assert run("config", *(str(model) if word == "MODEL" else word for word in words)) == 0
    model.rmdir()
    file = tmp_path / "cluster.yaml"
    file.write_text(capsys.readouterr().out)
    assert run("run", str(file)) != 0
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("config",), "--memory 12GiB"),
        (("config", "--memory", "50%"), "50% is no number of bytes"),
        (("run",), "write `greenroom cluster run FILE.yaml`"),
        (("run", "x.yaml", "--replicas", "2"), "write `greenroom cluster run FILE.yaml`"),
        (("run", "no-such.yaml"), "no-such.yaml: No such file"),
    ],
)
def test_wrong_usage_says_what_to_do(words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert told in capsys.readouterr().err


def test_without_ray_a_file_is_printed_and_one_sentence_says_what_to_install_to_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    assert run("config", "--memory", "4GiB") == 0
    file = tmp_path / "cluster.yaml"
    file.write_text(capsys.readouterr().out)
    assert run("run", str(file)) == 1
    assert "pip install 'greenroom[ray]'" in capsys.readouterr().err


def test_config_refuses_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("config", "/no/such/model", "--memory", "1GiB") == 1
    told = capsys.readouterr()
    assert "there is no folder /no/such/model" in told.err
    assert not told.out


def test_keys_never_come_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('api_key = ["secret"]\n')
    assert run("config", "--memory", "4GiB", "--config", str(config)) == 2
    told = capsys.readouterr()
    assert "api_key" in told.err
    assert "secret" not in told.out + told.err
