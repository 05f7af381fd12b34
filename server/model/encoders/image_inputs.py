"""ImageInputs: images as the prompts of an encoder of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from server.model.prompt_media import PromptMedia

MODES = {1: "L", 3: "RGB"}  # Pillow's, by channels
PIXELS = "pixel_values"
MOST = 255  # of a pixel


class ImageInputs:
    """Resizes images to the size that an encoder reads, with pixels from 0 to 1.

    Args:
        config: of the encoder.
    """

    def __init__(self, config: Any):
        self._size, self._mode = int(config.image_size), MODES[config.num_channels]
        self._num_patches = int(config.num_patches)

    def encode(self, image: Image.Image) -> PromptMedia:
        """Return a prompt with a token for each patch; all are 0, as nothing is looked up by them."""
        resized = image.convert(self._mode).resize((self._size, self._size), Image.Resampling.BILINEAR)
        pixels = np.asarray(resized, dtype=np.float32).reshape(self._size, self._size, -1) / MOST
        return PromptMedia([0] * self._num_patches, {PIXELS: torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)})
