"""The ranges of the numbers of a model's description: of ``config.json`` and of the header of a GGUF file.

A number outside of them is that of no model. It would take memory that nothing plans, or give logits that are not
finite. The ranges are far wider than any published model needs, and are checked before anything is allocated. What a
number must be beside others, such as a window that some layers have, is checked in ``config_checks``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

SIZE = 1 << 20  # of a dimension, or how many there are of something
STATE = 1 << 14  # of a channel of a recurrent layer
LENGTH = 1 << 31  # tokens of a sequence, a window or a chunk
ROWS = 1 << 28  # of a table that tokens look up
LAYERS, EXPERTS = 1000, 20_000
SHOWN = 40  # characters of a value in a message
NUMBERS = re.compile(r"[+-]?(\d[\d_.]*(e[+-]?\d+)?|nan|inf(inity)?)", re.IGNORECASE)  # as a text
# Parts that nothing computes with, and parts with checks of their own.
UNCHECKED = frozenset({"id2label", "label2id", "task_specific_params", "quantization_config", "compression_config"})


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have; null, which leaves it out, is always one.

    Args:
        is_whole: whether they are whole numbers.
        is_above: whether the least is not one of them.
        is_open: whether infinity is one of them.
        is_exact: whether the name means nothing but a number; true, false and a number as a text are refused.
    """

    least: float
    most: float
    is_whole: bool = False
    is_above: bool = False
    is_open: bool = False
    is_exact: bool = False

    def holds(self, number: float) -> bool:
        """Return True if a number is one of them."""
        if self.is_open and number == math.inf:
            return True
        if not self.least <= number <= self.most or (self.is_above and number == self.least):
            return False  # not a number is in no range
        return not self.is_whole or number == int(number)

    def __str__(self) -> str:
        kind = "a whole number" if self.is_whole else "a number"
        between = f"above {_text(self.least)}, up to" if self.is_above else f"from {_text(self.least)} to"
        return f"{kind} {between} {_text(self.most)}"


def _whole(least: int, most: int) -> Range:
    return Range(least, most, is_whole=True, is_exact=True)


def _above(least: float, most: float) -> Range:
    return Range(least, most, is_above=True, is_exact=True)


RANGES: tuple[tuple[str, Range], ...] = (  # by names of settings, in both spellings; the first that matches counts
    # what every model has
    (r"(num_)?hidden_layers|num_layers|n_layers?|block_count", _whole(1, LAYERS)),
    (r"hidden_size|d_model|num_(attention|key_value)_heads|n_heads?|embedding_length", _whole(1, SIZE)),
    (r"head_dim|intermediate_size|(expert_)?feed_forward_length", _whole(0, SIZE)),
    (r"(unpadded_)?vocab_size", _whole(1, ROWS)),
    (r"(original_)?max_position_embeddings|context_length|rope\.scaling\.original_context_length", _whole(1, LENGTH)),
    (r"(num|n_routed|num_local|moe_num)_experts|expert_count", _whole(0, EXPERTS)),
    (r"index_topk", _whole(1, SIZE)),
    (r"(mamba_)?d_state|(ssm[_.])?state_size", _whole(1, STATE)),
    # rotary positions
    (r"layer_rope_theta", Range(0, 1e15)),
    (r".*rope_theta|(rotary_emb|rope)_base|rope_local_base_freq|rope\.freq_base.*", _above(1, 1e15)),
    (r"partial_rotary_factors?|rotary_pct|rope_pct|rotary_percent", Range(0, 1, is_exact=True)),
    (r"(short|long|low_freq|high_freq)_factor|beta_(fast|slow)|rope\.scaling\.yarn_beta_.*", _above(0, 1e6)),
    (r"factor", _above(0, 1e6)),
    (r"rope\.scaling\.factor|rope\.scale_linear", Range(0, 1e6, is_exact=True)),
    (r"(short_|long_)?mscale.*|attention_factor|rope\.scaling\..*(multiplier|factor)", Range(0, 1e4, is_exact=True)),
    # what only names something, bounds something or is not computed with
    (r".*_(id|ids|idx|index|indexes|indices|token)|seed|label.*", Range(-LENGTH, LENGTH)),
    (r".*(param|bytes|flops).*", Range(-1e30, 1e30)),
    (r"time_step_limit", Range(0, 1e4, is_open=True)),
    (r".*lower_bound", Range(-1e4, 0)),
    (r".*(_limit|_threshold)", Range(-1e12, 1e12)),
    # small numbers, shares and factors
    (r"(.*[_.])?(eps|epsilon)", Range(0, 1, is_exact=True)),
    (r".*(dropout|pdrop|layerdrop|drop_rate|drop_path).*", Range(0, 1)),
    (r"time_step_(min|max|floor)", Range(0, 1e4)),
    (r"attention_multiplier|attention\.scale", Range(0, 1e4, is_exact=True)),
    (r"floor_scale|.*n_floor", _whole(1, LENGTH)),
    (r".*_(iters|iterations)", Range(0, LAYERS)),
    (r"logits_scaling|query_pre_attn_scalar", _above(0, 1e6)),
    (r".*soft_?cap.*", Range(0, 1e6)),
    (
        r".*(alpha|beta|gamma|scale|scaling|multiplier|scalar|temperature|scaling_factor|scale_factor)s?",
        Range(-1e4, 1e4),
    ),
    # how many, how large, how long
    (r".*(layer|layers|depth|depths|block_count)", Range(-LAYERS, LAYERS)),
    (r".*experts", Range(-1, EXPERTS)),
    (r".*passes", Range(0, 64)),
    (r".*(vocab|ngram|codebook).*", Range(-1, ROWS)),
    (r".*(position|seq|length|window|chunk|tokens|budget|floor).*", Range(-1, LENGTH)),
    (r"(n|num|d|mamba|ssm|index|indexer|linear|conv)[_.].*", Range(-1, SIZE)),
    (
        r".*(size|dim|rank|head|group|channel|count|kernel|state|top_?k|_k|per_tok|interval|period|step|blocks).*",
        Range(-1, SIZE),
    ),
)
ANY_WHOLE = Range(-(1 << 24), 1 << 24)
ANY = Range(-1e12, 1e12)
_COMPILED = tuple((re.compile(pattern), numbers) for pattern, numbers in RANGES)


def range_of(name: str) -> Range | None:
    """Return the range of a setting by its name; None if none is known for it."""
    return next((numbers for pattern, numbers in _COMPILED if pattern.fullmatch(name)), None)


def number_out_of_range(values: Mapping[str, Any]) -> str | None:
    """Return a phrase that names the first number out of its range, its value and its range; None if there is none.

    Args:
        values: settings, and parts and lists of them.
    """
    for path, name, value in _settings(values, ()):
        numbers = range_of(name)
        if isinstance(value, bool):
            if numbers is not None and numbers.is_exact:
                return f"{path} is {str(value).lower()}, not {numbers}"
        elif isinstance(value, str):
            if numbers is not None and numbers.is_exact and NUMBERS.fullmatch(value.strip()):
                return f"{path} is the text {value[:SHOWN]!r}, not {numbers}"
        else:
            allowed = numbers or (ANY_WHOLE if isinstance(value, int) else ANY)
            if not allowed.holds(value):
                return f"{path} is {_text(value)}, not {allowed}"
    return None


def _settings(values: Mapping[str, Any], place: tuple[str, ...]) -> Iterator[tuple[str, str, Any]]:
    """Yield numbers, truth values and texts: where each is, the name of its setting, and the value."""
    for key, value in values.items():
        name = str(key)
        if isinstance(value, Mapping):
            if name not in UNCHECKED:
                yield from _settings(value, (*place, name))
        else:
            yield from _entries(value, ".".join((*place, name)), name)


def _entries(value: Any, path: str, name: str) -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        yield from _settings(value, (path,))
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _entries(each, f"{path}[{number}]", name)
    elif isinstance(value, bool | int | float | str):
        yield path, name, value


def _text(value: float) -> str:
    """Return a number as a text that is never long."""
    text = f"{value:g}" if isinstance(value, float) and not value.is_integer() else str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        text = str(int(value)) if abs(value) < 1e9 else f"{value:g}"  # noqa: PLR2004
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
