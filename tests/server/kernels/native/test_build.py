"""The build in setup.py, with a fake compiler."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.server.kernels.native.build import load_setup

SETUP = load_setup()
SCRIPT = """#!/bin/sh
echo "$@" >>"{log}"
case "$*" in
-dumpmachine) echo {machine}-linux-gnu ;;
*-mavx512bf16*) echo "error: what is -mavx512bf16?" >&2; exit 1 ;;
*broken.cpp*) echo "broken.cpp:1:1: error: no" >&2; exit 1 ;;
*" -o "*)
    for last; do :; done
    touch "$last"
    case "$*" in
    *" -c "*)
        source=${{*##* -c }}
        source=${{source%% *}}
        echo "$last: $source \\
 $(ls "$(dirname "$source")/level.h")" >"${{last%.o}}.d" ;;
    esac ;;
esac
"""


class FakeCompiler:
    """A compiler that does not know AVX-512 with bfloat16 and makes empty objects."""

    def __init__(self, folder: Path, machine: str):
        self._log = folder / "log"
        self.path = folder / "compiler"
        self.path.write_text(SCRIPT.format(log=self._log, machine=machine))
        self.path.chmod(0o755)

    def compiled(self) -> set[str]:
        """The names of the sources compiled since the last call."""
        lines = self._log.read_text().splitlines()
        self._log.write_text("")
        return {Path(line.split(" -c ")[1].split()[0]).name for line in lines if " -c " in line}


class Built:
    """Objects of sources in a cache."""

    def __init__(self, compiler: FakeCompiler, sources: Path, cache: Path):
        self.compiler = compiler
        self.sources = sources
        self.cache = cache
        self.objects: list[Path] = []

    def again(self, *flags: str) -> set[str]:
        """Build once more, and return the names of the sources that were compiled."""
        made = SETUP.Compiler()
        made.flags += flags
        self.objects = made.objects(self.sources, [self.sources], self.cache)
        return self.compiler.compiled()

    def change(self, name: str, text: str, changed_at: float = 1) -> None:
        (self.sources / name).write_text(text)
        os.utime(self.sources / name, (changed_at, changed_at))


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCompiler:
    made = FakeCompiler(tmp_path, "x86_64")
    monkeypatch.setenv("CXX", str(made.path))
    return made


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Sources and headers from long ago."""
    folder = tmp_path / "src"
    (folder / "levels").mkdir(parents=True)
    for name in ("api.cpp", "levels/level_portable.cpp", "levels/level_avx512_bf16.cpp", "levels/level.h", "level.h"):
        (folder / name).touch()
        os.utime(folder / name, (1, 1))
    return folder


@pytest.mark.usefixtures("compiler")
def test_a_level_whose_flags_are_unknown_is_left_out() -> None:
    made = SETUP.Compiler()
    assert list(made.levels) == ["portable", "avx2", "avx512"]
    assert made.lacking == ["avx512_bf16", "amx"]
    assert {"-DGREENROOM_X86", "-DGREENROOM_NO_AVX512_BF16", "-DGREENROOM_NO_AMX"} <= set(made.flags)


def test_other_processors_have_only_the_portable_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(FakeCompiler(tmp_path, "aarch64").path))
    made = SETUP.Compiler()
    assert (list(made.levels), made.lacking) == (["portable"], [])
    assert "-DGREENROOM_X86" not in made.flags


@pytest.mark.usefixtures("compiler")
def test_each_source_is_named_when_it_is_compiled(
    sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = SETUP.Compiler()
    made.objects(sources, [sources], tmp_path / "objects")
    lines = capsys.readouterr().out.splitlines()
    begun = {line.partition(":")[0] for line in lines if line.startswith("compiling ")}
    assert begun == {"compiling api.cpp", "compiling level_portable.cpp"}
    assert [line.partition(" (")[2] for line in lines if line.startswith("compiled ")] == ["1 of 2)", "2 of 2)"]


@pytest.fixture
def built(compiler: FakeCompiler, sources: Path, tmp_path: Path) -> Built:
    made = Built(compiler, sources, tmp_path / "cache")
    assert made.again() == {"api.cpp", "level_portable.cpp"}
    return made


def test_what_did_not_change_is_not_compiled_again(built: Built) -> None:
    first = built.objects
    os.utime(built.sources / "api.cpp", (2, 2))
    assert built.again() == set()
    assert built.objects == first


@pytest.mark.parametrize(
    ("changed", "compiled"),
    [("api.cpp", {"api.cpp"}), ("level.h", {"api.cpp"}), ("levels/level.h", {"level_portable.cpp"})],
)
def test_what_reads_a_changed_file_is_compiled_again(built: Built, changed: str, compiled: set[str]) -> None:
    """Each source of the fake compiler includes the header in its folder."""
    built.change(changed, "int changed;")
    assert built.again() == compiled
    assert built.again() == set()
    built.change(changed, "")
    assert built.again() == set(), "the object of what it was before is still there"


def test_what_reads_a_lost_file_is_compiled_again(built: Built) -> None:
    (built.sources / "level.h").unlink()
    assert built.again() == {"api.cpp"}


def test_other_flags_compile_all_again(built: Built) -> None:
    assert built.again("-DOTHER") == {"api.cpp", "level_portable.cpp"}
    assert built.again() == set()


def test_a_damaged_object_is_compiled_again(built: Built) -> None:
    built.objects[0].write_text("damaged")
    built.objects[1].unlink()
    assert built.again() == {"api.cpp", "level_portable.cpp"}


def test_a_file_that_changes_while_it_is_compiled_is_compiled_again(built: Built) -> None:
    later = time.time() + 100
    built.change("api.cpp", "int changed;", later)
    assert built.again() == {"api.cpp"}
    assert built.again() == {"api.cpp"}


def test_objects_that_no_build_has_used_for_a_month_are_deleted(built: Built) -> None:
    kept = {file for file in built.cache.rglob("*") if file.is_file()}
    old = {file for file in kept if file.name != "lock"}
    for file in old:
        os.utime(file, (1, 1))
    assert built.again("-DOTHER") == {"api.cpp", "level_portable.cpp"}
    assert {file for file in kept if file.exists()} == kept - old


@pytest.mark.parametrize(
    ("named", "expected"), [("{}/cache", "cache"), ("", "home/.cache"), ("relative", "home/.cache")]
)
def test_objects_are_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", named.format(tmp_path))
    assert SETUP.cache_folder(tmp_path / "build") == tmp_path / expected / "greenroom" / "kernels"


def test_objects_are_in_the_build_where_the_users_cache_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert SETUP.cache_folder(tmp_path / "build") == tmp_path / "build"


@pytest.fixture
def users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "greenroom" / "kernels"


def test_a_cache_that_cannot_be_written_is_not_used(
    compiler: FakeCompiler, sources: Path, tmp_path: Path, users_cache: Path
) -> None:
    made = SETUP.Compiler()
    assert all(
        file.is_relative_to(users_cache)
        for file in SETUP.objects_by_users_cache(made, sources, [sources], tmp_path / "own")
    )
    for folder in users_cache.iterdir():
        shutil.rmtree(folder)
        folder.touch()
    compiler.compiled()
    objects = SETUP.objects_by_users_cache(made, sources, [sources], tmp_path / "own")
    assert [file.exists() and file.is_relative_to(tmp_path / "own") for file in objects] == [True, True]
    assert compiler.compiled() == {"api.cpp", "level_portable.cpp"}


@pytest.mark.usefixtures("compiler")
def test_objects_for_this_processor_alone_are_not_in_the_users_cache(
    sources: Path, tmp_path: Path, users_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXXFLAGS", "-march=native")
    SETUP.objects_by_users_cache(SETUP.Compiler(), sources, [sources], tmp_path / "own")
    assert not users_cache.exists()


@pytest.mark.usefixtures("compiler")
def test_a_failed_compilation_is_reported_with_its_first_error(sources: Path, tmp_path: Path) -> None:
    (sources / "broken.cpp").touch()
    with pytest.raises(SETUP.BuildFailure, match=r"compiler failed \(broken\.cpp:1:1: error: no\)"):
        SETUP.Compiler().objects(sources, [sources], tmp_path / "objects")


@pytest.mark.usefixtures("compiler")
def test_a_level_without_flags_in_the_table_fails_the_build(sources: Path, tmp_path: Path) -> None:
    (sources / "levels" / "level_mmx.cpp").touch()
    with pytest.raises(SETUP.BuildFailure, match=r"setup\.py has no flags for level_mmx\.cpp"):
        SETUP.Compiler().objects(sources, [sources], tmp_path / "objects")


def test_a_missing_compiler_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SETUP.BuildFailure, match=r"^pip found no C\+\+ compiler$"):
        SETUP.Compiler()
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
    with pytest.raises(SETUP.BuildFailure, match=r"can't be run \(No such file or directory\)$"):
        SETUP.Compiler()
