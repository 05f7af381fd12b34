"""Types of the fields of settings: how pydantic takes what a user wrote, or a value, for each of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr

from server.setting_values import (
    GENERATION_FILE,
    MAX_NEW_TOKENS,
    SAMPLING_RANGES,
    Budget,
    ModelAlias,
    NamedPath,
    Rate,
    check_key,
    check_sampling,
    parse_alias,
    parse_budget,
    parse_named_path,
    parse_rate,
    parse_template,
)


def _to_json_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError("not JSON: it is nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError("write a JSON object, {...}")  # noqa: TRY004  pydantic's own
    return parsed


def _check_overrides(values: dict[str, Any]) -> dict[str, Any]:
    known = [*SAMPLING_RANGES, MAX_NEW_TOKENS]
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        raise ValueError(f"there is no default for {unknown!r}; the names are {', '.join(known)}")
    check_sampling(values)
    return values


def _check_generation_source(text: str) -> str:
    if text in {"auto", "vllm"}:
        return text
    if not (Path(text) / GENERATION_FILE).is_file():
        raise ValueError(f"there is no {GENERATION_FILE} in such a folder; give auto, vllm, or a folder with one")
    return text


def _to_budget(value: object) -> Budget:
    if isinstance(value, Budget):
        return value
    if not isinstance(value, str):
        raise ValueError('write it as text, such as "6GiB", "50%" or "auto"')  # noqa: TRY004  pydantic's own
    return parse_budget(value)


def _refuse_share(budget: Budget) -> Budget:
    if budget.share is not None:
        raise ValueError(f"{budget.text!r} is a percentage; write a size such as 2GiB, or auto")
    return budget


def _to_rate(value: object) -> Rate:
    if isinstance(value, Rate):
        return value
    return parse_rate(value if isinstance(value, str) else "")


def _to_alias(value: object) -> ModelAlias:
    if isinstance(value, ModelAlias):
        return value
    return parse_alias(value if isinstance(value, str) else "")


def _to_named_path(value: object) -> NamedPath:
    if isinstance(value, NamedPath):
        return value
    return parse_named_path(value if isinstance(value, str) else "")


def _check_device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise ValueError("write auto, cpu, cuda or cuda:N")
    return text


def _check_key(key: SecretStr) -> SecretStr:
    check_key(key.get_secret_value())
    return key


def _check_printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("write a name in characters that can be printed, on one line")
    return name


def _check_host(name: str) -> str:
    if not re.fullmatch(r"\*|[a-z0-9._-]+|\[[0-9a-f:.]+\]", name.lower()):
        raise ValueError("write a name or address without scheme and port, such as greenroom.example.org, or *")
    return name.lower()


def _check_origin(origin: str) -> str:
    if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[a-z0-9._-]+(:\d+)?|[a-z]+://\[[0-9a-f:.]+\](:\d+)?", origin.lower()):
        raise ValueError("write scheme://host[:port] without a path, such as https://example.org, or *")
    return origin.lower()


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_complete = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:  # the port is not a number
        is_complete = False
    if not is_complete or parts.query or parts.fragment:
        raise ValueError("write an address such as http://localhost:4318")
    return url


def _check_list(values: object) -> object:
    if isinstance(values, str):
        raise ValueError("write a list, [...]")  # noqa: TRY004  pydantic's own
    return values


BudgetOrShare = Annotated[Budget, BeforeValidator(_to_budget)]
BudgetInBytes = Annotated[Budget, BeforeValidator(_to_budget), AfterValidator(_refuse_share)]
RequestRate = Annotated[Rate, BeforeValidator(_to_rate)]
DeviceName = Annotated[str, AfterValidator(_check_device)]
ModelAliases = Annotated[tuple[Annotated[ModelAlias, BeforeValidator(_to_alias)], ...], BeforeValidator(_check_list)]
NamedPaths = Annotated[tuple[Annotated[NamedPath, BeforeValidator(_to_named_path)], ...], BeforeValidator(_check_list)]
Url = Annotated[str, AfterValidator(_check_url)]
ModelName = Annotated[str, AfterValidator(_check_printable)]
HostNames = Annotated[tuple[Annotated[str, AfterValidator(_check_host)], ...], BeforeValidator(_check_list)]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_check_origin)], ...], BeforeValidator(_check_list)]
Keys = Annotated[tuple[Annotated[SecretStr, AfterValidator(_check_key)], ...], BeforeValidator(_check_list)]
ChatTemplate = Annotated[str, AfterValidator(parse_template)]
TemplateOptions = Annotated[dict[str, Any], BeforeValidator(_to_json_object)]
GenerationSource = Annotated[str, AfterValidator(_check_generation_source)]
SamplingOverrides = Annotated[dict[str, Any], BeforeValidator(_to_json_object), AfterValidator(_check_overrides)]
