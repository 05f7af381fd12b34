"""Parsers of the files under ``docker/``, without Docker or Kubernetes."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from server.setting_variables import PREFIX
from server.settings import ServeSettings, load_settings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@dataclass(frozen=True)
class Image:
    """The last stage of the Dockerfile, and the arguments of all stages."""

    text: str
    instructions: list[tuple[str, str]]  # (keyword, rest) of all stages
    arguments: dict[str, str]
    environment: dict[str, str]
    user: str
    volumes: list[str]
    entrypoint: list[str]
    command: list[str]
    port: int


def read_image() -> Image:
    text = (FOLDER / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    instructions = [(word, rest) for line in joined.splitlines() if line for word, _, rest in [line.partition(" ")]]
    arguments = dict(rest.split("=", 1) for word, rest in instructions if word == "ARG")
    starts = [number for number, (word, _) in enumerate(instructions) if word == "FROM"]
    last = dict(instructions[starts[-1] :])  # only RUN, COPY and LABEL are repeated there
    return Image(
        text,
        instructions,
        arguments,
        dict(pair.split("=", 1) for pair in shlex.split(last["ENV"])),
        last["USER"],
        json.loads(last["VOLUME"]),
        json.loads(last["ENTRYPOINT"]),
        json.loads(last["CMD"]),
        int(last["EXPOSE"]),
    )


def read_compose(name: str) -> dict[str, Any]:
    """Read a compose file, with the default values of its variables."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (FOLDER / name).read_text())
    file: dict[str, Any] = yaml.safe_load(text)
    return file


def read_manifest(name: str) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((FOLDER / "kubernetes" / name).read_text())
    return manifest


def settings_of(environment: Mapping[str, str | None]) -> ServeSettings:
    """Return the server's settings for an environment; unknown GREENROOM variables are an error.

    Args:
        environment: None removes a variable, as in a compose file.
    """
    known = {PREFIX + name.upper() for name in ServeSettings.model_fields}
    ours = {name for name in environment if name.startswith(PREFIX)}
    assert ours <= known
    return load_settings({}, {name: value for name, value in environment.items() if value is not None}, None)
