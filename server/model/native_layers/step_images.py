"""ImageRows: the images of a step as native layers take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from server.model.attention.image_spans import split_spans
from server.model.multimodal.image_embeddings import EXPERTS_OF, POSITIONS, SPARSE, MediaError, StepImages
from server.model.step import SequenceChunk, positions_of

EMBEDDED = "inputs_embeds"
TOKENS = "ple_input_ids"  # the same as those of the step
KNOWN = {EMBEDDED, EXPERTS_OF, POSITIONS, TOKENS, *SPARSE, *SPARSE.values()}


@dataclass(frozen=True)
class ImageRows:
    """The rows of a step with images."""

    embedded: torch.Tensor  # float32 (tokens, hidden)
    positions: torch.Tensor | None  # (axes, tokens); None if they are those of the sequence
    additions: Mapping[int, torch.Tensor]  # to the hidden states after a layer, float32 (image tokens, hidden)
    are_images: torch.Tensor | None  # (tokens,), those that get additions
    newest: npt.NDArray[np.int32] | None  # (tokens,), last position that each sees in layers that look ahead
    to_image_experts: npt.NDArray[np.bool_] | None  # (tokens,); None if all go to a layer's own experts

    @classmethod
    def of(cls, images: StepImages, chunks: Sequence[SequenceChunk], embedded: torch.Tensor) -> ImageRows:
        """Merge the images of a step into its rows.

        Args:
            images: of the step.
            chunks: of the step.
            embedded: the rows as for tokens without images, float32 ``(tokens, hidden)``.

        Raises:
            MediaError: the model passes something to its text part that native layers do not take.
        """
        own = torch.tensor([positions_of(chunks)])
        merged = images.merge({EMBEDDED: embedded.unsqueeze(0), POSITIONS: own})
        unknown = [name for name, value in merged.items() if name not in KNOWN and isinstance(value, torch.Tensor)]
        if unknown:
            raise MediaError(f"the model passes {unknown[0]} to its text part, which its native layers do not take")
        positions = merged[POSITIONS].reshape(-1, own.shape[1])
        levels: Sequence[torch.Tensor] = next((merged[name] for name in SPARSE if name in merged), [])
        mask = next((merged[name] for name in SPARSE.values() if name in merged), None)
        to_experts = images.image_token_mask(own.shape[1])
        return cls(
            merged[EMBEDDED][0].float(),
            None if bool((positions == own).all()) else positions,
            {layer: level.float() for layer, level in enumerate(levels)},
            None if mask is None else mask[0].bool(),
            _newest(chunks),
            to_experts if to_experts is not None and to_experts.any() else None,
        )

    def add_after(self, layer: int, hidden: torch.Tensor) -> None:
        """Add to the hidden states ``(tokens, hidden)`` what follows a layer."""
        if layer in self.additions:
            assert self.are_images is not None
            hidden[self.are_images] += self.additions[layer]


def _newest(chunks: Sequence[SequenceChunk]) -> npt.NDArray[np.int32] | None:
    """Return the last position that each token sees in a window; None if that is its own for all."""
    newest = [
        span.last - 1 if span.is_bidirectional else span.first + i
        for chunk in chunks
        for span in split_spans(chunk, has_bidirectional=True)
        for i in range(span.num_tokens)
    ]
    return None if newest == positions_of(chunks) else np.array(newest, dtype=np.int32)
