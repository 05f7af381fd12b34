"""PromptPass: several steps of prompts that run layer by layer, so that each expert is read once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from server.model.step import StepOutput


class PromptPass(Protocol):
    """Several steps of prompts: at each layer all of them run one after the other, and then the next layer.

    A step's tokens see those of the steps before it, as if the steps ran one after the other. Between two calls of
    ``advance`` other steps may run, of sequences that are not in the pass. Only one thread uses a pass.
    """

    @property
    def is_finished(self) -> bool:
        """True once all layers have run."""

    @property
    def progress(self) -> float:
        """The part of the work that is done, 0 to 1."""

    @property
    def saved_bytes(self) -> int:
        """Bytes that the steps, one after another, would probably have read again, as other layers' reads evict them.

        It counts each expert that the pass read once for each further step that used it.
        """

    def advance(self, *, wait_seconds: float) -> bool:
        """Run one unit of work: a step's mixer and router at a layer, or its experts there.

        Args:
            wait_seconds: for experts that are being read, at most; if they are not there then, nothing runs.

        Returns:
            Whether a unit has run.

        Raises:
            ExpertLoadError: an expert can't be read. The pass can't go on then; ``cancel`` ends it.
        """

    def finish(self) -> Iterator[StepOutput]:
        """End a finished pass; yield the output of each step, in their order, which lasts until the next one."""

    def cancel(self) -> None:
        """End a pass that is not finished: it gives back all experts, and nothing of it is in use any more."""
