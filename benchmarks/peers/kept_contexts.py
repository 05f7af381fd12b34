"""Names of the files in which an engine keeps its state after the first tokens of a prompt."""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path


class KeptContexts:
    """Files ``FOLDER/MODEL-TOKENS-HASH.state``, each of the token ids that its hash tells."""

    def __init__(self, folder: Path, model: str):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._model = folder, model

    def path(self, ids: list[int]) -> Path:
        """Return the file of the state after these tokens."""
        digest = hashlib.sha256(array("i", ids).tobytes()).hexdigest()[:16]
        return self._folder / f"{self._model}-{len(ids)}-{digest}.state"

    def longest(self, ids: list[int]) -> int:
        """Return how many of the first tokens the longest kept state stands for; 0 if none is kept."""
        files = self._folder.glob(f"{self._model}-*-*.state")
        lengths = {int(path.stem.split("-")[-2]) for path in files}
        kept = (length for length in lengths if length <= len(ids) and self.path(ids[:length]).exists())
        return max(kept, default=0)
