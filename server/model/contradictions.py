"""Names the keys of a config that contradict the tensors of its checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy

import torch
from transformers import PreTrainedModel

from server.model.architecture import text_body
from server.model.checkpoint.config_checks import CONFIG, LATENTS
from server.model.checkpoint.num_layers import num_layers_setting
from server.model.errors import ExpertShapeError, ModelError, TrunkShapeError
from server.model.layer_settings import layer_values
from server.model.model_building import build_model

MOST_KEYS = 4  # that a message names


@contextmanager
def naming_keys(model: PreTrainedModel) -> Iterator[None]:
    """Add to the error about a tensor which keys of the config give its parameter another shape.

    Args:
        model: on the meta device, with its experts' parameters.
    """
    try:
        yield
    except (ExpertShapeError, TrunkShapeError) as error:
        keys = keys_of(model, error.parameter, error.dimensions)
        if not keys:
            raise
        raise type(error)(f"{error} ({CONFIG}: {', '.join(keys)})", error.parameter, error.dimensions) from error


def check_rotated_width(model: PreTrainedModel, name: str) -> None:
    """Check that a model with latent attention rotates as many numbers of a head as its heads have for it.

    Args:
        model: on the meta device.
        name: of the checkpoint.

    Raises:
        ModelError: it rotates more or fewer; the message names the key.
    """
    text = model.config.get_text_config()
    widths = layer_values(text, "qk_rope_head_dim") if layer_values(text, LATENTS) else []
    if not widths:
        return
    rotation = getattr(getattr(text_body(model), "rotary_emb", None), "inv_freq", None)
    if rotation is None or 2 * len(rotation) in widths:
        return
    raise ModelError(
        f"{CONFIG} of {name} can't be used: head_dim is {layer_values(text, 'head_dim')[0]}, of which "
        f"{2 * len(rotation)} are rotated, and qk_rope_head_dim is {widths[0]}; download the checkpoint again"
    )


def keys_of(model: PreTrainedModel, parameter: str, dimensions: Collection[int]) -> list[str]:
    """Return the numbers of a model's config that some dimensions of a parameter depend on, as "key is number".

    Each number is doubled or halved by turns, and the model built again.

    Args:
        model: on the meta device, with its experts' parameters.
        parameter: its name in the model.
        dimensions: of the parameter's shape; none for whether there is such a parameter.
    """
    own = model.state_dict(keep_vars=True)
    if parameter not in own:
        return []
    if not dimensions:
        setting = num_layers_setting(model)
        return [] if setting is None else [setting]
    found = []
    for key, value in vars(model.config.get_text_config()).items():
        if type(value) is not int or value < 1 or key.endswith("_id"):
            continue
        shape = next(_shapes(model, key, (2 * value, value // 2), parameter), None)
        if shape is not None and any(shape[each] != own[parameter].shape[each] for each in dimensions):
            found.append(f"{key} is {value}")
        if len(found) == MOST_KEYS:
            break
    return found


def _shapes(model: PreTrainedModel, key: str, numbers: Collection[int], parameter: str) -> Iterator[torch.Size]:
    """Yield the shape of a parameter for other numbers of a key of the config, with which the model can be built."""
    for number in numbers:
        config = deepcopy(model.config)
        config.quantization_config = None
        setattr(config.get_text_config(), key, number)
        with suppress(ModelError, RuntimeError):
            other = build_model(config, torch.bfloat16, model_class=type(model)).state_dict().get(parameter)
            if other is not None:
                yield other.shape
