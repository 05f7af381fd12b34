"""The page about models has the text of its generator, so that writing the page anew loses nothing."""

from __future__ import annotations

import re

from tests import models_page

PAGE = models_page.PAGE.read_text("utf-8").splitlines()
TEMPLATE = [line for text in (models_page.TEXT, models_page.GGUF, models_page.NATIVE) for line in text.splitlines()]
ROW = re.compile(r"\| `.*|\| [^|]+ \| `\w+` \|.*|(`\w+`[,. ]*)+")  # of a family, of a published model, of names


def test_every_line_of_the_page_but_rows_comes_from_the_generator() -> None:
    whole = [line for line in TEMPLATE if not re.fullmatch(r"\{\w+\}", line)]
    known = re.compile("|".join(re.sub(r"\\\{\w+\\\}", ".*", re.escape(line)) for line in whole))
    assert [line for line in PAGE if not ROW.fullmatch(line) and not known.fullmatch(line)] == []


def test_every_fixed_line_of_the_generator_stands_on_the_page() -> None:
    assert [line for line in TEMPLATE if "{" not in line and line not in PAGE] == []
