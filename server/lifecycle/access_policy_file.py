"""The policy file: TOML with a table for each policy of API keys."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from server.api.core.access.access_policies import DEFAULT, AccessPolicies
from server.api.core.access.api_keys import DIGEST
from server.api.core.choice.adapter_choice import MAX_ADAPTERS, MAX_WEIGHT
from server.engine.interface import AccessPolicy, ForbiddenExperts
from server.settings import SettingsError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
EVERYWHERE = "all"
STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def to_digest(text: str) -> str:
    if re.fullmatch(rf"{DIGEST}[0-9a-f]{{64}}", text) is None:
        raise ValueError("must be the digest of a key, as greenroom key-digest prints it: sha256: and 64 digits")
    return text


def to_weight(weight: float) -> float:
    if not weight:
        raise ValueError("must not be 0, because the adapter would add nothing")
    return weight


def to_layer(text: str) -> str:
    if text != EVERYWHERE and re.fullmatch(r"0|[1-9]\d{0,5}", text) is None:
        raise ValueError(f"must be the number of a layer, or {EVERYWHERE}")
    return text


def distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError("must not hold a value twice")
    return values


Expert = Annotated[int, Field(ge=0)]
Experts = Annotated[list[Expert], Field(min_length=1)]


class RequiredAdapter(BaseModel):
    """An adapter that is added to every request."""

    model_config = STRICT

    name: Annotated[str, Field(min_length=1)]
    weight: Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT), AfterValidator(to_weight)] = 1.0


class Rules(BaseModel):
    """The fields of a policy."""

    model_config = STRICT

    models: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    adapters: Annotated[list[RequiredAdapter], Field(max_length=MAX_ADAPTERS)] = []
    forbidden_experts: dict[Annotated[str, AfterValidator(to_layer)], Experts] = {}

    def policy(self, name: str) -> AccessPolicy:
        experts = dict(self.forbidden_experts)
        everywhere = frozenset(experts.pop(EVERYWHERE, ()))
        by_layer = sorted((int(layer), frozenset(numbers)) for layer, numbers in experts.items())
        return AccessPolicy(
            name,
            None if self.models is None else tuple(self.models),
            tuple((each.name, each.weight) for each in self.adapters),
            ForbiddenExperts(everywhere, tuple(by_layer)),
        )


class KeyRules(Rules):
    """A policy of some keys."""

    keys: Annotated[list[Annotated[str, AfterValidator(to_digest)]], Field(min_length=1), AfterValidator(distinct)]


class AccessPolicyTables(BaseModel):
    """The whole file."""

    model_config = STRICT

    policies: dict[str, KeyRules] = {}
    default: Rules | None = None


def read_policies(file: Path) -> AccessPolicies:
    """Read a policy file.

    Raises:
        SettingsError: it can't be used; the message names the place, and contains no key.
    """
    try:
        tables = AccessPolicyTables.model_validate(tomllib.loads(file.read_text("utf-8")))
        return _policies(tables)
    except OSError as error:
        reason = error.strerror or str(error)
    except ValidationError as error:
        reason = _first_problem(error)
    except RecursionError:
        reason = "its values are nested too deeply"
    except tomllib.TOMLDecodeError as error:
        reason = f"it is not TOML: {error}"
    except ValueError as error:  # not UTF-8, or a rule across policies
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
    raise SettingsError(f"--policy-file {file}: {reason}")


def _policies(tables: AccessPolicyTables) -> AccessPolicies:
    by_name: dict[str, AccessPolicy] = {}
    names: dict[bytes, str] = {}
    for name, rules in tables.policies.items():
        if name == DEFAULT or not NAME.fullmatch(name):
            raise ValueError(
                f"{name[:80]!r} can't be the name of a policy; use up to 64 letters, digits and . _ - (the policy of "
                f"all other keys is the table [{DEFAULT}])"
            )
        by_name[name] = _checked(rules.policy(name))
        for index, digest in enumerate(rules.keys):
            other = names.setdefault(bytes.fromhex(digest.removeprefix(DIGEST)), name)
            if other != name:
                raise ValueError(f"policies.{name}.keys[{index}] is a key of the policy {other} already")
    if tables.default is not None:
        by_name[DEFAULT] = _checked(tables.default.policy(DEFAULT))
    if not by_name:
        raise ValueError(f"it has no policy; write a table [policies.NAME] or [{DEFAULT}]")
    return AccessPolicies(by_name, names)


def _checked(policy: AccessPolicy) -> AccessPolicy:
    names = [name for name, _ in policy.adapters]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the policy {policy.name} names the adapter {name!r} twice")
    return policy


def _first_problem(error: ValidationError) -> str:
    """Describe the first problem by its place, without the value, which may be a key."""
    first: Mapping[str, Any] = error.errors(include_input=False, include_url=False)[0]
    place = ""
    for step in first["loc"]:
        if step != "[key]":
            place += f"[{step}]" if isinstance(step, int) else f".{step}"
    place = place.removeprefix(".")
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        return f"{place}: there is no such table; write [policies.NAME] or [{DEFAULT}]"
    if first["type"] == "extra_forbidden":
        return f"{place}: there is no such field; a policy may have {', '.join(sorted(KeyRules.model_fields))}"
    if first["type"] == "missing":
        return f"{place} is missing"
    if first["type"] == "value_error":
        return f"{place} {first['ctx']['error']}"
    return f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}"
