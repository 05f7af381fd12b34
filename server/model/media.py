"""Images of prompts: what a model's towers make of them, and how it comes to the text's part of the model.

The whole model is called once with a prompt and its images, up to the call of its text's part. What that is given is
kept: embeddings, positions of several axes, what further layers add. In each step it is laid over what the same tokens
would be given without images, so that any number of sequences, with images and without, go through one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from .architecture import text_part
from .prompt_media import PromptMedia, Seen
from .step import SequenceChunk

POSITIONS = "position_ids"
SPARSE = {"deepstack_visual_embeds": "visual_pos_masks"}  # lists of rows of those tokens that a mask is true of
EXPERTS_OF = "moe_mm_token_type_ids"  # not 0 for tokens that go to experts for images (ERNIE 4.5 VL)
NOT_OF_TOKENS = {"attention_mask", "cache", "input_ids"}  # the step's own affair


class MediaError(RuntimeError):
    """The model can't look at the images of a prompt."""


class _Reached(Exception):  # noqa: N818  no error
    def __init__(self, given: dict[str, Any]):
        super().__init__()
        self.given = given


def see(model: PreTrainedModel, media: PromptMedia) -> Seen:
    """Run a model's towers on the images of a prompt, once.

    Raises:
        MediaError: the model refuses the images, or gives its text something that can't be laid over a step.
    """
    if media.seen is not None:
        return media.seen
    seen = _seen(_given_to_text(model, media), len(media.token_ids))
    media.keep(seen)
    return seen


def _given_to_text(model: PreTrainedModel, media: PromptMedia) -> dict[str, Any]:
    def stop(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        raise _Reached(kwargs)

    def place(value: torch.Tensor | list[Any]) -> torch.Tensor | list[Any]:
        if isinstance(value, list):
            return value
        return value.to(model.device, model.dtype if value.is_floating_point() else None)

    inputs = {name: place(value) for name, value in media.inputs.items()}
    token_ids = torch.tensor([media.token_ids], device=model.device)
    handle = text_part(model).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        # Some models place images only where a mask says which tokens are no padding.
        model(input_ids=token_ids, attention_mask=torch.ones_like(token_ids), use_cache=False, **inputs)
    except _Reached as reached:
        return reached.given
    except Exception as error:  # whatever a tower raises, it is the fault of this prompt alone
        raise MediaError(f"{type(model).__name__} can't look at the images: {error}") from error
    finally:
        handle.remove()
    raise MediaError(f"{type(model).__name__} makes no text of images")


def _seen(given: Mapping[str, Any], num_tokens: int) -> Seen:
    positions = given.get(POSITIONS)
    of_tokens, sparse = {}, {}
    for name, value in given.items():
        if name == POSITIONS or name in NOT_OF_TOKENS:
            continue
        if name in SPARSE and value is not None:
            sparse[name] = list(value)
        elif isinstance(value, torch.Tensor) and value.shape[:2] == (1, num_tokens):
            of_tokens[name] = value[0]
        elif isinstance(value, torch.Tensor | list | tuple | dict):
            raise MediaError(f"images give the text's part a {name} that is not of single tokens")
    return Seen(of_tokens, sparse, None if positions is None else positions.reshape(-1, num_tokens))


@dataclass(frozen=True)
class _Rows:
    """The part of a step that one chunk of a sequence with images is."""

    first: int  # row
    chunk: SequenceChunk
    seen: Seen

    @property
    def num_seen(self) -> int:
        """How many of its tokens are the prompt's."""
        return max(0, min(self.chunk.num_tokens, len(self._prompt) - self.chunk.num_cached))

    @property
    def _prompt(self) -> Sequence[int]:
        assert self.chunk.media is not None
        return self.chunk.media.token_ids

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.num_seen)

    @property
    def tokens(self) -> slice:
        return slice(self.chunk.num_cached, self.chunk.num_cached + self.num_seen)


@dataclass(frozen=True)
class Overlay:
    """What images give to the text's part of a model in one step."""

    rows: Sequence[_Rows]

    @classmethod
    def of(cls, model: PreTrainedModel, chunks: Sequence[SequenceChunk]) -> Overlay:
        """Of some chunks of a step, in their order; towers run for images that come for the first time."""
        rows, first = [], 0
        for chunk in chunks:
            if chunk.media is not None:
                rows.append(_Rows(first, chunk, see(model, chunk.media)))
            first += chunk.num_tokens
        return cls(rows)

    def are_images(self, num_tokens: int) -> npt.NDArray[np.bool_] | None:
        """Which of the step's tokens go to experts for images, ``(tokens,)``; None if the model has no such experts."""
        placed = [rows for rows in self.rows if EXPERTS_OF in rows.seen.of_tokens]
        if not placed:
            return None
        return _lay(None, EXPERTS_OF, placed, num_tokens)[0].bool().cpu().numpy()

    def lay(self, given: dict[str, Any]) -> dict[str, Any]:
        """What the text's part is given, of all the step's tokens; ``inputs_embeds (1, tokens, hidden)`` are there."""
        num_tokens = given["inputs_embeds"].shape[1]
        laid = dict(given)
        laid[POSITIONS] = self._positions(given[POSITIONS])
        visible = [rows for rows in self.rows if rows.num_seen]
        for name in {name for rows in visible for name in rows.seen.of_tokens}:
            laid[name] = _lay(given.get(name), name, visible, num_tokens)
        for name in {name for rows in visible for name in rows.seen.sparse}:
            laid[name] = _join(name, visible)
        return laid

    def _positions(self, places: torch.Tensor) -> torch.Tensor:
        """``(1, tokens)`` to ``(1, tokens)`` or, where images are placed on several axes, ``(axes, 1, tokens)``."""
        placed = [rows for rows in self.rows if rows.seen.positions is not None]
        if not placed:
            return places
        num_axes = max(len(rows.seen.positions) for rows in placed if rows.seen.positions is not None)
        positions = places.expand(num_axes, -1).clone()  # (axes, tokens)
        for rows in placed:
            assert rows.seen.positions is not None
            positions[:, rows.first : rows.first + rows.chunk.num_tokens] += rows.seen.shift
            positions[:, rows.rows] = rows.seen.positions[:, rows.tokens].to(positions.dtype)
        return positions if num_axes == 1 else positions.unsqueeze(1)


def _lay(base: torch.Tensor | None, name: str, visible: Sequence[_Rows], num_tokens: int) -> torch.Tensor:
    """One argument of all tokens, ``(1, tokens, ...)``; zeros for those without images where the model gives none."""
    sample = next(rows.seen.of_tokens[name] for rows in visible if name in rows.seen.of_tokens)
    laid = sample.new_zeros((1, num_tokens, *sample.shape[1:])) if base is None else base.clone()
    for rows in visible:
        if name in rows.seen.of_tokens:
            laid[0, rows.rows] = rows.seen.of_tokens[name][rows.tokens].to(laid.dtype)
    return laid


def _join(name: str, visible: Sequence[_Rows]) -> list[torch.Tensor]:
    """One list of rows of masked tokens, of the step's."""
    parts = []
    for rows in visible:
        mask, tokens = rows.seen.of_tokens[SPARSE[name]], rows.tokens
        before, count = int(mask[: tokens.start].sum()), int(mask[tokens].sum())
        parts.append([level[before : before + count] for level in rows.seen.sparse[name]])
    return [torch.cat(levels) for levels in zip(*parts, strict=True)]
