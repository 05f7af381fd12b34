"""Embeds the images of prompts with the model's vision towers, and merges them into the inputs of a step.

The complete model is called once with a prompt and its images, and stopped where it calls its text part. The arguments
of that call are kept: embeddings, positions with several axes, inputs of later layers. Each step merges them into the
arguments that the same tokens would have without images. So any number of sequences, with and without images, share a
step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from server.model.architecture import text_part
from server.model.prompt_media import PromptMedia, TextInputs
from server.model.step import SequenceChunk

POSITIONS = "position_ids"
SPARSE = {"deepstack_visual_embeds": "visual_pos_masks"}  # lists of rows, and the mask that selects their tokens
EXPERTS_OF = "moe_mm_token_type_ids"  # not 0 for tokens that go to experts for images (ERNIE 4.5 VL)
NOT_PER_TOKEN = {"attention_mask", "cache", "input_ids"}  # the step sets these


class MediaError(RuntimeError):
    """The model can't process the images of a prompt."""


class _TextPartReached(Exception):  # noqa: N818  stops the forward pass, and is no error
    def __init__(self, arguments: dict[str, Any]):
        super().__init__()
        self.arguments = arguments


def embed_images(model: PreTrainedModel, media: PromptMedia) -> TextInputs:
    """Run a model's vision towers on the images of a prompt, once.

    Raises:
        MediaError: the model refuses the images, or passes something to its text part that can't be merged into a step.
    """
    if media.text_inputs is not None:
        return media.text_inputs
    text_inputs = _text_inputs(_text_part_arguments(model, media), len(media.token_ids))
    media.keep(text_inputs)
    return text_inputs


def _text_part_arguments(model: PreTrainedModel, media: PromptMedia) -> dict[str, Any]:
    """Run the model up to the call of its text part, and return the arguments of that call."""

    def stop(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        raise _TextPartReached(kwargs)

    def place(value: torch.Tensor | list[Any]) -> torch.Tensor | list[Any]:
        if isinstance(value, list):
            return value
        return value.to(model.device, model.dtype if value.is_floating_point() else None)

    inputs = {name: place(value) for name, value in media.inputs.items()}
    token_ids = torch.tensor([media.token_ids], device=model.device)
    handle = text_part(model).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        # Some models place images only where the mask marks tokens that are not padding.
        model(input_ids=token_ids, attention_mask=torch.ones_like(token_ids), use_cache=False, **inputs)
    except _TextPartReached as reached:
        return reached.arguments
    except Exception as error:  # a tower may raise anything; only this prompt fails
        raise MediaError(f"{type(model).__name__} can't process the images: {error}") from error
    finally:
        handle.remove()
    raise MediaError(f"{type(model).__name__} passes no images to its text part; send text alone")


def _text_inputs(arguments: Mapping[str, Any], num_tokens: int) -> TextInputs:
    positions = arguments.get(POSITIONS)
    per_token, sparse = {}, {}
    for name, value in arguments.items():
        if name == POSITIONS or name in NOT_PER_TOKEN:
            continue
        if name in SPARSE and value is not None:
            sparse[name] = list(value)
        elif isinstance(value, torch.Tensor) and value.shape[:2] == (1, num_tokens):
            per_token[name] = value[0]
        elif isinstance(value, torch.Tensor | list | tuple | dict):
            raise MediaError(f"the model passes {name} to its text part, which is not one value per token")
    return TextInputs(per_token, sparse, None if positions is None else positions.reshape(-1, num_tokens))


@dataclass(frozen=True)
class _ChunkRows:
    """The rows of a step that belong to one chunk of a sequence with images."""

    first: int  # row
    chunk: SequenceChunk
    inputs: TextInputs

    @property
    def num_prompt_tokens(self) -> int:
        """The number of the chunk's tokens that belong to the prompt."""
        return max(0, min(self.chunk.num_tokens, len(self._prompt) - self.chunk.num_cached))

    @property
    def _prompt(self) -> Sequence[int]:
        assert self.chunk.media is not None
        return self.chunk.media.token_ids

    @property
    def rows(self) -> slice:
        """The rows of the prompt's tokens in the step."""
        return slice(self.first, self.first + self.num_prompt_tokens)

    @property
    def tokens(self) -> slice:
        """The same tokens in the prompt."""
        return slice(self.chunk.num_cached, self.chunk.num_cached + self.num_prompt_tokens)


@dataclass(frozen=True)
class StepImages:
    """The embedded images of a step, ready to merge into the inputs of the model's text part."""

    rows: Sequence[_ChunkRows]

    @classmethod
    def of(cls, model: PreTrainedModel, chunks: Sequence[SequenceChunk]) -> StepImages:
        """Collect the images of a step's chunks, in their order; runs the towers for images that are new."""
        rows, first = [], 0
        for chunk in chunks:
            if chunk.media is not None:
                rows.append(_ChunkRows(first, chunk, embed_images(model, chunk.media)))
            first += chunk.num_tokens
        return cls(rows)

    def image_token_mask(self, num_tokens: int) -> npt.NDArray[np.bool_] | None:
        """The step's tokens that go to experts for images, ``(tokens,)``; None if the model has no such experts."""
        placed = [rows for rows in self.rows if EXPERTS_OF in rows.inputs.per_token]
        if not placed:
            return None
        return _merge(None, EXPERTS_OF, placed, num_tokens)[0].bool().cpu().numpy()

    def merge(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Merge the images into the text part's arguments for all tokens of the step.

        Args:
            arguments: with ``inputs_embeds (1, tokens, hidden)``, as for tokens without images.
        """
        num_tokens = arguments["inputs_embeds"].shape[1]
        merged = dict(arguments)
        merged[POSITIONS] = self._positions(arguments[POSITIONS])
        with_prompt = [rows for rows in self.rows if rows.num_prompt_tokens]
        for name in {name for rows in with_prompt for name in rows.inputs.per_token}:
            merged[name] = _merge(arguments.get(name), name, with_prompt, num_tokens)
        for name in {name for rows in with_prompt for name in rows.inputs.sparse}:
            merged[name] = _join(name, with_prompt)
        return merged

    def _positions(self, indices: torch.Tensor) -> torch.Tensor:
        """``(1, tokens)`` to ``(1, tokens)`` or, if image positions have several axes, ``(axes, 1, tokens)``."""
        placed = [rows for rows in self.rows if rows.inputs.positions is not None]
        if not placed:
            return indices
        num_axes = max(len(rows.inputs.positions) for rows in placed if rows.inputs.positions is not None)
        positions = indices.expand(num_axes, -1).clone()  # (axes, tokens)
        for rows in placed:
            assert rows.inputs.positions is not None
            positions[:, rows.first : rows.first + rows.chunk.num_tokens] += rows.inputs.position_offset
            positions[:, rows.rows] = rows.inputs.positions[:, rows.tokens].to(positions.dtype)
        return positions if num_axes == 1 else positions.unsqueeze(1)


def _merge(base: torch.Tensor | None, name: str, chunks: Sequence[_ChunkRows], num_tokens: int) -> torch.Tensor:
    """One argument for all tokens, ``(1, tokens, ...)``; without a base, tokens without images get zeros."""
    sample = next(rows.inputs.per_token[name] for rows in chunks if name in rows.inputs.per_token)
    merged = sample.new_zeros((1, num_tokens, *sample.shape[1:])) if base is None else base.clone()
    for rows in chunks:
        if name in rows.inputs.per_token:
            merged[0, rows.rows] = rows.inputs.per_token[name][rows.tokens].to(merged.dtype)
    return merged


def _join(name: str, chunks: Sequence[_ChunkRows]) -> list[torch.Tensor]:
    """The lists of rows of the step's masked tokens, one tensor per level."""
    parts = []
    for rows in chunks:
        mask, tokens = rows.inputs.per_token[SPARSE[name]], rows.tokens
        before, count = int(mask[: tokens.start].sum()), int(mask[tokens].sum())
        parts.append([level[before : before + count] for level in rows.inputs.sparse[name]])
    return [torch.cat(levels) for levels in zip(*parts, strict=True)]
