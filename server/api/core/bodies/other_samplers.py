"""Fields of other servers' requests that change which tokens are generated, or how many."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import AliasChoices

IGNORED_FIELDS_HEADER = "X-Greenroom-Ignored-Fields"

# Names that llama.cpp, Ollama, TGI and SGLang have for fields of a ``GenerationBody``.
OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "max_tokens": ("n_predict", "num_predict", "max_new_tokens"),
    "min_tokens": ("min_new_tokens",),
    "repetition_penalty": ("repeat_penalty",),
}


def named(field: str, *own: str) -> AliasChoices:
    """Return the names by which a field of a ``GenerationBody`` can be given; the first one that is there counts.

    Args:
        own: the dialect's names for it, by default ``field``.

    """
    return AliasChoices(*dict.fromkeys((*(own or (field,)), *OTHER_NAMES[field])))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _unless(*neutral: object) -> Callable[[Any], bool]:
    return lambda value: value not in neutral


def _above(limit: float) -> Callable[[Any], bool]:
    return lambda value: not _is_number(value) or value > limit


def _not_below(limit: float) -> Callable[[Any], bool]:
    return lambda value: not _is_number(value) or value >= limit


@dataclass(frozen=True)
class OtherSampler:
    """A field that this server does not have.

    Args:
        asks: returns True for a value with which another server would generate something else.
        beside: fields of which one must ask for something too, or this one changes nothing.

    """

    asks: Callable[[Any], bool]
    beside: tuple[str, ...] = ()


PENALTIES = {
    "repetition_penalty": OtherSampler(_unless(None, 1)),
    "presence_penalty": OtherSampler(_unless(None, 0)),
    "frequency_penalty": OtherSampler(_unless(None, 0)),
}

OTHER_SAMPLERS: Mapping[str, OtherSampler] = {
    # llama.cpp and Ollama
    "mirostat": OtherSampler(_unless(0)),
    "mirostat_tau": OtherSampler(_unless(), beside=("mirostat",)),
    "mirostat_eta": OtherSampler(_unless(), beside=("mirostat",)),
    "dry_multiplier": OtherSampler(_unless(0)),
    "dry_base": OtherSampler(_unless(), beside=("dry_multiplier",)),
    "dry_allowed_length": OtherSampler(_unless(), beside=("dry_multiplier",)),
    "dry_penalty_last_n": OtherSampler(_unless(), beside=("dry_multiplier",)),
    "dry_sequence_breakers": OtherSampler(_unless(), beside=("dry_multiplier",)),
    "xtc_probability": OtherSampler(_above(0)),
    "xtc_threshold": OtherSampler(_unless(), beside=("xtc_probability",)),
    "dynatemp_range": OtherSampler(_above(0)),
    "dynatemp_exponent": OtherSampler(_unless(), beside=("dynatemp_range",)),
    "adaptive_target": OtherSampler(_not_below(0)),
    "adaptive_decay": OtherSampler(_unless(), beside=("adaptive_target",)),
    "top_n_sigma": OtherSampler(_above(0)),
    "typical_p": OtherSampler(_unless(1)),  # also TGI's
    "tfs_z": OtherSampler(_unless(1)),
    "samplers": OtherSampler(_unless()),
    "min_keep": OtherSampler(_above(1)),
    "repeat_last_n": OtherSampler(_unless(-1), beside=tuple(PENALTIES)),
    "penalize_nl": OtherSampler(_unless(True), beside=tuple(PENALTIES)),
    "penalize_newline": OtherSampler(_unless(True), beside=tuple(PENALTIES)),
    "n_probs": OtherSampler(_above(0)),
    "post_sampling_probs": OtherSampler(_unless(False), beside=("n_probs",)),
    "n_indent": OtherSampler(_above(0)),
    "t_max_predict_ms": OtherSampler(_above(0)),
    # vLLM
    "use_beam_search": OtherSampler(_unless(False)),
    "length_penalty": OtherSampler(_unless(), beside=("use_beam_search",)),
    "early_stopping": OtherSampler(_unless(), beside=("use_beam_search",)),
    "logits_processors": OtherSampler(_unless([])),
    "thinking_token_budget": OtherSampler(_unless(-1)),
    "include_stop_str_in_output": OtherSampler(_unless(False)),
    "skip_special_tokens": OtherSampler(_unless(True)),
    # TGI
    "do_sample": OtherSampler(_unless(True)),
    "top_n_tokens": OtherSampler(_above(0)),
    "watermark": OtherSampler(_unless(False)),
    # SGLang
    "regex": OtherSampler(_unless("")),
    "ebnf": OtherSampler(_unless("")),
    "structural_tag": OtherSampler(_unless("")),
    "stop_regex": OtherSampler(_unless("", [])),
    "no_stop_trim": OtherSampler(_unless(False)),
    "custom_logit_processor": OtherSampler(_unless("")),
    # Other names, where the dialect's own is given too, and counts
    **dict.fromkeys(OTHER_NAMES["max_tokens"], OtherSampler(_unless(-1, -2))),
    **dict.fromkeys(OTHER_NAMES["min_tokens"], OtherSampler(_unless(0))),
    **dict.fromkeys(OTHER_NAMES["repetition_penalty"], OtherSampler(_unless(1))),
}


def ignored_samplers(others: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields with which another server would generate something else.

    Args:
        others: the fields of a request that no field of its body has taken.
        own: the values of fields that the server has, as they count.

    """
    same = {name: own.get(field) for field, names in OTHER_NAMES.items() for name in names}

    def asks(name: str) -> bool:
        if name in PENALTIES:
            return PENALTIES[name].asks(own.get(name))
        value = others.get(name)
        return value is not None and OTHER_SAMPLERS[name].asks(value)

    return [
        name
        for name, value in others.items()
        if (sampler := OTHER_SAMPLERS.get(name)) is not None
        and asks(name)
        and (not sampler.beside or any(map(asks, sampler.beside)))
        and (name not in same or same[name] != value)
    ]
