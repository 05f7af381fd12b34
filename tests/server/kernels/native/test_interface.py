"""The C interface in Python is what the headers say, and a library that was compiled with another one is refused."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from enum import IntEnum
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from server.kernels.native import library
from server.kernels.native.src.interface import PACKAGE, SERVER, SOURCES, STRUCTURES, Interface, InterfaceError
from server.kernels.native.structures.experts import Gate
from tests.server.kernels.native.build import load_setup
from tests.server.kernels.native.conftest import FOUND

SETUP = load_setup()
MODULES = Interface().modules


def declared() -> Iterator[type[ctypes.Structure | IntEnum]]:
    for name in MODULES:
        module = import_module(f"{PACKAGE}.{name}")
        for each in vars(module).values():
            if isinstance(each, type) and each.__module__ == module.__name__:
                yield each


def facts(each: type[ctypes.Structure | IntEnum]) -> Iterator[str]:
    """Return assertions for the compiler about a structure or an enumeration."""
    name = each.__name__
    if issubclass(each, ctypes.Structure):
        yield f"sizeof({name}) == {ctypes.sizeof(each)}"
        for field, *_ in each._fields_:
            place = getattr(each, field)
            yield f"offsetof({name}, {field}) == {place.offset} && sizeof({name}::{field}) == {place.size}"
    elif name != "Size":
        yield f"sizeof({name}) == 4"


def compiler_of(flags: tuple[str, ...]) -> Any:
    try:
        return SETUP.Compiler(flags)
    except SETUP.BuildFailure as failure:
        pytest.skip(str(failure))


def test_python_declares_what_the_headers_do() -> None:
    written = {file.stem: file.read_text("utf-8") for file in STRUCTURES.glob("*.py")}
    by_hand = {"__init__", "fields"}
    assert written.keys() - by_hand == MODULES.keys()
    stale = [name for name, text in MODULES.items() if written[name] != text]
    assert not stale, "run python -m server.kernels.native.src.interface"


def test_the_compiler_lays_out_structures_as_ctypes_does(tmp_path: Path) -> None:
    compiler = compiler_of(("-std=c++17", "-w"))
    lines = [line for text in MODULES.values() for line in text.splitlines()]
    headers = sorted({line[2:] for line in lines if line.startswith("# ") and line.endswith(".h")})
    claims = [fact for each in declared() for fact in facts(each)]
    assert len(claims) > 400
    program = tmp_path / "layouts.cpp"
    includes = [f'#include "{header}"' for header in headers]
    asserted = [f"static_assert({claim});" for claim in claims]
    program.write_text("\n".join(["#include <cstddef>", *includes, "using namespace greenroom;", *asserted]))
    compiler.run(*compiler.flags, "-fsyntax-only", f"-I{SERVER}", f"-I{SOURCES}", str(program))


def test_a_structure_takes_only_its_fields() -> None:
    with pytest.raises(AttributeError, match="alhpa"):
        Gate(alhpa=1.0)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    (tmp_path / "api.cpp").write_text("GREENROOM_API int greenroom_run(const Spec* spec) { return 0; }\n")
    return tmp_path


def interface_of(sources: Path, declaration: str) -> Interface:
    text = f'extern "C" {{  // structures/parts.py\n{declaration}\n}}  // extern "C"\n'
    (sources / "part.h").write_text(text)
    return Interface(sources, sources)


def test_a_header_becomes_a_module(sources: Path) -> None:
    made = interface_of(
        sources,
        """inline constexpr int kMost = 2;  // of numbers
// How.
enum class Kind : int32_t { kSoftmaxFirst = 0, kQ4K = 3 };
struct Spec {
  Kind kind;
  float first, other;
  float second[kMost];
  const float* const* tables;  // (tables)
};""",
    )
    assert made.modules["parts"].endswith(
        """# part.h
class Size(IntEnum):
    MOST = 2


class Kind(IntEnum):
    SOFTMAX_FIRST = 0
    Q4_K = 3


@structure
class Spec(Structure):
    kind: int = field(c_int32)
    first: float = field(c_float)
    other: float = field(c_float)
    second: Array[c_float] = field(c_float * 2)
    tables: Address = field(c_void_p)
"""
    )
    assert '"greenroom_run": (c_int, [POINTER(Spec)]),' in made.modules["functions"]


@pytest.mark.parametrize(
    ("declaration", "reason"),
    [
        ("struct Spec { int32_t kind = 3; };", "'int32_t kind = 3; ' can't be declared in Python by src/interface.py"),
        ("struct Spec { float* one, two; };", "'float\\* one, two; ' can't be declared"),
        ("struct Spec { bool is_last; };", "bool is no type that stands above it"),
        ("struct Spec { int32_t kinds[kMany]; };", "kMany is no number that stands above it"),
        ("struct Spec { int64_t size() const { return 1; } };", "'struct Spec .* can't be declared"),
        ("enum class Kind { kOne = 0 };", "'enum class Kind .* can't be declared"),
        ("class Spec;", "'class Spec; ' can't be declared"),
    ],
)
def test_what_python_cannot_declare_is_refused(declaration: str, reason: str, sources: Path) -> None:
    with pytest.raises(InterfaceError, match=rf"part\.h: .*{reason}"):
        interface_of(sources, declaration)


def test_a_region_without_a_module_is_refused(sources: Path) -> None:
    (sources / "part.h").write_text('extern "C" {\nstruct Spec { int32_t size; };\n}  // extern "C"\n')
    with pytest.raises(InterfaceError, match=r'part\.h: extern "C" \{ needs a comment behind it'):
        Interface(sources, sources)


@pytest.mark.parametrize(
    ("before", "after", "is_same"),
    [
        ("struct Spec { int32_t a, b; };", "struct Spec { int32_t a;  // first\n int32_t b; };", True),
        ("struct Spec { int32_t a, b; };", "struct Spec { int32_t b, a; };", False),
        ("enum class Kind : int32_t { kOne = 1 };", "enum class Kind : int32_t { kOne = 2 };", False),
    ],
)
def test_a_digest_depends_on_all_but_comments(before: str, after: str, is_same: bool, sources: Path) -> None:
    assert (interface_of(sources, before).digest == interface_of(sources, after).digest) == is_same


@pytest.mark.skipif(FOUND.reason is not None, reason=f"no native kernels: {FOUND.reason}")
def test_a_library_with_another_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "INTERFACE", "another")
    with pytest.raises(library.KernelError) as refusal:
        library.load.__wrapped__()
    assert str(refusal.value).endswith(" is from another version of Greenroom; install Greenroom again")


def test_a_library_from_before_digests_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = compiler_of(SETUP.FLAGS)
    source, target = tmp_path / "old.cpp", tmp_path / "old.so"
    source.write_text('extern "C" __attribute__((visibility("default"))) int greenroom_abi() { return 21; }\n')
    compiler.run("-shared", "-fPIC", str(source), "-o", str(target))
    monkeypatch.setattr(library, "PATH", target)
    with pytest.raises(library.KernelError, match="from another version of Greenroom"):
        library.load.__wrapped__()
