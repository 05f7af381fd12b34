"""The image tokens of model families whose requests run one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import transformers
from transformers.models.glm5_next.image_processing_pil_glm5_next import Glm5NextImageProcessorPil
from transformers.models.hy_v4_vl.image_processing_pil_hy_v4_vl import HYV4VLImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

PATCHES = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
FLAT_PATCHES = PATCHES | {"temporal_patch_size": 1}
PIXELS = {"size": {"shortest_edge": 8 * 8, "longest_edge": 24 * 24}}


@dataclass(frozen=True)
class Vision:
    """A family's image tokens and image processor."""

    make_processor: Callable[[], Any]
    tokens: dict[str, int]  # ids of image tokens
    names: dict[str, str] = field(default_factory=dict)  # those that are attributes of the tokenizer
    start: str = ""
    end: str = ""
    settings: dict[str, Any] = field(default_factory=dict)  # settings of the processor
    image: str | None = None  # the token of an image in a chat, if another than that of its patches

    @property
    def written(self) -> str:
        """The token of an image in a chat."""
        token = self.image or next(token for token, number in self.tokens.items() if number == 100)
        return f"{self.start} {token} {self.end}".strip()


QWEN = Vision(
    lambda: Qwen2VLImageProcessorPil(**PATCHES, **PIXELS),
    {"<|image_pad|>": 100, "<|video_pad|>": 101, "<|vision_start|>": 103, "<|vision_end|>": 104},
    start="<|vision_start|>",
    end="<|vision_end|>",
)
GLM_TOKENS = {
    "<|image|>": 100,
    "<|video|>": 101,
    "<|begin_of_image|>": 103,
    "<|end_of_image|>": 104,
    "<|begin_of_video|>": 105,
    "<|end_of_video|>": 106,
}
MISTRAL = Vision(
    lambda: PixtralImageProcessorPil(patch_size={"height": 4, "width": 4}, size={"longest_edge": 32}),
    {"[IMG]": 100, "[IMG_BREAK]": 105, "[IMG_END]": 106},
    settings={"patch_size": 4, "spatial_merge_size": 2},
)
INKLING2 = Vision(
    lambda: transformers.Inkling2ImageProcessor(size={"height": 8, "width": 8}), {"<|unused_200054|>": 100}
)
SOLO_VISIONS = {  # by model type
    "dots3_note": Vision(
        lambda: Qwen2VLImageProcessorPil(**FLAT_PATCHES, **PIXELS),
        {"<|imgpad|>": 100, "<|video_pad|>": 101, "<|audio_comp_pad|>": 102},
    ),
    "glm5_next": Vision(
        lambda: Glm5NextImageProcessorPil(**PATCHES, min_image_tokens=4, max_image_tokens=9),
        GLM_TOKENS,
        start="<|begin_of_image|>",
        end="<|end_of_image|>",
    ),
    "hy_v4_vl": Vision(
        lambda: HYV4VLImageProcessorPil(**FLAT_PATCHES, **PIXELS), {"<|image_pad|>": 100, "<|video_pad|>": 101}
    ),
    "inkling2": INKLING2,
    "inkling2_loop": INKLING2,
    "inkling_mm_model": Vision(
        lambda: transformers.InklingImageProcessor(size={"height": 2, "width": 2}),
        {
            "<|unused_200054|>": 100,
            "<|unused_200053|>": 102,
            "<|content_image|>": 103,
            "<|content_audio_input|>": 107,
        },
    ),
    "minimax_m3_vl": Vision(
        lambda: transformers.MiniMaxM3VLImageProcessor(**PATCHES, **PIXELS),
        {"]<]image[>[": 100, "]<]video[>[": 101, "]<]start of image[>[": 103, "]<]end of image[>[": 104},
    ),
    "mistral_large4": MISTRAL,
    "qwen4_exp": QWEN,
    "unlimited_ocr": Vision(
        lambda: transformers.UnlimitedOcrImageProcessor(
            size={"height": 32, "width": 32}, tile_size=16, min_patches=2, max_patches=4
        ),
        {"<image>": 100},
        settings={"patch_size": 4, "downsample_ratio": 4},
    ),
}
