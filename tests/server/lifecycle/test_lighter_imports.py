"""Stand-ins for parts of torch and transformers while they are imported."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import FrameType

import pytest
import torch
import transformers
from transformers.utils import import_utils

from server.lifecycle import lighter_imports
from server.lifecycle.lighter_imports import from_last_list, with_quick_frames


@pytest.mark.parametrize(
    "content",
    [
        "",
        "names = []",
        '__all__ = ["A", "B"]',
        'x = 1\n__all__ = ["A", "B"]\n',
        '__all__ = ["A"]\n__all__ = [\n    "B",\n    "C",\n]\ny = 2\n',
        'text = """__all__"""\n',
    ],
)
def test_the_quick_reader_finds_the_names_that_transformers_finds(content: str) -> None:
    assert from_last_list(import_utils.fetch__all__)(content) == import_utils.fetch__all__(content)


def test_the_quick_reader_reads_every_family_as_transformers_does() -> None:
    quick = from_last_list(import_utils.fetch__all__)
    files = sorted((Path(transformers.__file__).parent / "models").glob("[m-q]*/*.py"))
    contents = [path.read_text(encoding="utf-8") for path in files]
    assert [quick(content) for content in contents] == [import_utils.fetch__all__(content) for content in contents]


def test_a_torch_whose_generators_need_all_kernels_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("torch._prims.rng_prims must be imported first")

    assert lighter_imports._can_make_generators()
    monkeypatch.setattr(torch, "Generator", refuse)
    assert not lighter_imports._can_make_generators()


def frame_of_code(name: str) -> FrameType:
    """Return a frame of code that is of no module, but says that it is of one."""
    scope = {"__name__": name, "sys": sys}
    exec("frame = sys._getframe()", scope)
    frame = scope["frame"]
    assert isinstance(frame, FrameType)
    return frame


def test_the_quick_way_finds_the_module_of_a_frame_that_python_finds() -> None:
    frame = sys._getframe()
    with with_quick_frames():
        quickly = inspect.getmodule(frame)
    assert quickly is inspect.getmodule(frame) is sys.modules[__name__]


def test_code_that_only_has_the_name_of_a_module_is_not_of_it() -> None:
    with with_quick_frames():
        assert inspect.getmodule(frame_of_code("torch")) is not torch
