"""Makes the widths in a config small, for a twin that takes little time and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from server.model.architecture import config_parts, text_body
from server.model.blocks.errors import UnsupportedLayerError

HIDDEN_SIZE, WIDTH = 72, 40  # the root of the first is no number of a config
FEW_HEADS, FEW_LINEAR_HEADS = 8, 4  # of latent attention, and of linear attention
HIDDEN, HEADS, KV_HEADS = (  # names of keys
    ("hidden_size", "d_model"),
    ("num_attention_heads", "n_heads"),
    ("num_key_value_heads", "kv_n_heads"),
)
WIDTHS = ("intermediate_size", "ffn_hidden_size", "q_lora_rank", "o_lora_rank")  # ends of keys
LATENT, GROUPED_OUTPUT = "kv_lora_rank", "o_lora_rank"  # keys of configs with latent attention
LATENT_HEADS = ((HEADS[0], KV_HEADS[0]), ("swa_num_attention_heads", "swa_num_key_value_heads"))
LINEAR_HEADS = "linear_num_heads"
HEAD_SIZE = "head_dim"
MAMBA_HEADS, MAMBA_SIZE, MAMBA_EXPANSION = "mamba_n_heads", "mamba_d_head", "mamba_expand"
OF_HEADS = (HEAD_SIZE, "scaling")  # attributes of modules
Narrowing = Callable[[Any], set[str]]


def narrow_widths(config: Any) -> set[str]:
    """Make the widths of a config small that no number depends on but the shapes of weights.

    Numbers of a head stay, as attention is scaled by them.

    Returns:
        The keys that have other values now.

    Raises:
        UnsupportedLayerError: its hidden size has another key.
    """
    known = vars(config)  # some configs refuse to read what differs by layer
    if HIDDEN[0] not in known:
        raise UnsupportedLayerError(f"its config has no {HIDDEN[0]}")
    widths = {key: WIDTH for key in known if key.endswith(WIDTHS)}
    widths |= {HIDDEN[0]: HIDDEN_SIZE, LINEAR_HEADS: FEW_LINEAR_HEADS}
    heads = known.get(HEADS[0])
    if known.get(LATENT):
        for pair in LATENT_HEADS:
            widths |= dict.fromkeys(pair, FEW_HEADS) if known.get(pair[0]) == known.get(pair[1]) else {}
    elif known.get(GROUPED_OUTPUT) and known.get(KV_HEADS[0]) == 1:
        widths[HEADS[0]] = FEW_HEADS
    elif known.get(_name(config, HEAD_SIZE)) is None and heads and config.hidden_size % heads == 0:
        setattr(config, HEAD_SIZE, config.hidden_size // heads)
    return _set_smaller(config, widths)


def narrow_by_heads(config: Any) -> set[str]:
    """Make widths small where the hidden size is that of all heads together, by fewer heads.

    Returns:
        The keys that have other values now.

    Raises:
        UnsupportedLayerError: the hidden size is another one.
    """
    sizes, counts, kv_counts = (
        [vars(part)[key] for part, key in _places(config, names)] for names in (HIDDEN, HEADS, KV_HEADS)
    )
    if not (sizes and counts and kv_counts) or sizes[0] % counts[0] or counts[0] % kv_counts[0]:
        raise UnsupportedLayerError("its hidden size is not that of its heads")
    # Of these numbers of heads, no power of two, the root of the hidden size is seldom a number of the config.
    heads, kv_heads = (3, 3) if kv_counts[0] == counts[0] else (3, 1) if kv_counts[0] == 1 else (6, 3)
    hidden_size = sizes[0] // counts[0] * heads
    narrowed: set[str] = set()
    inner = vars(config).get(MAMBA_EXPANSION, 0) * hidden_size
    for part in config_parts(config):
        widths = {key: WIDTH for key in vars(part) if key.endswith(WIDTHS)}
        for names, width in ((HIDDEN, hidden_size), (HEADS, heads), (KV_HEADS, kv_heads)):
            widths |= dict.fromkeys(names, width)
        if inner and vars(part).get(MAMBA_HEADS):
            widths[MAMBA_HEADS] = inner // vars(part)[MAMBA_SIZE]
        narrowed |= _set_smaller(part, widths)
    return narrowed


NARROWINGS: Sequence[Narrowing] = (narrow_widths, narrow_by_heads)  # the one that gives the smaller twins first


def check_heads(twin: PreTrainedModel, model: PreTrainedModel) -> None:
    """Raise ``UnsupportedLayerError`` if a module's heads have other sizes or scales than those of the other model."""
    own = dict(text_body(model).named_modules())
    for name, module in text_body(twin).named_modules():
        for key in OF_HEADS:
            if getattr(module, key, None) != getattr(own.get(name), key, None):
                raise UnsupportedLayerError(f"{key} of its {type(module).__name__} depends on a width")


def _places(config: PreTrainedConfig, names: Sequence[str]) -> Iterator[tuple[PreTrainedConfig, str]]:
    """Yield the parts of a config that have a number of one of some names, with this name."""
    for part in config_parts(config):
        yield from ((part, name) for name in names if isinstance(vars(part).get(name), int))


def _name(config: Any, key: str) -> str:
    """Return a key's own name in a config, which may know it by another."""
    name: str = config.attribute_map.get(key, key)
    return name


def _set_smaller(config: Any, widths: dict[str, int]) -> set[str]:
    """Set the keys of a config whose numbers are larger than these; returns them."""
    known = vars(config)
    narrowed = {key for key, width in widths.items() if isinstance(value := known.get(key), int) and value > width}
    for key in narrowed:
        setattr(config, key, widths[key])
    return narrowed
