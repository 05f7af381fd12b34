"""Variables of the environment that are settings, and those that look like settings and are none."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches

from server.other_servers import explain

PREFIX = "GREENROOM_"
MODEL_VARIABLE = f"{PREFIX}MODEL"  # the model, where the command line names none
# No settings of a server: its file, its model, and what clients and tests read.
OTHERS = frozenset({f"{PREFIX}CONFIG", MODEL_VARIABLE, f"{PREFIX}URL", f"{PREFIX}ROUNDS"})
# Kubernetes and Docker tell containers so of a service or container named greenroom, or greenroom-NAME.
LINK = re.compile(r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)")
LINKED_PORT = re.compile(r"(?:tcp|udp|sctp)://")
LIKENESS = 0.75  # of a misspelt name


def variables_of(names: Collection[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the values of the settings that the environment has."""
    return {name: value for name, value in _ours(environment) if name in names}


def misspelt_variable(names: Collection[str], environment: Mapping[str, str]) -> str | None:
    """Say of a variable which setting was meant, if one has the name of none; None if there is no such variable."""
    for name, _ in _unknown(names, environment):
        told = explain("--" + name.replace("_", "-"))
        close = get_close_matches(name, [*names], 1, LIKENESS)
        if told is not None:
            return f"{_variable(name)}: {told}"
        if close:
            return f"{_variable(name)}: there is no such setting (did you mean {_variable(close[0])}?)"
    return None


def unknown_variables(names: Collection[str], environment: Mapping[str, str]) -> list[str]:
    """Say of each variable that is no setting, and resembles none, that it has no effect."""
    return [f"{_variable(name)} is no setting of Greenroom" for name, _ in _unknown(names, environment)]


def _unknown(names: Collection[str], environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return (each for each in _ours(environment) if each[0] not in names and _variable(each[0]) not in OTHERS)


def _ours(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the names of settings, as variables spell them, and the values, without links to services."""
    for variable, value in sorted(environment.items()):
        rest = variable.removeprefix(PREFIX)
        is_link = LINK.fullmatch(rest) or (f"_{rest}".endswith("_PORT") and LINKED_PORT.match(value))
        if rest != variable and rest.isupper() and not is_link:
            yield rest.lower(), value


def _variable(name: str) -> str:
    return PREFIX + name.upper()
