"""Word wrap of text that arrives in chunks."""

from __future__ import annotations

import re

from rich.cells import cell_len, chop_cells

TAB = "    "
# Scripts written without spaces, where a line may break after each character.
UNSPACED = "\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6"
PIECES = re.compile(rf"\n|[^\S\n]+|[{UNSPACED}]|[^\s{UNSPACED}]+")
BREAKABLE = re.compile(rf"[{UNSPACED}]")


class WordWrap:
    """Shows text as it arrives. A word that outgrows its line is erased and written again on the next line."""

    def __init__(self) -> None:
        self._column = 0
        self._word = ""  # word before the cursor

    def feed(self, text: str, width: int) -> str:
        """Return the output for a terminal of ``width`` columns, which keeps the last column free."""
        return "".join(self._take(piece, width - 1) for piece in PIECES.findall(text.replace("\t", TAB)))

    def _take(self, piece: str, width: int) -> str:
        if piece == "\n":
            self._column, self._word = 0, ""
            return piece
        if piece.isspace():
            shown = piece[: max(0, width - self._column)]
            self._column, self._word = self._column + len(shown), ""
            return shown
        if BREAKABLE.match(piece):
            self._word = ""
        shown = self._extend_word(piece, width)
        if BREAKABLE.match(piece):
            self._word = ""
        return shown

    def _extend_word(self, piece: str, width: int) -> str:
        begin, word = self._column - cell_len(self._word), self._word + piece
        lines = chop_cells(word, max(width, 2))
        if begin + cell_len(word) <= width:
            shown = piece
        elif begin == 0:
            shown = "\n".join(lines)[len(self._word) :]
        else:
            shown = _erase(cell_len(self._word)) + "\n" + "\n".join(lines)
            begin = 0
        self._word = lines[-1]
        self._column = begin + cell_len(self._word)
        return shown


def _erase(num_cells: int) -> str:
    """Return the escapes that move the cursor back and erase the rest of the line."""
    return f"\x1b[{num_cells}D\x1b[K" if num_cells else ""
