"""Runs the driver of the native kernels on an emulated processor, for a level that this machine can't run.

``python -m tests.server.kernels.native.emulation --kernel /boot/vmlinuz-6.12.107+deb13-amd64`` takes some minutes. On
Debian it needs the packages bochs, bochs-term, bochsbios, vgabios, grub-common, grub-pc-bin and xorriso, and
linux-image and linux-headers of one version, 6.12 or similar. It exits with the status of the driver, or 2 if there is
none.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.server.kernels.native.build import driver_objects, kernel_objects, load_setup
from tests.server.kernels.native.emulation.machine import MachineError, Result, run

FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra")
LINK_FLAGS = ("-static", "-pthread", "-Wl,--wrap=syscall")
HERE = Path(__file__).parent
COMMANDS = ("bochs", "grub-mkrescue", "xorriso", "make")


def build_program(folder: Path) -> Path:
    """Compile the kernels and their driver into a program without dependencies."""
    setup = load_setup()
    compiler = setup.Compiler(FLAGS)
    objects = kernel_objects(setup, compiler, folder) + driver_objects(setup, compiler, folder)
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


def emulate(options: argparse.Namespace) -> Result:
    """Build the driver and run it.

    Raises:
        MachineError: something is missing, or the driver did not end.
    """
    headers = Path("/usr/src", options.kernel.name.replace("vmlinuz", "linux-headers"))
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    missing += [str(path) for path in (options.kernel, headers) if not path.exists()]
    if missing:
        raise MachineError(f"not found: {', '.join(missing)}; see --help for the packages to install")
    arguments = [str(options.rounds), str(options.seed), options.level]
    if options.format is not None:
        arguments.append(str(options.format))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {"init": build_program(folder), "tiles.ko": build_module(headers, folder)}
        (folder / "machine").mkdir()
        return run(files, arguments, options.kernel, options.cpu, folder / "machine", options.timeout)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.server.kernels.native.emulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kernel", type=Path, required=True, help="Linux, as in /boot")
    parser.add_argument("--cpu", default="sapphire_rapids", help="a name from `bochs --help cpu`")
    parser.add_argument("--level", default="amx", help="a level of the kernels")
    parser.add_argument("--format", type=int, help="a number of formats/matrix.h (default: all formats)")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds")
    options = parser.parse_args()
    try:
        result = emulate(options)
    except MachineError as error:
        print(error, file=sys.stderr)
        return 2
    print(result.output)
    if not result.status and f"{options.level}: {options.rounds} rounds" not in result.output:
        print(f"{options.cpu}, or the build, does not support level {options.level}", file=sys.stderr)
        return 2
    return result.status


if __name__ == "__main__":
    sys.exit(main())
