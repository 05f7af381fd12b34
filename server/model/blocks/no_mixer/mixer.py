"""NoMixer: the place of a mixer in a layer that is a feed-forward part alone."""

from __future__ import annotations

from server.kernels.native.structures.mixers import MixerKind
from server.model.blocks.capture import LayerCapture
from server.model.blocks.mixer import Mixer


class NoMixer(Mixer):
    """Adds nothing.

    Args:
        index: of the layer.
    """

    kind = MixerKind.NONE

    def __init__(self, index: int):
        super().__init__(None, index, None)

    def for_trial(self, captured: LayerCapture, num_tokens: int) -> Mixer:
        del captured, num_tokens
        return self
