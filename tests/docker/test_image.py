"""The image's configuration is what the server and the project understand."""

from __future__ import annotations

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from server.api.hosts import is_loopback
from server.cli import SUBCOMMANDS
from tests.docker.files import FOLDER, PROJECT, ROOT, read_image, settings_of

IMAGE = read_image()


def test_hadolint_finds_no_fault() -> None:
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


def test_user_is_a_number_that_is_not_root() -> None:
    assert IMAGE.user == "1001:1001"  # Kubernetes can't tell of a name whether it is root's


def test_hub_cache_lies_in_a_volume() -> None:
    assert IMAGE.environment["HF_HOME"].startswith("/cache/")
    assert IMAGE.volumes == ["/cache", "/models"]


def test_base_has_a_python_that_the_project_takes() -> None:
    version = re.search(r"python:3\.(\d+)-slim", IMAGE.arguments["BASE"])
    least = re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])
    assert version is not None
    assert least is not None
    assert int(version[1]) >= int(least[1])


def test_torch_is_the_one_that_the_project_wants() -> None:
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["images"]]
    torches = [requirement for requirement in wanted if requirement.startswith("torch")]
    assert len(torches) == 2
    assert all(f'"{requirement}"' in IMAGE.text for requirement in torches)


def test_extras_are_those_of_the_project() -> None:
    assert set(IMAGE.arguments["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_each_variant_has_a_stage(variant: str) -> None:
    assert ("FROM", f"${{BASE}} AS {variant}") in IMAGE.instructions


def test_context_has_what_is_copied_and_nothing_that_is_not_named() -> None:
    patterns = (ROOT / ".dockerignore").read_text().split()
    let_in = {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")}
    copied = {
        source
        for word, rest in IMAGE.instructions
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert patterns[0] == "*"
    assert let_in == copied
    assert all((ROOT / source).exists() for source in copied)


def test_whole_package_is_copied() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages <= {rest.split()[0] for word, rest in IMAGE.instructions if word == "COPY"}


def test_health_check_is_the_file_that_is_copied() -> None:
    (check,) = [rest for word, rest in IMAGE.instructions if word == "HEALTHCHECK"]
    (target,) = [rest for word, rest in IMAGE.instructions if word == "COPY" and "healthcheck" in rest]
    assert fnmatch(check, f'*CMD ?"python", "{target.split()[1]}healthcheck.py"?')


def test_no_secret_is_an_argument_or_in_the_environment() -> None:
    # Both can be read from the image by everybody who has it.
    names = [*IMAGE.arguments, *IMAGE.environment]
    assert not [name for name in names if re.search("KEY|TOKEN|SECRET|PASSWORD", name)]


def test_scripts_can_be_run() -> None:
    assert (FOLDER / "verify.sh").stat().st_mode & 0o111
