"""Builds the native CPU kernels beside the Python packages, with the machine's C++ compiler.

The result is one shared library with a plain C interface that does not link to Python. So any compiler that takes GCC's
flags can build it, and one wheel works with every Python of a platform. Without a compiler, or if compiling fails, the
install continues without the library, and writes the reason to a note in its place. ``python setup.py build_ext
--inplace`` compiles the changed sources again. Each run writes the C interface in Python if it has changed. ``CXX``,
``CXXFLAGS`` and ``LDFLAGS`` come from the environment.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent))
from server.kernels.native.src.interface import Interface

SOURCES = Path("server")  # blocks have theirs in folders of their own
NATIVE = SOURCES / "kernels" / "native"
INCLUDES = (SOURCES, NATIVE / "src")  # folders that names of headers begin in
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
# For api.cpp alone, so that a change compiles only this and what includes the changed header.
INTERFACE = (f'-DGREENROOM_INTERFACE="{Interface().digest}"',)


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

    def objects(self, sources: Path, includes: Sequence[Path], cache: Path) -> list[Path]:
        """Compile all sources that this compiler can build, but for those whose object is in the cache.

        Args:
            sources: the folder of the sources.
            includes: the folders that names of headers begin in.
            cache: the folder of an `ObjectCache`.
        """
        # In reverse order, so that the portable level, which takes longest, is among the first.
        chosen = [file for file in sorted(sources.rglob("*.cpp"), reverse=True) if self.takes(file.stem)]
        numbers = itertools.count(1)
        kept = ObjectCache(cache)
        included = [word for folder in includes for word in ("-I", str(folder))]

        def compiled(source: Path) -> Path:
            own = INTERFACE if source.stem == "api" else self.levels.get(source.stem.removeprefix("level_"), ())
            command = [*self.flags, *included, *own, "-c", str(source)]
            line = shlex.join([*self.command, *command])

            def compile_it(target: Path) -> None:
                print(f"compiling {source.name}: {line}", flush=True)
                self.run(*command, "-MMD", "-o", str(target))

            begun = time.monotonic()
            target, is_new = kept.take(self.version + line, compile_it)
            took = time.monotonic() - begun
            result = f"compiled {source.name} in {took:.0f} s" if is_new else f"{source.name} has not changed"
            print(f"{result} ({next(numbers)} of {len(chosen)})", flush=True)
            return target

        num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        with ThreadPoolExecutor(num_threads) as threads:
            objects = list(threads.map(compiled, chosen))
        kept.prune()
        return objects

    def takes(self, stem: str) -> bool:
        level = stem.removeprefix("level_")
        if level != stem and level not in LEVELS:
            raise BuildFailure(f"setup.py has no flags for {stem}.cpp")
        return level == stem or level in self.levels

    def link(self, objects: Sequence[Path], target: Path, flags: Sequence[str] = LINK_FLAGS) -> None:
        print(f"linking {target.name}", flush=True)
        target.unlink(missing_ok=True)  # a process that has loaded the old library keeps it
        self.run(*flags, *map(str, objects), *shlex.split(os.environ.get("LDFLAGS", "")), "-o", str(target))


class ObjectCache:
    """Compiled objects, each for a compiler, its command, and the contents of our files that it read.

    Each command has a folder. Beside an object in it, a list has the object's SHA-256, then those of the files. Several
    processes, checkouts and versions may share a cache.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def take(self, command: str, compile_it: Callable[[Path], None]) -> tuple[Path, bool]:
        """Return the object of a command, and whether it was compiled now.

        Args:
            command: the compiler's version and all its arguments.
            compile_it: writes the object, and beside it the compiler's list of files that it read.
        """
        folder = self.folder / hashlib.sha256(command.encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may compile the same
            for sums in folder.glob("*.sums"):
                target = sums.with_suffix(".o")
                if is_right(target, sums):
                    sums.touch()
                    target.touch()
                    return target, False
            new, begun = folder / "new.o", time.time()
            compile_it(new)
            files = files_of(new.with_suffix(".d"))
            lines = [sum_of(new), *(f"{sum_of(file)} {file}" for file in files)]
            target = folder / f"{hashlib.sha256(shlex.join(lines).encode()).hexdigest()}.o"
            new.replace(target)
            # The compiler may have read another version of a file that was changed meanwhile.
            if all(file.stat().st_mtime < begun for file in files):
                new.with_suffix(".sums").write_text("\n".join(lines), "utf-8")
                new.with_suffix(".sums").replace(target.with_suffix(".sums"))
            return target, True

    def prune(self) -> None:
        """Delete what no build has used for a month."""
        oldest = time.time() - 30 * 24 * 3600
        for file in self.folder.glob("*/*.*"):  # but locks
            if file.stat().st_mtime < oldest:
                file.unlink(missing_ok=True)


def is_right(target: Path, sums: Path) -> bool:
    """Return whether an object and the files that it was made of have the sums of a list."""
    try:
        made, *lines = sums.read_text("utf-8").splitlines()
        files = [line.split(" ", 1) for line in lines]
        return sum_of(target) == made and all(sum_of(Path(file)) == expected for expected, file in files)
    except (OSError, ValueError):
        return False


def sum_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def files_of(includes: Path) -> list[Path]:
    """Return the files that the compiler read, by the rule for `make` that it wrote."""
    _, *files = shlex.split(includes.read_text("utf-8").replace("\\\n", " "))
    return [Path(file) for file in files]


def cache_folder(otherwise: Path) -> Path:
    """Return the folder of compiled objects in the user's cache, or another one where that can't be written."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(named if Path(named).is_absolute() else Path.home() / ".cache", "greenroom", "kernels")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # there is no home
        return otherwise
    return folder if os.access(folder, os.W_OK | os.X_OK) else otherwise


def objects_by_users_cache(compiler: Compiler, sources: Path, includes: Sequence[Path], otherwise: Path) -> list[Path]:
    """Return the objects of all sources, from the user's cache if it can be used.

    Machines with other processors may share that, so objects for this one (``-march=native``) are not in it.

    Args:
        otherwise: the folder of the cache that is used instead.
    """
    if any("=native" in flag for flag in compiler.flags):
        return compiler.objects(sources, includes, otherwise)
    cache = cache_folder(otherwise)
    try:
        return compiler.objects(sources, includes, cache)
    except OSError as error:  # another user's files, or a full disk
        print(f"compiling without {cache}: {error}", flush=True)
        return compiler.objects(sources, includes, otherwise)


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
            own = Path(self.get_finalized_command("build").build_base, "kernels")
            objects = objects_by_users_cache(compiler, SOURCES, INCLUDES, own)
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
                source, target = built.with_name(name), NATIVE / name
                target.unlink(missing_ok=True)  # from an earlier build
                if source.exists():
                    self.copy_file(str(source), str(target))


class PlatformWheel(bdist_wheel):
    """One wheel for every Python, since the library does not link to Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    Interface().write()
    setup(
        ext_modules=[
            Extension(
                "server.kernels.native.libgreenroom_kernels",
                [str(file) for file in sorted(SOURCES.rglob("*.cpp"))],
                depends=[str(NATIVE / "src" / "interface.py"), *map(str, headers_of(SOURCES))],
                optional=True,
            )
        ],
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
    )
