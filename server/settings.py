"""Configuration: read once, at the edge, from command line, environment and a TOML file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from server.other_servers import explain
from server.setting_types import (
    BudgetInBytes,
    BudgetOrShare,
    ChatTemplate,
    DeviceName,
    GenerationSource,
    HostNames,
    Keys,
    ModelAliases,
    ModelName,
    NamedPaths,
    Origins,
    RequestRate,
    SamplingOverrides,
    TemplateOptions,
    Url,
)
from server.setting_values import AUTO, check_key
from server.setting_variables import PREFIX, misspelt_variable, variables_of

BATCHED_TOKENS = 512  # of a step, where the memory plan decides on no more
SECRETS = frozenset({"api_key", "admin_api_key", "otlp_endpoint"})  # settings whose values are, or hold, credentials


class SettingsError(Exception):
    """A setting has a value that can't be used; the message names the setting."""


class ServeSettings(BaseModel):
    """All settings of ``greenroom serve``. ``--help`` shows their descriptions and defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free port and prints it")
    served_model_name: ModelName | None = Field(
        None, description="model name in /v1/models (default: repository id or folder name)"
    )
    model_alias: ModelAliases = Field(
        (),
        description="another name under which the model answers, NAME=MODEL; NAME may be a pattern: "
        "claude-*=greenroom-demo",
    )
    model_type: Literal["auto", "generate", "classify"] = Field(
        "auto",
        description="what the model must be for, if not auto; without MODEL, classify serves the bundled classifier",
    )
    revision: str | None = Field(None, description="branch, tag or commit of a model on the hub")
    config_from: str | None = Field(
        None,
        description="folder or hub id of the model that a GGUF file was made from, whose config, tokenizer and chat "
        "template count instead of the file's",
    )
    device: DeviceName = Field("auto", description="device to compute on: auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="dtype of activations and trunk; auto: the checkpoint's, if fast on this CPU"
    )
    memory: BudgetOrShare = Field(
        AUTO,
        description="memory that the server may use: 12GiB, 50%% of the machine's or its control group's memory, or "
        "auto: what is available",
    )
    device_memory: BudgetOrShare = Field(
        AUTO, description="memory that the server may use on a CUDA device, in the same forms"
    )
    host_expert_memory: BudgetOrShare = Field(
        AUTO,
        description="part of --memory for experts: 6GiB, 50%% of all expert bytes, or auto: the rest, shared with the "
        "KV cache",
    )
    device_expert_memory: BudgetOrShare = Field(
        AUTO,
        description="memory for experts on the device, in the same forms; auto: the rest of --device-memory on CUDA, "
        "0 (no device tier) on a CPU",
    )
    experts_dir: Path | None = Field(
        None, description="folder below which expert weights may be loaded while the server runs"
    )
    adapters_dir: Path | None = Field(
        None, description="folder below which LoRA adapters may be loaded while the server runs"
    )
    adapter: NamedPaths = Field((), description="LoRA adapter to load at start, served as model NAME: NAME=PATH")
    load_adapters: Literal["named", "all", "on-request"] = Field(
        "named",
        description="adapters of --adapters-dir to load. named: those of --adapter, and what administrators load; all: "
        "each at start, by its folder's name; on-request: each when a request first names its folder",
    )
    variant: NamedPaths = Field((), description="expert variant to load at start, served as model BASE:NAME: NAME=PATH")
    state: Path | None = Field(
        None, description="file that keeps what is loaded and unloaded while the server runs, for its next start"
    )
    adapter_memory: BudgetInBytes = Field(
        AUTO, description="part of --memory for LoRA adapters: 1GiB, or auto: 1/16 if adapters can be loaded"
    )
    disk_cache: Path | None = Field(
        None,
        description="folder that keeps what is read of a model elsewhere; other servers of the same user may share it",
    )
    disk_cache_size: BudgetInBytes = Field(
        AUTO,
        description="size of --disk-cache: 40GiB, or auto: what its disk has free, less a twentieth of it or 4 GiB, "
        "whichever is less",
    )
    complete_download: Literal["auto", "on", "off"] = Field(
        "auto",
        description="read the rest of a model elsewhere to the disk while nothing else is read; auto: if the disk has "
        "room; without --disk-cache, models of the hub come into its own cache",
    )
    repack_cache: Path | None = Field(
        None,
        description="folder that keeps the experts of a model on a disk as one record each, so that a miss is one "
        "read; written while the disk idles; other servers of the same user may share it",
    )
    repack_cache_size: BudgetInBytes = Field(
        AUTO, description="size of --repack-cache: 20GiB, or auto, as for --disk-cache-size"
    )
    cache_policy: Literal["lru", "lfru", "slru", "lfu", "arc"] = Field(
        "lfru", description="policy that chooses which expert to evict"
    )
    prefetch: Literal["auto", "off", "gate", "coactivation"] = Field(
        "auto",
        description="how to prefetch experts: all at start if they fit; otherwise those predicted by the next layer's "
        "router (gate) or by co-activation, if that saves time",
    )
    admission: Literal["auto", "off"] = Field(
        "auto",
        description="auto: requests whose experts do not fit in memory together decode alternately if that is faster",
    )
    miss_compute: Literal["copy", "cpu", "auto"] = Field(
        "copy",
        description="where experts are computed that a GPU lacks in a decode step: copied to it, which never changes a "
        "result, or by the CPU (cpu); auto measures whole steps of both",
    )
    switch_capacity: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="capacity factor of Switch routers: an expert takes so many times its even share of tokens, and "
        "drops the rest (default: as the model defines it)",
    )
    trace_file: Path | None = Field(
        None, description="record routing in this file for greenroom replay; compressed if it ends in .gz"
    )
    kv_cache_memory: BudgetInBytes = Field(AUTO, description="memory for the KV cache: 2GiB, or auto")
    max_model_len: int | None = Field(
        None, ge=2, description="maximum tokens of prompt and completion (default: the model's context length)"
    )
    chat_template: ChatTemplate | None = Field(
        None, description="file with a Jinja template, or the template itself, for chats instead of the model's own"
    )
    chat_template_kwargs: TemplateOptions | None = Field(
        None,
        description="JSON object of variables for the chat template of all requests, such as "
        '{"enable_thinking": false}; those of a request override them',
    )
    generation_config: GenerationSource = Field(
        "auto",
        description="where the sampling defaults come from: auto: the model's generation_config.json; vllm: neutral "
        "ones; or a folder with such a file",
    )
    override_generation_config: SamplingOverrides | None = Field(
        None,
        description='JSON object of sampling defaults, such as {"temperature": 0.5}; max_new_tokens limits the '
        "completions of all requests",
    )
    max_running_requests: int = Field(64, ge=1, description="maximum requests in a batch")
    max_queued_requests: int = Field(256, ge=1, description="maximum requests waiting in the queue")
    max_batched_tokens: int | None = Field(
        None,
        ge=1,
        description=f"maximum tokens in a step (default: {BATCHED_TOKENS}; on a GPU without room for all experts up to "
        "8192, as its memory allows)",
    )
    prefill: Literal["auto", "chunks", "layers"] = Field(
        "auto",
        description="how prompts run whose experts are paged: chunks: each chunk through all layers; layers: at each "
        "layer all chunks, so that each expert is read once; auto: layers where that reads less",
    )
    deterministic: bool = Field(
        False,
        description="batch-invariant arithmetic: a request gives the same tokens and logprobs alone and in any batch; "
        "native decoder layers always have it, other models become slower",
    )
    threads: int | None = Field(None, ge=1, description="compute threads (default: number of cores)")
    kernels: Literal["auto", "portable", "avx2", "avx512", "avx512_bf16", "amx", "off"] = Field(
        "auto",
        description="highest instruction set that the native kernels may use; auto does not choose amx, whose speed is "
        "unknown; off: compute with torch alone",
    )
    allowed_host: HostNames = Field(
        (), description="host name by which clients reach the server, besides this machine's own; *: any name"
    )
    allow_origin: Origins = Field((), description="origin whose pages may call the API (CORS): https://host, or *")
    api_key: Keys = Field((), description="key for the API; without any key, the API is open")
    api_key_file: Path | None = Field(None, description="file with API keys, one per line")
    admin_api_key: Keys = Field(
        (), description="key for the admin routes and the API; without any, admin routes answer only this machine"
    )
    admin_api_key_file: Path | None = Field(None, description="file with admin keys, one per line")
    policy_file: Path | None = Field(
        None,
        description="TOML file of what each key may use, and of adapters for its requests; SIGHUP reads it again",
    )
    max_requests_per_key: int | None = Field(
        None,
        ge=1,
        description="maximum requests running at once per key, or per client address if there are no keys; each choice "
        "of n counts as one",
    )
    rate_limit: RequestRate | None = Field(
        None,
        description="maximum requests per key, or per client address if there are no keys: 60/m, or with s or h for "
        "second or hour",
    )
    response_store: Path | None = Field(
        None,
        description="folder in which /v1/responses keeps responses, so that clients may continue them by "
        "previous_response_id and read them again (default: none are kept)",
    )
    response_store_size: BudgetInBytes = Field(
        AUTO, description="size of all kept responses and their inputs: 4GiB, or auto: 1GiB"
    )
    response_store_days: float = Field(
        30.0, gt=0, allow_inf_nan=False, description="days after which a response that nobody continues is deleted"
    )
    prefix_cache_isolation: bool = Field(
        False,
        description="share cached prefixes only among requests of the same API key, so that nobody learns from a "
        "response's time what others have asked",
    )
    strict_sampling: bool = Field(
        False,
        description="refuse requests with samplers that this server does not have, such as mirostat, instead of naming "
        "them in the reply",
    )
    otlp_endpoint: Url | None = Field(
        None, description="OpenTelemetry collector for traces of requests (OTLP over HTTP): http://localhost:4318"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level that is logged to standard error"
    )
    log_format: Literal["text", "json"] = Field("text", description="format of the log; json: one object per line")
    expert_metrics: Literal["layer", "expert", "off"] = Field(
        "expert",
        description="show tokens in /metrics by expert; by layer alone, which keeps the answer of a large model small; "
        "or not at all",
    )
    log_prompts: bool = Field(False, description="write prompts to the log")
    stream_keep_alive: float = Field(
        10.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds of silence after which a stream sends a comment, for proxies and clients with read "
        "time-outs; 0: never",
    )
    shutdown_timeout: float = Field(30.0, ge=0, description="seconds that running requests have to finish at shutdown")

    @property
    def serves_adapters(self) -> bool:
        """True if adapters can be loaded."""
        return self.adapters_dir is not None or bool(self.adapter)

    def user_keys(self) -> list[str]:
        """Return all API keys.

        Raises:
            SettingsError: a key file can't be used.
        """
        return _all_keys(self.api_key, "api_key_file", self.api_key_file)

    def admin_keys(self) -> list[str]:
        """Return all admin keys.

        Raises:
            SettingsError: a key file can't be used.
        """
        return _all_keys(self.admin_api_key, "admin_api_key_file", self.admin_api_key_file)

    def check_keys(self) -> None:
        """Read the key files, so that an unusable one is reported at once.

        Raises:
            SettingsError: a key file can't be used, or a setting needs API keys and there are none.
        """
        self.admin_keys()
        if not self.user_keys() and self.prefix_cache_isolation:
            raise SettingsError(
                "--prefix-cache-isolation separates API keys, and there are none: set --api-key-file as well"
            )


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
    except ValueError as error:  # a bad key, or not UTF-8
        raise SettingsError(
            f"{flag_name(setting)} {file}: each line must be a key of visible ASCII characters"
        ) from error
    if not in_file:
        raise SettingsError(f"{flag_name(setting)} {file}: the file has no key; write one per line")
    return given + in_file


def flag_name(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def is_list(setting: str) -> bool:
    """True if a setting has several values: a repeated flag, a list in TOML, separated by commas in the environment."""
    return isinstance(ServeSettings.model_fields[setting].default, tuple)


def load_settings(flags: Mapping[str, Any], environment: Mapping[str, str], config: Path | None) -> ServeSettings:
    """Merge and validate settings; the command line overrides the environment, which overrides the file.

    Raises:
        SettingsError: a value can't be used, the file has an unknown key, or the environment a misspelt variable; the
            message names the value's origin.
    """
    names = ServeSettings.model_fields
    if config is None and (named := environment.get(PREFIX + "CONFIG")):
        config = Path(named)
    if (misspelt := misspelt_variable(names, environment)) is not None:
        raise SettingsError(misspelt)
    from_file = read_settings_file(config) if config else {}
    from_environment: dict[str, Any] = {**variables_of(names, environment)}
    for name in filter(is_list, from_environment):
        from_environment[name] = [value.strip() for value in re.split(r"[,\n]", from_environment[name])]
    from_flags = {name: value for name, value in flags.items() if name in names}
    try:
        settings = ServeSettings.model_validate({**from_file, **from_environment, **from_flags})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if name in from_flags:
            origin = flag_name(name)
        elif name in from_environment:
            origin = PREFIX + name.upper()
        else:
            origin = f"{name} in {config}"
        reason = first["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
        if name not in names:
            close = get_close_matches(name, names, 1)
            reason = explain(flag_name(name)) or f"there is no such setting{_meant(close)}"
        # Do not print a key, even if the name of its setting is misspelt.
        is_secret = name not in names or name in SECRETS
        value = "" if is_secret else f" {first['input']!r}"
        raise SettingsError(f"{origin}{value}: {reason}") from None if is_secret else error
    if settings.load_adapters != "named" and settings.adapters_dir is None:
        raise SettingsError(f"--load-adapters {settings.load_adapters} needs --adapters-dir: name the adapters' folder")
    return settings


def _meant(close: Sequence[str]) -> str:
    return f" (did you mean {close[0]}?)" if close else ""


def read_settings_file(path: Path) -> dict[str, Any]:
    """Return what a TOML file of settings holds, unchecked.

    Raises:
        SettingsError: it can't be read, or is not TOML.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"--config {path} is not TOML: {error}") from error
    return {key.replace("-", "_"): value for key, value in values.items()}
