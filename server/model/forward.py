"""A model as the trunk runs it: flattened tokens of one step in, logits of some of them out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from .architecture import text_body, text_part
from .cells import Discovery
from .media import Overlay
from .states import StepStates


class Forward:
    """Calls of one model, of whose classes not all take the same.

    Where the text's part has a head of its own, as Llama 4's has, it is called without the model around it.

    ``hidden`` are those of the last hidden states (after the final norm) that were asked for last, and
    ``hidden_size`` is their size, once there was a call.
    """

    def __init__(self, model: PreTrainedModel):
        self._device = model.device
        part = text_part(model)
        self._writer: Any = model if part.get_output_embeddings() is None else part
        self._rows: torch.Tensor | None = None
        self._overlay: Overlay | None = None
        self._hidden_rows: Sequence[int] = ()
        self.hidden = torch.empty((0, 0))
        self.hidden_size = 0
        text_body(model).register_forward_hook(self._keep)
        self._embeddings: Any = part.get_input_embeddings()
        part.register_forward_pre_hook(self._show, with_kwargs=True)
        if "logits_to_keep" not in inspect.signature(self._writer.forward).parameters:
            self._writer.get_output_embeddings().register_forward_pre_hook(self._choose_rows)

    def __call__(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        rows: Sequence[int],
        cache: StepStates | Discovery | None = None,
        overlay: Overlay | None = None,
        hidden_rows: Sequence[int] = (),
    ) -> torch.Tensor:
        """Logits of some of the tokens in float32 on the CPU, ``(rows, vocabulary)``.

        Args:
            hidden_rows: tokens whose hidden states are kept in ``hidden``, float32 ``(rows, hidden)`` on the CPU.
            cache: what recurrent layers ask for their states; a model without them needs none.
            overlay: of images among the tokens, if there are any.
        """
        options: dict[str, Any] = {} if cache is None else {"cache": cache}
        logits, _ = self.run(token_ids, positions, rows, overlay, hidden_rows, use_cache=False, **options)
        return logits

    def run(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        rows: Sequence[int],
        overlay: Overlay | None = None,
        hidden_rows: Sequence[int] = (),
        **options: Any,
    ) -> tuple[torch.Tensor, Any]:
        """The same logits with other options of the model, and all that it gives."""
        self._overlay, self._hidden_rows = overlay, hidden_rows
        self._rows = torch.tensor(rows, dtype=torch.long, device=self._device)
        try:
            output = self._writer(
                input_ids=torch.tensor([token_ids], device=self._device),
                position_ids=torch.tensor([positions], device=self._device),
                logits_to_keep=self._rows,
                **options,
            )
        finally:
            self._overlay = None
        logits: torch.Tensor = output.logits[0]
        return logits.float().cpu(), output

    def _keep(self, _body: Any, _args: Any, output: Any) -> None:
        """Of what the head is given, what is asked for."""
        hidden = output[0]  # (1, tokens, hidden)
        self.hidden_size = hidden.shape[-1]
        self.hidden = hidden[0, list(self._hidden_rows)].float().cpu() if self._hidden_rows else torch.empty((0, 0))

    def _choose_rows(self, _head: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Give the head no more than it has to, where the model does not."""
        return arguments[0][:, self._rows], *arguments[1:]

    def _show(
        self, _part: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Show images to the text's part of the model."""
        if self._overlay is None:
            return args, kwargs
        given = dict(kwargs)
        token_ids = given.pop("input_ids", None)
        if given.get("inputs_embeds") is None:
            given["inputs_embeds"] = self._embeddings(token_ids)
        return args, self._overlay.lay(given)
