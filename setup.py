"""Builds the native CPU kernels beside the Python packages, with the machine's C++ compiler.

The result is one shared library with a plain C interface that does not link to Python. So any compiler that takes GCC's
flags can build it, and one wheel works with every Python of a platform. Without a compiler, or if compiling fails, the
install continues without the library, and writes the reason to a note in its place. ``python setup.py build_ext
--inplace`` compiles the changed sources again. ``CXX``, ``CXXFLAGS`` and ``LDFLAGS`` come from the environment.
"""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("server", "kernels", "native", "src")
LIBRARY = "libgreenroom_kernels.so"
NOTE = "no_kernels.txt"  # one line: the reason that there is no library
FLAGS = ("-std=c++17", "-O3", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden")
# These come after the flags of the environment: only the sources decide where a product and a sum are fused.
LAST_FLAGS = ("-ffp-contract=off",)
LINK_FLAGS = ("-shared", "-s", "-static-libstdc++", "-static-libgcc", "-pthread")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
AVX512_BF16 = (*AVX512, "-mavx512bf16", "-mavx512vnni", "-mavx512vbmi")
# Only `levels/level_NAME.cpp` is compiled with a level's flags, if the compiler supports them. Levels with flags are
# x86-64's.
LEVELS = {
    "portable": (),
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512_bf16": AVX512_BF16,
    "amx": (*AVX512_BF16, "-mamx-tile", "-mamx-bf16"),
}


class BuildFailure(Exception):  # noqa: N818  not an error for the install
    """The library can't be built; the message goes into `NOTE`."""


class Compiler:
    """The C++ compiler named in the environment, or the machine's.

    Raises:
        BuildFailure: there is no compiler, or it does not work.
    """

    def __init__(self, flags: Sequence[str] = FLAGS):
        named = shlex.split(os.environ.get("CXX", ""))
        self.command = named or list(filter(shutil.which, ("c++", "g++", "clang++")))[:1]
        if not self.command:
            raise BuildFailure("pip found no C++ compiler")
        self.version = self.run("--version")
        self.flags = [*flags, *shlex.split(os.environ.get("CXXFLAGS", "")), *LAST_FLAGS]
        is_x86 = self.run("-dumpmachine").startswith("x86_64")
        self.levels = {name: flags for name, flags in LEVELS.items() if not flags or (is_x86 and self.knows(flags))}
        self.lacking = [name for name in LEVELS if is_x86 and name not in self.levels]
        if is_x86:
            self.flags += ["-DGREENROOM_X86", *(f"-DGREENROOM_NO_{name.upper()}" for name in self.lacking)]

    def run(self, *arguments: str) -> str:
        try:
            done = subprocess.run([*self.command, *arguments], capture_output=True, text=True, check=False)
        except OSError as error:
            raise BuildFailure(f"the C++ compiler {self.command[0]} can't be run ({error.strerror})") from error
        if done.returncode:
            print(done.stderr)  # everything; the note has only one line
            lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it gave no reason"]
            raise BuildFailure(f"the C++ compiler {self.command[0]} failed ({lines[0].strip()})")
        print(done.stderr, end="")  # warnings
        return done.stdout

    def knows(self, flags: Sequence[str]) -> bool:
        command = [*self.command, *flags, "-Werror", "-fsyntax-only", "-x", "c++", os.devnull]
        return not subprocess.run(command, capture_output=True, check=False).returncode

    def objects(self, sources: Path, folder: Path) -> list[Path]:
        """Compile all sources that this compiler can build, unless the result is newer than its source and headers.

        Another process that compiles into the same folder ends first.

        Args:
            sources: the folder of the sources.
            folder: the folder of the results, which are kept for the next build.
        """
        # In reverse order, so that the portable level, which takes longest, is among the first.
        chosen = [file for file in sorted(sources.rglob("*.cpp"), reverse=True) if self.takes(file.stem)]
        numbers = itertools.count(1)

        def compiled(source: Path) -> Path:
            level = source.stem.removeprefix("level_")
            command = [*self.flags, "-I", str(sources), *self.levels.get(level, ()), "-c", str(source)]
            target = folder / source.relative_to(sources).with_suffix(".o")
            target.parent.mkdir(parents=True, exist_ok=True)
            made_by, includes = target.with_suffix(".txt"), target.with_suffix(".d")
            line = shlex.join([*self.command, *command])
            is_same = made_by.exists() and made_by.read_text("utf-8") == self.version + line
            if not is_same or target.stat().st_mtime <= newest_of(includes):
                made_by.unlink(missing_ok=True)
                begun = time.monotonic()
                print(f"compiling {source.name}: {line}", flush=True)
                self.run(*command, "-MMD", "-o", str(target))
                made_by.write_text(self.version + line, "utf-8")
                result = f"compiled {source.name} in {time.monotonic() - begun:.0f} s"
            else:
                result = f"{source.name} has not changed"
            print(f"{result} ({next(numbers)} of {len(chosen)})", flush=True)
            return target

        num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock, ThreadPoolExecutor(num_threads) as threads:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return list(threads.map(compiled, chosen))

    def takes(self, stem: str) -> bool:
        level = stem.removeprefix("level_")
        if level != stem and level not in LEVELS:
            raise BuildFailure(f"setup.py has no flags for {stem}.cpp")
        return level == stem or level in self.levels

    def link(self, objects: Sequence[Path], target: Path, flags: Sequence[str] = LINK_FLAGS) -> None:
        print(f"linking {target.name}", flush=True)
        target.unlink(missing_ok=True)  # a process that has loaded the old library keeps it
        self.run(*flags, *map(str, objects), *shlex.split(os.environ.get("LDFLAGS", "")), "-o", str(target))


def newest_of(includes: Path) -> float:
    """Return when the newest file that an object was made of was changed; infinity if one is gone.

    Args:
        includes: the compiler's list of these files.
    """
    try:
        _, *files = shlex.split(includes.read_text("utf-8").replace("\\\n", " "))
        return max(Path(file).stat().st_mtime for file in files)
    except FileNotFoundError:
        return math.inf


def headers_of(sources: Path) -> list[Path]:
    return sorted(file for ending in ("*.h", "*.inc") for file in sources.rglob(ending))


class BuildKernels(build_ext):
    """Builds the library, or else writes a note with the reason."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1], LIBRARY))

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        note = target.with_name(NOTE)
        try:
            compiler = Compiler()
            for level in compiler.lacking:
                self.warn(f"{compiler.command[0]} does not support the flags of level {level}; the level is left out")
            objects = compiler.objects(SOURCES, Path(self.get_finalized_command("build").build_base, "kernels"))
            compiler.link(objects, target)
        except BuildFailure as failure:
            self.warn(f"no native kernels: {failure}; torch computes instead, which is slower")
            target.unlink(missing_ok=True)
            note.write_text(f"{failure}\n", "utf-8")
        else:
            note.unlink(missing_ok=True)

    def copy_extensions_to_source(self) -> None:
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(ext.name))
            for name in (LIBRARY, NOTE):
                source, target = built.with_name(name), SOURCES.parent / name
                target.unlink(missing_ok=True)  # from an earlier build
                if source.exists():
                    self.copy_file(str(source), str(target))


class PlatformWheel(bdist_wheel):
    """One wheel for every Python, since the library does not link to Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(
        ext_modules=[
            Extension(
                "server.kernels.native.libgreenroom_kernels",
                [str(file) for file in sorted(SOURCES.rglob("*.cpp"))],
                depends=[str(file) for file in headers_of(SOURCES)],
                optional=True,
            )
        ],
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
    )
