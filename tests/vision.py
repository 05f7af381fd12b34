"""The files of multimodal checkpoints beside the weights: a tokenizer with image tokens, and an image processor."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import Ernie4_5_VLMoeImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.byte_tokenizer import save_byte_tokenizer
from tests.checkpoints import save_checkpoint
from tests.families import make_config
from tests.sequential_vision import GLM_TOKENS, MISTRAL, PATCHES, PIXELS, QWEN, SOLO_VISIONS, Vision

NUM_BYTES = 256
WORDS = 100  # the first ids; later ones are image tokens, as in ``tests.towers.TOP``

VISIONS = {  # by model type
    "qwen3_vl_moe": QWEN,
    "qwen3_5_moe": QWEN,
    "glm4v_moe": Vision(
        lambda: Glm4vImageProcessorPil(**PATCHES, size={"shortest_edge": 128, "longest_edge": 2 * 24 * 24}),
        GLM_TOKENS,
        start="<|begin_of_image|>",
        end="<|end_of_image|>",
    ),
    "glm46v": Vision(
        lambda: Glm46VImageProcessorPil(**PATCHES, size={"shortest_edge": 128, "longest_edge": 2 * 24 * 24}),
        GLM_TOKENS,
        start="<|begin_of_image|>",
        end="<|end_of_image|>",
    ),
    "ernie4_5_vl_moe": Vision(
        lambda: Ernie4_5_VLMoeImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=1, **PIXELS),
        {
            "<|IMAGE_PLACEHOLDER|>": 100,
            "<|VIDEO_PLACEHOLDER|>": 101,
            "<|IMAGE_START|>": 103,
            "<|IMAGE_END|>": 104,
            "<|VIDEO_START|>": 105,
            "<|VIDEO_END|>": 106,
        },
        {
            "image_token": "<|IMAGE_PLACEHOLDER|>",
            "image_start_token": "<|IMAGE_START|>",
            "image_end_token": "<|IMAGE_END|>",
            "video_token": "<|VIDEO_PLACEHOLDER|>",
            "video_start_token": "<|VIDEO_START|>",
            "video_end_token": "<|VIDEO_END|>",
        },
        "<|IMAGE_START|>",
        "<|IMAGE_END|>",
    ),
    "gemma4": Vision(
        lambda: Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70, pooling_kernel_size=3),
        {
            "<image_soft_token>": 100,
            "<|video|>": 101,
            "<audio>": 102,
            "<start_of_image>": 103,
            "<end_of_image>": 104,
            "<start_of_audio>": 107,
            "<end_of_audio>": 108,
        },
        {
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "audio_token": "<audio>",
            "boa_token": "<start_of_audio>",
            "eoa_token": "<end_of_audio>",
        },
    ),
    "internvl": Vision(
        lambda: GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, min_patches=1, max_patches=1),
        {"<IMG_CONTEXT>": 100, "<video>": 101, "<img>": 103, "</img>": 104},
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        settings={"image_seq_length": 16},
    ),
    "kimi_k25": Vision(
        lambda: transformers.Kimi_K25ImageProcessor(
            patch_size=4, merge_size=2, max_patches=36, size={"max_height": 32, "max_width": 32}
        ),
        {"<|media_pad|>": 100, "<|kimi_k25_video_placeholder|>": 101},
    ),
    "llama4": Vision(
        lambda: transformers.Llama4ImageProcessor(size={"height": 32, "width": 32}, max_patches=2),
        {
            "<|patch|>": 100,
            "<|image|>": 101,
            "<|image_start|>": 103,
            "<|image_end|>": 104,
            "<|tile_x_separator|>": 105,
            "<|tile_y_separator|>": 106,
        },
        settings={"patch_size": 4},
        image="<|image|>",
    ),
    "mistral3": MISTRAL,
    "muse_spark": Vision(
        lambda: transformers.MuseGlimmerImageProcessor(
            patch_size=4, merge_size=2, temporal_patch_size=2, max_image_tokens=16
        ),
        {
            "<|patch|>": 100,
            "<|video|>": 101,
            "<|audio|>": 102,
            "<|image_start|>": 103,
            "<|image_end|>": 104,
            "<|vid_start|>": 105,
            "<|vid_end|>": 106,
            "<|soft_audio_start|>": 107,
            "<|soft_audio_end|>": 108,
            "<|vid_frame_separator|>": 109,
        },
    ),
    "nemotron_h_omni": Vision(
        lambda: transformers.NemotronH_Omni_Reasoning_V3ImageProcessor(
            patch_size=4, min_num_patches=16, max_num_patches=36
        ),
        {
            "<image>": 100,
            "<video>": 101,
            "<so_embedding>": 102,
            "<img>": 103,
            "</img>": 104,
            "<so_start>": 107,
            "<so_end>": 108,
        },
    ),
    "step3p7": Vision(
        lambda: transformers.Step3p7ImageProcessor(
            size={"height": 32, "width": 32}, patch_size=16, vision_patch_size=4, downsampler_stride=4
        ),
        {
            "<im_patch>": 100,
            "<im_start>": 103,
            "<im_end>": 104,
            "<patch_start>": 105,
            "<patch_end>": 106,
            "<patch_newline>": 107,
        },
    ),
    "qwen3_omni_moe": Vision(
        lambda: Qwen2VLImageProcessorPil(**PATCHES, **PIXELS),
        {
            "<|image_pad|>": 100,
            "<|video_pad|>": 101,
            "<|audio_pad|>": 102,
            "<|vision_start|>": 103,
            "<|vision_end|>": 104,
        },
        {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "audio_token": "<|audio_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
            "audio_bos_token": "<|vision_start|>",
            "audio_eos_token": "<|vision_end|>",
        },
        "<|vision_start|>",
        "<|vision_end|>",
    ),
    **SOLO_VISIONS,
}


def save_vision(model_type: str, folder: Path) -> None:
    """Save a tokenizer with one token per word, a chat template and an image processor beside a checkpoint."""
    vision = VISIONS[model_type]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{number}": number for number in range(3, WORDS)}}
    vocabulary |= {f"x{number}": number for number in range(WORDS, 128) if number not in vision.tokens.values()}
    words = Tokenizer(models.WordLevel(vocabulary | vision.tokens, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="<unk>",
        extra_special_tokens={f"token_{number}": token for token, number in vision.tokens.items()} | vision.names,
    )
    tokenizer.chat_template = _template(vision)
    tokenizer.save_pretrained(folder)
    _save_processor(vision, folder)


def _template(vision: Vision) -> str:
    return (
        "{% for message in messages %}{% if message.content is string %} {{ message.content }}"
        "{% else %}{% for part in message.content %}"
        f"{{% if part.type == 'image' %}} {vision.written}{{% else %}} {{{{ part.text }}}}{{% endif %}}"
        "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %} w3{% endif %}"
    )


def _save_processor(vision: Vision, folder: Path) -> None:
    vision.make_processor().save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(vision.settings))


def save_bytes_and_images(folder: Path) -> Path:
    """Save a tiny model of images and of bytes of text, which can write whatever a grammar asks for."""
    special = ("</s>", *QWEN.tokens)
    config: Any = make_config("qwen3_vl_moe")
    text = config.text_config
    text.vocab_size, text.eos_token_id, text.max_position_embeddings = NUM_BYTES + len(special), NUM_BYTES, 2048
    numbers = range(NUM_BYTES + 1, text.vocab_size)
    config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id = numbers
    save_checkpoint(config, folder)
    save_byte_tokenizer(folder, _template(QWEN), special)
    _save_processor(QWEN, folder)
    return folder


def make_image(seed: int, width: int = 16, height: int = 12) -> Image.Image:
    """An image of random noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
