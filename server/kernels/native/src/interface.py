"""Writes the C interface in Python: ``python -m server.kernels.native.src.interface``, and each run of ``setup.py``.

A header encloses the sizes, enumerations and structures that Python knows in ``extern "C" {  // structures/NAME.py``,
which names their module. Functions are marked ``GREENROOM_API`` in ``api.cpp``. What can't be read here is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
SERVER = SOURCES.parents[2]  # blocks have their headers in folders of their own
STRUCTURES = SOURCES.parent / "structures"
WIDTH = 120  # of a line
PACKAGE = "server.kernels.native.structures"
HEAD = '''"""Written by `src/interface.py` from the C++ headers named here, whose comments describe what stands here."""

from __future__ import annotations

'''
IMPORTED = {
    **dict.fromkeys(("Array", "POINTER", "Structure", "c_char_p", "c_double", "c_float", "c_int"), "ctypes"),
    **dict.fromkeys(("c_int32", "c_int64", "c_void_p"), "ctypes"),
    **dict.fromkeys(("Address", "field", "structure"), f"{PACKAGE}.fields"),
    "Any": "typing",
    "IntEnum": "enum",
}
NUMBERS = {"int32_t": "int", "int64_t": "int", "float": "float", "double": "float"}  # of structures
PASSED = {"void": "None", "int": "c_int", "int64_t": "c_int64", "const char*": "c_char_p"}  # to and from functions

INCLUDE = re.compile(r'^#include "(.+)"', re.MULTILINE)
REGION = re.compile(
    r'^extern "C" \{(?:  // structures/(?P<module>\w+)\.py$(?P<text>.*?)^\}  // extern "C"$)?', re.MULTILINE | re.DOTALL
)
API = re.compile(r"^GREENROOM_API [^{]*", re.MULTILINE)
COMMENT = re.compile("//.*")
# These are for text without comments that has one space behind each word.
DECLARATION = re.compile(
    r"(?P<sizes>(?:inline constexpr int(?:64_t)? k\w+ = \d+; )+)"
    r"|enum class (?P<enumeration>\w+) : int32_t \{ (?P<enumerators>(?:k\w+ = \d+,? )+)\}; "
    r"|struct (?P<structure>\w+) \{ (?P<fields>[^{}]+; )\}; "
)
NUMBER = re.compile(r"k(\w+) = (\d+)")
FIELD = re.compile(
    r"(?:Array<(?:const )?(?P<element>\w+)>|(?P<pointer>(?:const )?\w+\*(?: const\*)*)|(?P<type>\w+)) "
    r"(?P<name>\w+)(?:\[(?:(?P<extent>\w+)|static_cast<int>\((?P<enumerator>\w+::\w+)\))\])?"
    r"(?P<others>(?(type)(?:, \w+)*)); "
)
FUNCTION = re.compile(r"GREENROOM_API (?P<result>const char\*|\S+) (?P<name>\w+)\((?P<arguments>[^()]*)\) ")
ARGUMENT = re.compile(r"((?:const )?\S+) \w+(?:, | )")


class InterfaceError(ValueError):
    """A declaration can't be read."""


class Interface:
    """The modules that declare the C interface in Python.

    Args:
        sources: the folder of ``api.cpp``.
        all_sources: the folder of all headers.

    Attributes:
        modules: the text of each, by name.
        digest: another one if anything but comments is another.

    Raises:
        InterfaceError: a declaration can't be read.
    """

    def __init__(self, sources: Path = SOURCES, all_sources: Path = SERVER):
        self._numbers: dict[str, str] = {}  # of sizes and enumerators: "kGroup", "LoraPlace::kCount"
        self._enumerations: set[str] = set()
        self._homes: dict[str, str] = {}  # the module of each structure
        bodies: dict[str, list[str]] = {}
        for name, file in _by_includes((sources, all_sources)).items():
            try:
                for module, text in _regions(file.read_text("utf-8")):
                    classes = [self._class(found, module) for found in _each(DECLARATION, text)]
                    bodies.setdefault(module, []).extend([f"# {name}\n{classes[0]}", *classes[1:]])
            except InterfaceError as error:
                raise InterfaceError(f"{name}: {error}") from None
        functions = self._functions((sources / "api.cpp").read_text("utf-8"))
        self.digest = hashlib.sha256(repr((bodies, functions)).encode()).hexdigest()[:16]
        bodies["functions"] = [f'INTERFACE = "{self.digest}"\n{functions}']
        self.modules = {module: self._module(module, "\n\n\n".join(parts)) for module, parts in bodies.items()}

    def write(self, folder: Path = STRUCTURES) -> None:
        """Write the modules whose text is another."""
        for name, text in self.modules.items():
            file = folder / f"{name}.py"
            if not file.exists() or file.read_text("utf-8") != text:
                file.write_text(text, "utf-8")

    def _class(self, found: re.Match[str], module: str) -> str:
        if name := found["structure"]:
            fields = [line for each in _each(FIELD, found["fields"]) for line in self._field(each)]
            self._homes[name] = module
            return "\n    ".join([f"@structure\nclass {name}(Structure):", *fields])
        numbers = NUMBER.findall(found["sizes"] or found["enumerators"])
        name, scope = ("Size", "") if found["sizes"] else (found["enumeration"], f"{found['enumeration']}::")
        self._enumerations.add(name)
        self._numbers |= {f"{scope}k{each}": number for each, number in numbers}
        return "\n    ".join(
            [f"class {name}(IntEnum):", *(f"{_capitals(each)} = {number}" for each, number in numbers)]
        )

    def _field(self, found: re.Match[str]) -> Iterator[str]:
        if found["pointer"]:
            hint, c_type = "Address", "c_void_p"
        elif found["element"]:
            element = self._type(found["element"])[1]
            hint, c_type = f"Array[{element}]", f"POINTER({element})"
        else:
            hint, c_type = self._type(found["type"])
        if extent := found["extent"] or found["enumerator"]:
            number = extent if extent.isdigit() else self._numbers.get(extent)
            if number is None:
                raise InterfaceError(f"{extent} is no number that stands above it for Python")
            hint, c_type = f"Array[{c_type}]", f"{c_type} * {number}"
        for name in [found["name"], *found["others"].split(", ")[1:]]:
            yield f"{name}: {hint} = field({c_type})"

    def _type(self, name: str) -> tuple[str, str]:
        """The types of a field by value for type checkers and for ctypes."""
        if name in NUMBERS:
            return NUMBERS[name], f"c_{name.removesuffix('_t')}"
        if name in self._enumerations:
            return "int", "c_int32"
        if name in self._homes:
            return name, name
        raise InterfaceError(f"{name} is no type that stands above it for Python")

    def _functions(self, text: str) -> str:
        lines = ["FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {  # the types of their results and arguments"]
        for declared in API.findall(text):
            (found,) = _each(FUNCTION, declared)
            arguments = [self._passed(each[1]) for each in _each(ARGUMENT, found["arguments"])]
            result = self._passed(found["result"])
            line = f'    "{found["name"]}": ({result}, [{", ".join(arguments)}]),'
            if len(line) > WIDTH:
                line = f'    "{found["name"]}": (\n        {result},\n        [{", ".join(arguments)}],\n    ),'
            lines.append(line)
        return "\n".join([*lines, "}"])

    def _passed(self, name: str) -> str:
        """The type of an argument or a result for ctypes."""
        if name in PASSED:
            return PASSED[name]
        pointed = name.removeprefix("const ").removeprefix("greenroom::").removesuffix("*")
        if not name.endswith("*"):
            raise InterfaceError(f"api.cpp: {name} is no type of an argument or a result for Python")
        return f"POINTER({pointed})" if pointed in self._homes else "c_void_p"

    def _module(self, name: str, body: str) -> str:
        homes = IMPORTED | {each: f"{PACKAGE}.{home}" for each, home in self._homes.items() if home != name}
        words: dict[str, list[str]] = {}
        for word in sorted(homes.keys() & re.findall(r"\w+", body), key=lambda word: (not word.isupper(), word)):
            words.setdefault(homes[word], []).append(word)
        lines = [f"from {home} import {', '.join(words[home])}\n" for home in sorted(words)]
        own = "".join(line for line in lines if PACKAGE in line)
        imports = "".join(line for line in lines if PACKAGE not in line) + (own and f"\n{own}")
        return f"{HEAD}{imports}\n\n{body}\n".replace("\n\n\nINTERFACE", "\n\nINTERFACE")


def _by_includes(folders: Sequence[Path]) -> dict[str, Path]:
    """All headers by their names in an ``#include``, each behind those that it includes.

    Args:
        folders: that names begin in; a header within two of them is named by the first.
    """
    found: dict[Path, str] = {}
    for folder in folders:
        for header in sorted(folder.rglob("*.h")):
            found.setdefault(header, str(header.relative_to(folder)))
    headers = {name: header for header, name in found.items()}
    ordered: dict[str, Path] = {}

    def visit(name: str) -> None:
        if name in headers and name not in ordered:
            for included in INCLUDE.findall(headers[name].read_text("utf-8")):
                visit(included)
            ordered[name] = headers[name]

    for name in headers:
        visit(name)
    return ordered


def _regions(text: str) -> Iterator[tuple[str, str]]:
    for found in REGION.finditer(text):
        if found["module"] is None:
            raise InterfaceError(
                'extern "C" { needs a comment behind it, // structures/NAME.py, and } // extern "C" at its end'
            )
        yield found["module"], found["text"]


def _each(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Split a text without gaps."""
    text, place = " ".join([*COMMENT.sub("", text).split(), ""]), 0
    while place < len(text):
        found = pattern.match(text, place)
        if found is None:
            raise InterfaceError(f"{text[place : place + 60]!r} can't be declared in Python by src/interface.py")
        yield found
        place = found.end()


def _capitals(name: str) -> str:
    return re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


if __name__ == "__main__":
    Interface().write()
