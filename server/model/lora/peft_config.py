"""Reads PEFT's ``adapter_config.json``, and refuses what changes more of a model than low-rank additions do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from server.model.adapters.errors import AdapterError
from server.model.lora.name_patterns import NamePatterns

CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 16 << 20
MAX_RANK = 1024
MAX_ALPHA = 1e6
RETRAIN = "train the adapter without it"

# Settings that must be off, and the reason.
REFUSED = {
    "use_dora": "DoRA rescales the base weights (merge it into the model, or train with use_dora=False)",
    "use_qalora": f"QA-LoRA pools the inputs of layers ({RETRAIN})",
    "use_bdlora": f"block-diagonal LoRA is not supported ({RETRAIN})",
    "kasa_config": f"KaSA changes the base weights ({RETRAIN})",
    "monteclora_config": f"MonteCLoRA is not supported ({RETRAIN})",
    "arrow_config": "it configures a router and no adapter (load the adapters that it routes between)",
    "alora_invocation_tokens": f"an activated LoRA begins within the prompt ({RETRAIN})",
    "layer_replication": f"it adds layers to the model ({RETRAIN})",
    "lora_bias": f"biases of adapters are not supported ({RETRAIN})",
    "modules_to_save": "it replaces whole modules of the model (train without it, or merge the adapter)",
    "trainable_token_indices": "it replaces rows of the embedding (train without it, or merge the adapter)",
}
# Initialisations that change the base weights, too.
CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")

Value = TypeVar("Value")


class ModuleSettings(Generic[Value]):
    """Values of a setting that differs between modules, by patterns of their names.

    Raises:
        AdapterError: the setting is no object, has an invalid value, or a pattern that can't be matched.
    """

    def __init__(
        self, path: Path, setting: str, values: Mapping[str, Any], check: Callable[[Path, str, Any], Value]
    ) -> None:
        self._path, self._setting = path, setting
        given = values.get(setting) or {}
        if not isinstance(given, dict):
            raise AdapterError(f"{path}: '{setting}' must be an object")
        self._values = {pattern: check(path, f"{setting}.{pattern}", value) for pattern, value in given.items()}
        with self._naming_file():
            self._patterns = NamePatterns(self._values)

    def of(self, name: str, default: Value) -> Value:
        """Return the value for a module.

        Raises:
            AdapterError: a pattern is too complex to match.
        """
        with self._naming_file():
            pattern = self._patterns.find(name)
        return default if pattern is None else self._values[pattern]

    @contextmanager
    def _naming_file(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise AdapterError(f"{self._path}: '{self._setting}' has the pattern {error}") from error


@dataclass(frozen=True)
class PeftConfig:
    """The settings of an adapter that say how much each matrix adds."""

    rank: int
    alpha: float
    uses_rslora: bool
    ranks: ModuleSettings[int]
    alphas: ModuleSettings[float]
    target_parameters: Sequence[str]
    base_model: str | None  # a hint

    def rank_of(self, name: str) -> int:
        """Return the rank of a module or parameter.

        Raises:
            AdapterError: a pattern is too complex to match.
        """
        return self.ranks.of(name, self.rank)

    def scale_of(self, name: str, rank: int) -> float:
        """Return the factor of a matrix's additions.

        Raises:
            AdapterError: a pattern is too complex to match.
        """
        alpha = self.alphas.of(name, self.alpha)
        return alpha / math.sqrt(rank) if self.uses_rslora else alpha / rank


def read_peft_config(path: Path) -> PeftConfig:
    """Read the configuration of an adapter.

    Raises:
        AdapterError: it can't be read, is of another kind than LoRA, or has a setting that is not supported.
    """
    values = read_json(path)
    if values.get("peft_type") != "LORA":
        raise AdapterError(f"{path}: 'peft_type' is {values.get('peft_type')!r}; only adapters of type LORA are served")
    for setting, reason in REFUSED.items():
        if values.get(setting):
            raise AdapterError(f"{path}: '{setting}' is set, but {reason}")
    if values.get("bias", "none") != "none":
        raise AdapterError(f"{path}: 'bias' is {values['bias']!r}; biases are not supported ({RETRAIN})")
    unknown = [name for name in values if name.startswith("use_") and name != "use_rslora" and values[name] is True]
    if unknown:
        raise AdapterError(f"{path}: '{unknown[0]}' is set, which this server does not know; {RETRAIN}")
    initialisation = values.get("init_lora_weights")
    if isinstance(initialisation, str) and initialisation.lower().startswith(CHANGED_BASES):
        raise AdapterError(
            f"{path}: 'init_lora_weights' is {initialisation!r}, which changes the base weights; save the adapter with "
            "path_initial_model_for_weight_conversion"
        )
    parameters = values.get("target_parameters") or []
    if not isinstance(parameters, list) or not all(isinstance(name, str) for name in parameters):
        raise AdapterError(f"{path}: 'target_parameters' must be a list of names")
    base = values.get("base_model_name_or_path")
    return PeftConfig(
        _rank(path, "r", values.get("r")),
        _alpha(path, "lora_alpha", values.get("lora_alpha")),
        values.get("use_rslora") is True,
        ModuleSettings(path, "rank_pattern", values, _rank),
        ModuleSettings(path, "alpha_pattern", values, _alpha),
        parameters,
        base if isinstance(base, str) else None,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of an adapter that holds a JSON object.

    Raises:
        AdapterError: it can't be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
        if len(raw) > MAX_CONFIG_BYTES:
            raise AdapterError(f"{path} is longer than {MAX_CONFIG_BYTES} bytes")
        values = json.loads(raw.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} can't be read: {error}") from error
    if not isinstance(values, dict):
        raise AdapterError(f"{path} is not a JSON object")
    return values


def _rank(path: Path, setting: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise AdapterError(f"{path}: '{setting}' is {value!r}; ranks from 1 to {MAX_RANK} are supported")
    return value


def _alpha(path: Path, setting: str, value: Any) -> float:
    if type(value) not in {int, float} or not abs(value) <= MAX_ALPHA:
        raise AdapterError(f"{path}: '{setting}' is {value!r}; it must be a number of at most {MAX_ALPHA:g}")
    return float(value)
