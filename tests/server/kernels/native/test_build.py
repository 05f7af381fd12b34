"""The build in setup.py, with a fake compiler."""

from __future__ import annotations

import os
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
 $(dirname "$source")/level.h" >"${{last%.o}}.d" ;;
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


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCompiler:
    made = FakeCompiler(tmp_path, "x86_64")
    monkeypatch.setenv("CXX", str(made.path))
    return made


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Sources and headers that are much older than any result."""
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
    made.objects(sources, tmp_path / "objects")
    lines = capsys.readouterr().out.splitlines()
    begun = {line.partition(":")[0] for line in lines if line.startswith("compiling ")}
    assert begun == {"compiling api.cpp", "compiling level_portable.cpp"}
    assert [line.partition(" (")[2] for line in lines if line.startswith("compiled ")] == ["1 of 2)", "2 of 2)"]


def test_changed_sources_are_compiled_again(compiler: FakeCompiler, sources: Path, tmp_path: Path) -> None:
    made = SETUP.Compiler()
    objects = made.objects(sources, tmp_path / "objects")
    assert {str(file.relative_to(tmp_path)) for file in objects} == {"objects/api.o", "objects/levels/level_portable.o"}
    assert compiler.compiled() == {"api.cpp", "level_portable.cpp"}
    made.objects(sources, tmp_path / "objects")
    assert compiler.compiled() == set()
    newer = objects[0].stat().st_mtime + 1
    os.utime(sources / "api.cpp", (newer, newer))
    made.objects(sources, tmp_path / "objects")
    assert compiler.compiled() == {"api.cpp"}
    made.flags.append("-DOTHER")
    made.objects(sources, tmp_path / "objects")
    assert compiler.compiled() == {"api.cpp", "level_portable.cpp"}


@pytest.mark.usefixtures("compiler")
def test_a_failed_compilation_is_reported_with_its_first_error(sources: Path, tmp_path: Path) -> None:
    (sources / "broken.cpp").touch()
    with pytest.raises(SETUP.BuildFailure, match=r"compiler failed \(broken\.cpp:1:1: error: no\)"):
        SETUP.Compiler().objects(sources, tmp_path / "objects")


@pytest.mark.usefixtures("compiler")
def test_a_level_without_flags_in_the_table_fails_the_build(sources: Path, tmp_path: Path) -> None:
    (sources / "levels" / "level_mmx.cpp").touch()
    with pytest.raises(SETUP.BuildFailure, match=r"setup\.py has no flags for level_mmx\.cpp"):
        SETUP.Compiler().objects(sources, tmp_path / "objects")


def test_a_missing_compiler_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SETUP.BuildFailure, match=r"^pip found no C\+\+ compiler$"):
        SETUP.Compiler()
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
    with pytest.raises(SETUP.BuildFailure, match=r"can't be run \(No such file or directory\)$"):
        SETUP.Compiler()


def test_only_sources_that_include_a_changed_or_lost_header_are_compiled_again(
    compiler: FakeCompiler, sources: Path, tmp_path: Path
) -> None:
    """Each source of the fake compiler includes the header in its folder."""
    made = SETUP.Compiler()
    objects = made.objects(sources, tmp_path / "objects")
    compiler.compiled()
    newer = max(file.stat().st_mtime for file in objects) + 1
    os.utime(sources / "levels" / "level.h", (newer, newer))
    made.objects(sources, tmp_path / "objects")
    assert compiler.compiled() == {"level_portable.cpp"}
    (sources / "level.h").unlink()
    made.objects(sources, tmp_path / "objects")
    assert "api.cpp" in compiler.compiled()
