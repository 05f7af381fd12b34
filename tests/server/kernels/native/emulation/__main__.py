"""Runs the driver of the native kernels on an emulated processor, for levels that this machine can't run.

``python -m tests.server.kernels.native.emulation --kernel boot/vmlinuz-6.12.107+deb13-amd64`` takes some minutes. On
Debian it needs the packages bochs, bochs-term, bochsbios, vgabios, grub-pc-bin, grub-common and xorriso, a compiler that
links statically, and a Linux of 5.16 or later, which needs no installation: ``apt-get download linux-image-...`` and
``dpkg-deb -x``. It exits with the status of the driver, or 2 if there is none.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.server.kernels.native.build import DRIVER, ROOT, load_setup
from tests.server.kernels.native.emulation.machine import NoResult, run

FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra")
LINK_FLAGS = ("-static", "-pthread", "-Wl,--wrap=syscall")
HERE = Path(__file__).parent


def build(folder: Path) -> Path:
    """Compile the kernels and their driver into a program without dependencies."""
    setup = load_setup()
    sources = ROOT / setup.SOURCES
    compiler = setup.Compiler(FLAGS)
    objects = compiler.objects(sources, ROOT / "build" / "emulated")
    compiler.flags += ["-I", str(sources)]
    objects += compiler.objects(DRIVER, ROOT / "build" / "emulated" / "driver")
    for name in ("guard", "start"):
        objects.append(folder / f"{name}.o")
        compiler.run(*compiler.flags, "-c", str(HERE / f"{name}.cpp"), "-o", str(objects[-1]))
    compiler.link(objects, folder / "driver", LINK_FLAGS)
    return folder / "driver"


def build_module(headers: Path, folder: Path) -> Path:
    """Compile the module that enables tiles.

    Args:
        headers: those of the emulated Linux, a folder of /usr/src.
    """
    source = folder / "module"
    source.mkdir()
    shutil.copy(HERE / "tiles.c", source)
    (source / "Makefile").write_text("obj-m := tiles.o\n")
    subprocess.run(["make", "-C", str(headers), f"M={source}", "modules"], check=True, stdout=subprocess.DEVNULL)
    return source / "tiles.ko"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.server.kernels.native.emulation", description=__doc__)
    parser.add_argument("--kernel", type=Path, required=True, help="Linux, as in /boot")
    parser.add_argument("--cpu", default="sapphire_rapids", help="a name from `bochs --help cpu`")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (str(options.rounds), str(options.seed))
        machine = Path(folder, "machine")
        machine.mkdir()
        headers = Path("/usr/src", options.kernel.name.replace("vmlinuz", "linux-headers"))
        files = {"init": build(Path(folder)), "tiles.ko": build_module(headers, Path(folder))}
        try:
            result = run(files, arguments, options.kernel, options.cpu, machine, options.timeout)
        except NoResult as reason:
            print(reason, file=sys.stderr)
            return 2
    print(result.output)
    return result.status


if __name__ == "__main__":
    sys.exit(main())
