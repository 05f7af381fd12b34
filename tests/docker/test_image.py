"""Consistency of the image's configuration with the server and the project."""

from __future__ import annotations

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from server.api.core.access.host_rules import is_loopback
from server.cli.main import SUBCOMMANDS
from tests.docker.files import FOLDER, PROJECT, ROOT, read_image, settings_of

IMAGE = read_image()


def test_hadolint_reports_no_problems() -> None:
    command = [str(Path(sys.executable).parent / "hadolint"), str(FOLDER / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_environment_holds_settings_of_the_server() -> None:
    settings = settings_of(IMAGE.environment)
    assert not is_loopback(settings.host)
    assert settings.port == IMAGE.port


def test_server_is_process_1_and_not_a_child_of_a_shell() -> None:
    assert IMAGE.entrypoint == list(PROJECT["scripts"])
    assert IMAGE.command[0] in {subcommand.name for subcommand in SUBCOMMANDS}


def test_user_is_numeric_and_not_root() -> None:
    assert IMAGE.user == "1001:1001"  # Kubernetes cannot check that a user name is not root's


def test_hub_cache_is_in_a_volume() -> None:
    assert IMAGE.environment["HF_HOME"].startswith("/cache/")
    assert IMAGE.volumes == ["/cache", "/models"]


def test_base_has_a_supported_python() -> None:
    version = re.search(r"python:3\.(\d+)-slim", IMAGE.arguments["BASE"])
    least = re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])
    assert version is not None
    assert least is not None
    assert int(version[1]) >= int(least[1])


def test_torch_requirement_matches_the_project() -> None:
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["images"]]
    torches = [requirement for requirement in wanted if requirement.startswith("torch")]
    assert len(torches) == 2
    assert all(f'"{requirement}"' in IMAGE.text for requirement in torches)


def test_extras_are_those_of_the_project() -> None:
    assert set(IMAGE.arguments["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_each_variant_has_a_stage(variant: str) -> None:
    assert ("FROM", f"${{BASE}} AS {variant}") in IMAGE.instructions


def test_build_context_is_exactly_what_is_copied() -> None:
    patterns = (ROOT / ".dockerignore").read_text().split()
    included = {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")}
    copied = {
        source
        for word, rest in IMAGE.instructions
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert patterns[0] == "*"
    assert included == copied
    assert all((ROOT / source).exists() for source in copied)


def test_all_packages_are_copied() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks", "tests", "training"}
    assert packages <= {rest.split()[0] for word, rest in IMAGE.instructions if word == "COPY"}


def test_health_check_runs_the_copied_file() -> None:
    (check,) = [rest for word, rest in IMAGE.instructions if word == "HEALTHCHECK"]
    (target,) = [rest for word, rest in IMAGE.instructions if word == "COPY" and "healthcheck" in rest]
    assert fnmatch(check, f'*CMD ?"python", "{target.split()[1]}healthcheck.py"?')


def test_no_secret_is_an_argument_or_in_the_environment() -> None:
    # Everybody who has the image can read both.
    names = [*IMAGE.arguments, *IMAGE.environment]
    assert not [name for name in names if re.search("KEY|TOKEN|SECRET|PASSWORD", name)]


def test_scripts_are_executable() -> None:
    assert (FOLDER / "verify.sh").stat().st_mode & 0o111
