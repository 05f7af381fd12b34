"""Lines of text that is still coming, broken between words."""

from __future__ import annotations

import re

from rich.cells import cell_len, chop_cells

TAB = "    "
# Scripts that are written without blanks may be broken behind each character.
UNSPACED = "\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6"
PIECES = re.compile(rf"\n|[^\S\n]+|[{UNSPACED}]|[^\s{UNSPACED}]+")
BREAKABLE = re.compile(rf"[{UNSPACED}]")


class WordWrap:
    """Shows everything at once; a word that grows over the end of its line is taken back and put on the next."""

    def __init__(self) -> None:
        self._column = 0
        self._word = ""  # that the cursor stands behind

    def feed(self, text: str, width: int) -> str:
        """The text for a terminal of so many columns, the last of which stays free, with what takes words back."""
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
        begin, whole = self._column - cell_len(self._word), self._word + piece
        lines = chop_cells(whole, max(width, 2))
        if begin + cell_len(whole) <= width:
            shown = piece
        elif begin == 0:
            shown = "\n".join(lines)[len(self._word) :]
        else:
            shown = _take_back(cell_len(self._word)) + "\n" + "\n".join(lines)
            begin = 0
        self._word = lines[-1]
        self._column = begin + cell_len(self._word)
        return shown


def _take_back(num_cells: int) -> str:
    """Move the cursor back, and erase what is behind it."""
    return f"\x1b[{num_cells}D\x1b[K" if num_cells else ""
