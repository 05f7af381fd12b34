"""Forward: calls a model with the flattened tokens of a step, and returns logits of some of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from server.kernels.upload import upload
from server.model.architecture import text_body, text_part
from server.model.multimodal.image_embeddings import StepImages
from server.model.recurrent.states import AttentionPassThrough


class Forward:
    """Calls one model, and hides the differences between the classes of transformers.

    A text part with a head of its own, such as Llama 4's, is called without the model around it.

    ``hidden`` are the last hidden states (after the final norm) that the latest call asked for, and ``hidden_size`` is
    their size, once there was a call.
    """

    def __init__(self, model: PreTrainedModel):
        self._device = model.device
        part = text_part(model)
        self._callee: Any = model if part.get_output_embeddings() is None else part
        self._rows: torch.Tensor | None = None
        self._overlay: StepImages | None = None
        self._hidden_rows: Sequence[int] = ()
        self.hidden = torch.empty((0, 0))
        self.hidden_size = 0
        text_body(model).register_forward_hook(self._keep_hidden)
        self._embeddings: Any = part.get_input_embeddings()
        part.register_forward_pre_hook(self._insert_images, with_kwargs=True)
        if "logits_to_keep" not in inspect.signature(self._callee.forward).parameters:
            self._callee.get_output_embeddings().register_forward_pre_hook(self._choose_rows)

    def __call__(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        rows: Sequence[int],
        cache: AttentionPassThrough | None = None,
        *,
        overlay: StepImages | None = None,
        hidden_rows: Sequence[int] = (),
        stays_on_device: bool = False,
    ) -> torch.Tensor:
        """Return logits of some of the tokens, float32 ``(rows, vocabulary)`` on the CPU, or on the model's device.

        Args:
            cache: holds the states of recurrent layers; a model without them needs none.
            overlay: inserts images among the tokens, if there are any.
            hidden_rows: tokens whose hidden states are kept in ``hidden``, float32 ``(rows, hidden)`` on the CPU.
        """
        options: dict[str, Any] = {} if cache is None else {"cache": cache}
        logits, _ = self._run(token_ids, positions, rows, overlay, hidden_rows, use_cache=False, **options)
        return logits if stays_on_device else logits.cpu()

    def run(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        rows: Sequence[int],
        overlay: StepImages | None = None,
        hidden_rows: Sequence[int] = (),
        **options: Any,
    ) -> tuple[torch.Tensor, Any]:
        """Return the same logits on the CPU, and the complete output of a call with further options."""
        logits, output = self._run(token_ids, positions, rows, overlay, hidden_rows, **options)
        return logits.cpu(), output

    def _run(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        rows: Sequence[int],
        overlay: StepImages | None,
        hidden_rows: Sequence[int],
        **options: Any,
    ) -> tuple[torch.Tensor, Any]:
        self._overlay, self._hidden_rows = overlay, hidden_rows
        parts = [np.asarray(part, np.int64) for part in (token_ids, positions, rows)]
        numbers = upload(np.concatenate(parts), self._device)  # one copy instead of three
        try:
            return self._call(torch.split(numbers, [len(part) for part in parts]), options)
        finally:
            self._overlay = None

    def on_device(self, numbers: Sequence[torch.Tensor], cache: AttentionPassThrough | None = None) -> torch.Tensor:
        """Return the logits of some tokens, float32 on the device, without waiting for it.

        Args:
            numbers: tokens, positions and rows, int64 on the device.
            cache: holds the states of recurrent layers; a model without them needs none.
        """
        self._hidden_rows = ()
        options: dict[str, Any] = {} if cache is None else {"cache": cache}
        return self._call(numbers, {"use_cache": False, **options})[0]

    def _call(self, numbers: Sequence[torch.Tensor], options: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        ids, places, self._rows = numbers
        output = self._callee(
            input_ids=ids.unsqueeze(0), position_ids=places.unsqueeze(0), logits_to_keep=self._rows, **options
        )
        logits: torch.Tensor = output.logits[0]
        return logits.float(), output

    def _keep_hidden(self, _body: Any, _args: Any, output: Any) -> None:
        """Keep the wanted rows of the head's input."""
        hidden = output[0]  # (1, tokens, hidden)
        self.hidden_size = hidden.shape[-1]
        self.hidden = hidden[0, list(self._hidden_rows)].float().cpu() if self._hidden_rows else torch.empty((0, 0))

    def _choose_rows(self, _head: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Pass the wanted rows alone to the head, for models without ``logits_to_keep``."""
        return arguments[0][:, self._rows], *arguments[1:]

    def _insert_images(
        self, _part: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Insert images into the input of the text part."""
        if self._overlay is None:
            return args, kwargs
        given = dict(kwargs)
        token_ids = given.pop("input_ids", None)
        if given.get("inputs_embeds") is None:
            given["inputs_embeds"] = self._embeddings(token_ids)
        return args, self._overlay.merge(given)
