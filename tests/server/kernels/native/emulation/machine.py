"""An emulated machine, by Bochs, that boots Linux with one program and nothing else.

Bochs emulates a whole computer, instruction by instruction, so it runs instruction sets that this processor lacks.
"""

from __future__ import annotations

import gzip
import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

# Bochs waits for a millisecond at each look at the keyboard, so looks are rare; its BIOS expects some. Without ACPI,
# Linux does not enter system management mode, which Bochs 3.0 does not leave as it should.
CONFIGURATION = """\
cpu: model={cpu}, count=1, ips=50000000, reset_on_triple_fault=0
memory: guest={memory}, host={memory}
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path={disk}, status=inserted
boot: cdrom
com1: enabled=1, mode=term, dev={serial}
display_library: term
keyboard: serial_delay=2000
vga: update_freq=1
log: {log}
panic: action=fatal
error: action=ignore
info: action=ignore
clock: sync=none
speaker: enabled=0, mode=none
"""
MENU = """\
set timeout=0
menuentry program {{
  linux /vmlinuz console=ttyS0,115200 loglevel=1 mitigations=off acpi=off clearcpuid=amx_tile -- {arguments}
  initrd /programs.gz
}}
"""
# Linux stops when the first process, which is the program, ends, and reports its status.
END = re.compile(rb"Attempted to kill init! exitcode=0x([0-9a-f]{6})00")


class Result(NamedTuple):
    """The output of the program, and its exit status."""

    status: int
    output: str


class MachineError(RuntimeError):
    """The program can't be run, or the machine stopped, or took too long, before it ended."""


def archive(files: Mapping[str, Path]) -> bytes:
    """Make the root file system that Linux unpacks at its start (cpio, gzip): a console, and some files."""

    def entry(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
        fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)

    entries = (
        entry("dev", 0o40755),
        entry("dev/console", 0o20600, device=(5, 1)),
        *(entry(name, 0o100755, file.read_bytes()) for name, file in files.items()),
        entry("TRAILER!!!", 0),
    )
    return gzip.compress(b"".join(entries), 1)


def run(
    files: Mapping[str, Path], arguments: Sequence[str], kernel: Path, cpu: str, folder: Path, timeout: float
) -> Result:
    """Run a program, linked statically, on an emulated processor.

    Args:
        files: the program, as ``init``, and what it reads, by their names on the machine.
        kernel: Linux, as in /boot.
        cpu: a name from ``bochs --help cpu``.
        folder: an empty folder for the machine's files.
        timeout: in seconds.

    Raises:
        MachineError: see there.
        subprocess.CalledProcessError: the disk can't be made.
    """
    tree = folder / "disk"
    (tree / "boot" / "grub").mkdir(parents=True)
    shutil.copyfile(kernel, tree / "vmlinuz")
    (tree / "programs.gz").write_bytes(archive(files))
    (tree / "boot" / "grub" / "grub.cfg").write_text(MENU.format(arguments=" ".join(arguments)))
    disk = folder / "disk.iso"
    command = ["grub-mkrescue", "-d", "/usr/lib/grub/i386-pc", "-o", str(disk), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    serial, serial_end = pty.openpty()
    screen, screen_end = pty.openpty()  # Bochs wants one
    log = folder / "bochs.log"
    settings = CONFIGURATION.format(cpu=cpu, memory=512, disk=disk, serial=os.ttyname(serial_end), log=log)
    (folder / "bochsrc").write_text(settings)
    machine = subprocess.Popen(
        ["bochs", "-q", "-f", str(folder / "bochsrc")],
        stdin=subprocess.DEVNULL,
        stdout=screen_end,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TERM": "vt100"},
    )
    try:
        return _follow(machine, serial, screen, time.monotonic() + timeout)
    except MachineError as error:
        notes = log.read_text(errors="replace").splitlines() if log.exists() else []
        raise MachineError(f"{error} ({notes[-1].strip() if notes else 'Bochs noted nothing'})") from error
    finally:
        machine.kill()
        machine.wait()
        for descriptor in (serial, serial_end, screen, screen_end):
            os.close(descriptor)


def _follow(machine: subprocess.Popen[bytes], serial: int, screen: int, deadline: float) -> Result:
    written = b""
    while not (end := END.search(written)):
        if machine.poll() is not None:
            raise MachineError(f"Bochs ended with status {machine.returncode}")
        if time.monotonic() > deadline:
            raise MachineError("the program did not end in time; see --timeout")
        for descriptor in select.select([serial, screen], [], [], 1)[0]:
            part = os.read(descriptor, 1 << 16)
            if descriptor == serial:
                written += part
    output = written[: written.rfind(b"\n", 0, end.start())].decode(errors="replace").replace("\r", "")
    return Result(int(end[1], 16), output)
