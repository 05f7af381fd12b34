"""Checks the number of layers of a config against the tensors of its checkpoint."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from transformers import PreTrainedConfig, PreTrainedModel

from server.model.architecture import decoder_layers, text_body
from server.model.checkpoint.config_checks import CONFIG
from server.model.errors import ModelError

LAYER = re.compile(r"(.*?\.)(\d+)\.")  # begins the name of a layer's tensor
NUM_LAYERS = ("num_hidden_layers", "num_layers")
# In names of layers that predict further tokens, after the others, and in keys with their number.
PREDICTORS = re.compile("mtp|nextn|eh_proj")


def num_layers_setting(model: PreTrainedModel) -> str | None:
    """Return the number of a decoder's layers as "key is number"; None if no key of the config has it."""
    if model.config.is_encoder_decoder:
        return None
    count, values = len(decoder_layers(text_body(model)) or ()), vars(model.config.get_text_config())
    return next((f"{key} is {count}" for key in NUM_LAYERS if values.get(key) == count), None)


def check_num_layers(model: PreTrainedModel, used: Iterable[str], unused: Iterable[str]) -> None:
    """Check that a checkpoint has no layers behind those of the config, but such as predict further tokens.

    Args:
        model: on the meta device.
        used: names of the tensors in the checkpoint that the model has.
        unused: those that it does not have.

    Raises:
        ModelError: it has more; the message names the key.
    """
    setting = num_layers_setting(model)
    if setting is None:
        return
    count = len(decoder_layers(text_body(model)) or ())
    last = f"{count - 1}."
    prefixes = {found[1] for name in used if (found := LAYER.match(name)) and found[0] == found[1] + last}
    first_beyond = count + _num_predictors(model.config.get_text_config())
    more = _first_layer(unused, prefixes, first_beyond, model._keys_to_ignore_on_load_unexpected or ())  # noqa: SLF001
    if more is not None:
        raise ModelError(f"{CONFIG}: {setting}, but the checkpoint has tensors of {more}; download it again")


def _num_predictors(config: PreTrainedConfig) -> int:
    return sum(value for key, value in vars(config).items() if type(value) is int and PREDICTORS.search(key))


def _first_layer(names: Iterable[str], prefixes: Collection[str], first: int, ignored: Collection[str]) -> str | None:
    """Return the layer with the lowest number, ``first`` or more, of which there are tensors."""
    found = [(int(match[2]), match[1], name) for name in names if (match := LAYER.match(name)) and match[1] in prefixes]
    others = (PREDICTORS.pattern, *ignored)
    left_out = {number for number, _, name in found if any(re.search(each, name) for each in others)}
    more = [(number, prefix) for number, prefix, _ in found if number >= first and number not in left_out]
    return "{1}{0}".format(*min(more)) if more else None
