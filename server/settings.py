"""Configuration: read once, at the edge, from command line, environment and a TOML file."""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

ENVIRONMENT_PREFIX = "GREENROOM_"
METAVARS = {"max_requests_per_key": "REQUESTS", "max_model_len": "TOKENS", "shutdown_timeout": "SECONDS"}
UNITS = {"": 1, "B": 1} | {
    f"{letter}{unit}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for unit, base in (("B", 1000), ("IB", 1024))
}


class SettingsError(Exception):
    """A setting has a value that can't be used; the message names it."""


class Budget(BaseModel):
    """Memory as a user gives it: ``auto``, a number of bytes, or a part of something."""

    model_config = ConfigDict(frozen=True)

    nbytes: int | None = None
    share: float | None = None  # 0 to 1

    def resolve(self, total: int, auto: int) -> int:
        """Bytes, where ``total`` is the whole and ``auto`` what to take when nothing was asked for."""
        if self.nbytes is not None:
            return self.nbytes
        return auto if self.share is None else int(self.share * total)


def parse_budget(text: str) -> Budget:
    """``auto``, ``6GiB``, ``512MB``, ``1000000`` or ``50%``.

    Raises:
        ValueError: it is none of these.
    """
    if text == "auto":
        return Budget()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[KMGT]i?B|B)?", text, re.IGNORECASE)
    if match is None or not isfinite(float(match.group(1))):
        raise ValueError(f"{text!r} is not a size; write it as 6GiB, 50% or auto")
    number, unit = float(match.group(1)), (match.group(2) or "").upper()
    if unit == "%":
        if number > 100:  # noqa: PLR2004
            raise ValueError(f"{text!r} is more than all; the most is 100%")
        return Budget(share=number / 100)
    return Budget(nbytes=int(number * UNITS[unit]))


def _check_budget(text: str) -> str:
    parse_budget(text)
    return text


def _check_bytes(text: str) -> str:
    if parse_budget(text).share is not None:
        raise ValueError(f"{text!r} is a percentage; write a size such as 2GiB, or auto")
    return text


def _check_device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise ValueError("write auto, cpu, cuda or cuda:N")
    return text


def _check_key(key: SecretStr) -> SecretStr:
    check_key(key.get_secret_value())
    return key


def check_key(key: str) -> None:
    """Refuse what no HTTP header can carry as a key; the message does not repeat it.

    Raises:
        ValueError: it is empty or has other characters than visible ASCII.
    """
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError("a key must have visible ASCII characters alone, and at least one")


def _check_rate(text: str) -> str:
    parse_rate(text)
    return text


def parse_rate(text: str) -> tuple[int, float]:
    """``60/m`` is 60 requests in 60 seconds; ``s``, ``m`` and ``h`` are a second, a minute, an hour.

    Raises:
        ValueError: it is none of these.
    """
    match = re.fullmatch(r"([1-9]\d{0,8})/([smh])", text)
    if match is None:
        raise ValueError("write requests by time, such as 60/m, with s, m or h")
    return int(match[1]), {"s": 1.0, "m": 60.0, "h": 3600.0}[match[2]]


def _check_host(name: str) -> str:
    if not re.fullmatch(r"\*|[a-z0-9._-]+|\[[0-9a-f:.]+\]", name.lower()):
        raise ValueError("write a name or address without scheme and port, such as greenroom.example.org, or *")
    return name.lower()


def _check_origin(origin: str) -> str:
    if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[a-z0-9._-]+(:\d+)?|[a-z]+://\[[0-9a-f:.]+\](:\d+)?", origin.lower()):
        raise ValueError("write scheme://host[:port] as browsers do, without a path, such as https://example.org, or *")
    return origin.lower()


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:  # a port that is no number
        is_whole = False
    if not is_whole or parts.query or parts.fragment:
        raise ValueError("write an address such as http://localhost:4318")
    return url


def _check_list(values: object) -> object:
    if isinstance(values, str):
        raise ValueError("write a list, [...]")  # noqa: TRY004  pydantic's own
    return values


BudgetText = Annotated[str, AfterValidator(_check_budget)]
BytesText = Annotated[str, AfterValidator(_check_bytes)]
DeviceText = Annotated[str, AfterValidator(_check_device)]
UrlText = Annotated[str, AfterValidator(_check_url)]
RateText = Annotated[str, AfterValidator(_check_rate)]
HostNames = Annotated[tuple[Annotated[str, AfterValidator(_check_host)], ...], BeforeValidator(_check_list)]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_check_origin)], ...], BeforeValidator(_check_list)]
Keys = Annotated[tuple[Annotated[SecretStr, AfterValidator(_check_key)], ...], BeforeValidator(_check_list)]


class ServeSettings(BaseModel):
    """All flags of ``greenroom serve``; descriptions and defaults are those that ``--help`` shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks one and prints it")
    served_model_name: str | None = Field(None, description="name in /v1/models (repository id or folder name)")
    revision: str | None = Field(None, description="hub revision")
    device: DeviceText = Field("auto", description="where to compute: auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="of activations and trunk; auto is the checkpoint's where the processor is fast at it"
    )
    memory: BudgetText = Field(
        "auto",
        description="all that the server may take: 12GiB, 50%% of the machine's or its control group's memory, or "
        "auto: what they leave",
    )
    device_memory: BudgetText = Field("auto", description="the same of a CUDA device's memory")
    host_expert_memory: BudgetText = Field(
        "auto",
        description="of it, for experts: 6GiB, 50%% of all expert bytes, or auto: the rest, shared with the KV cache",
    )
    device_expert_memory: BudgetText = Field(
        "auto", description="budget of experts on the device, same forms; auto on a CPU is 0, no tier of its own"
    )
    cache_policy: Literal["lru", "lfru", "slru", "lfu", "arc"] = Field("lfru", description="which expert goes first")
    prefetch: Literal["auto", "off", "gate", "coactivation"] = Field(
        "auto",
        description="how experts are read ahead: all at the start where they fit, else as predicted, if that pays",
    )
    admission: Literal["auto", "off"] = Field(
        "auto", description="requests whose experts do not fit together decode in turns where that is faster, or never"
    )
    trace_file: Path | None = Field(None, description="record routing for greenroom replay; .gz is compressed")
    kv_cache_memory: BytesText = Field("auto", description="of it, for the KV cache: 2GiB, or auto")
    max_model_len: int | None = Field(None, ge=2, description="most tokens of prompt and completion (the model's own)")
    max_running_requests: int = Field(64, ge=1, description="requests in a batch")
    max_queued_requests: int = Field(256, ge=1, description="requests that may wait")
    max_batched_tokens: int = Field(512, ge=1, description="tokens of one step")
    deterministic: bool = Field(
        False,
        description="batch-invariant arithmetic: the same tokens and logprobs alone and in any batch; native decoder "
        "layers have it anyway, other models become slower",
    )
    threads: int | None = Field(None, ge=1, description="compute threads (number of cores)")
    kernels: Literal["auto", "portable", "avx2", "avx512", "avx512_bf16", "off"] = Field(
        "auto", description="most of the processor's instructions that native kernels use; off is torch alone"
    )
    allowed_host: HostNames = Field(
        (), description="name by which clients reach the server, beside those of this machine; * is any"
    )
    allow_origin: Origins = Field((), description="origin whose pages may use the API (CORS): https://host, or *")
    api_key: Keys = Field((), description="key that opens the API; without any it is open")
    api_key_file: Path | None = Field(None, description="file of such keys, one a line")
    admin_api_key: Keys = Field(
        (), description="key that opens administration, too; without any that answers on this machine alone"
    )
    admin_api_key_file: Path | None = Field(None, description="file of such keys, one a line")
    max_requests_per_key: int | None = Field(
        None, ge=1, description="requests that one key, or without keys one address, may have running"
    )
    rate_limit: RateText | None = Field(
        None, description="requests that one key, or without keys one address, may send: 60/m, with s, m or h"
    )
    otlp_endpoint: UrlText | None = Field(
        None, description="collector that gets a trace of each request (OTLP over HTTP), as http://localhost:4318"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="of the log on standard error")
    log_format: Literal["text", "json"] = Field("text", description="of its lines; json is an object a line")
    log_prompts: bool = Field(False, description="write prompts into the log, too")
    shutdown_timeout: float = Field(30.0, ge=0, description="seconds that open streams get to finish")

    def user_keys(self) -> list[str]:
        """All keys that open the API.

        Raises:
            SettingsError: a file of keys can't be used.
        """
        return _all_keys(self.api_key, "api_key_file", self.api_key_file)

    def admin_keys(self) -> list[str]:
        """All keys that open administration, too.

        Raises:
            SettingsError: a file of keys can't be used.
        """
        return _all_keys(self.admin_api_key, "admin_api_key_file", self.admin_api_key_file)

    def check_key_files(self) -> None:
        """Read the files of keys, to know at once whether they can be read.

        Raises:
            SettingsError: one can't be used.
        """
        self.user_keys()
        self.admin_keys()


def _all_keys(keys: Sequence[SecretStr], setting: str, file: Path | None) -> list[str]:
    given = [key.get_secret_value() for key in keys]
    if file is None:
        return given
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
        in_file = [line for line in lines if line]
        for key in in_file:
            check_key(key)
    except OSError as error:
        raise SettingsError(f"{flag_name(setting)} {file}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8 either
        raise SettingsError(
            f"{flag_name(setting)} {file}: each line must be a key of visible ASCII characters"
        ) from error
    if not in_file:
        raise SettingsError(f"{flag_name(setting)} {file}: the file has no key; write one a line")
    return given + in_file


# What decides how a model is planned for, without serving it.
PLANNING = (
    "revision",
    "device",
    "dtype",
    "memory",
    "device_memory",
    "host_expert_memory",
    "device_expert_memory",
    "kv_cache_memory",
    "max_model_len",
    "max_running_requests",
    "max_batched_tokens",
    "threads",
)


def add_flags(parser: argparse.ArgumentParser, names: Sequence[str] = tuple(ServeSettings.model_fields)) -> None:
    """One flag a setting, named after it; values stay text until they are validated together."""
    for name in names:
        field = ServeSettings.model_fields[name]
        if field.annotation is bool:
            parser.add_argument(flag_name(name), action="store_true", default=argparse.SUPPRESS, help=field.description)
            continue
        if is_list(name):
            parser.add_argument(
                flag_name(name),
                action="append",
                default=argparse.SUPPRESS,
                metavar=name.split("_")[-1].upper(),
                help=f"{field.description}; may be repeated",
            )
            continue
        default = "" if field.default is None else f" (default {field.default})"
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else None
        metavar = "{" + ",".join(choices) + "}" if choices else METAVARS.get(name, name.split("_")[-1].upper())
        parser.add_argument(
            flag_name(name), default=argparse.SUPPRESS, metavar=metavar, help=f"{field.description}{default}"
        )
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="read settings from a file")


def flag_name(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def is_list(setting: str) -> bool:
    """Whether a setting has several values: a flag that is repeated, a list in a file, in the environment commas."""
    return isinstance(ServeSettings.model_fields[setting].default, tuple)


def load_settings(flags: Mapping[str, Any], environment: Mapping[str, str], config: Path | None) -> ServeSettings:
    """Command line beats environment beats file.

    Raises:
        SettingsError: a value can't be used, or the file holds an unknown key; the message names where it came from.
    """
    names = ServeSettings.model_fields
    if config is None and (named := environment.get(ENVIRONMENT_PREFIX + "CONFIG")):
        config = Path(named)
    from_file = _read_file(config) if config else {}
    from_environment: dict[str, Any] = {
        name: environment[variable] for name in names if (variable := ENVIRONMENT_PREFIX + name.upper()) in environment
    }
    for name in filter(is_list, from_environment):
        from_environment[name] = [value.strip() for value in re.split(r"[,\n]", from_environment[name])]
    from_flags = {name: value for name, value in flags.items() if name in names}
    try:
        return ServeSettings.model_validate({**from_file, **from_environment, **from_flags})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if name in from_flags:
            place = flag_name(name)
        elif name in from_environment:
            place = ENVIRONMENT_PREFIX + name.upper()
        else:
            place = f"{name} in {config}"
        reason = first["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
        if name not in names:
            close = get_close_matches(name, names, 1)
            reason = f"there is no such setting{f' (did you mean {close[0]}?)' if close else ''}"
        # A key is not repeated, neither under its own name nor under one that is written wrong.
        is_secret = name not in names or name in {"api_key", "admin_api_key"}
        value = "" if is_secret else f" {first['input']!r}"
        raise SettingsError(f"{place}{value}: {reason}") from None if is_secret else error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"--config {path} is not TOML: {error}") from error
    return {key.replace("-", "_"): value for key, value in values.items()}
