"""Checks software versions, CUDA devices, the Hugging Face hub and the port."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from huggingface_hub import constants, get_token
from packaging.requirements import Requirement

from server.byte_sizes import format_bytes
from server.doctor.finding import Finding
from server.lifecycle.listening_socket import listen
from server.settings import SettingsError

DRIVER = Path("/proc/driver/nvidia/version")
REPORTED = ("torch", "transformers", "huggingface-hub")


def check_versions() -> Finding:
    """Check that the packages Greenroom depends on have supported versions."""
    wrong = []
    for line in requires("greenroom") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            installed = "missing"
        if installed == "missing" or not requirement.specifier.contains(installed, prereleases=True):
            wrong.append((requirement, installed))
    message = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in REPORTED)])
    if wrong:
        found = ", ".join(f"{requirement.name} is {installed}" for requirement, installed in wrong)
        names = " ".join(f"'{requirement.name}{requirement.specifier}'" for requirement, _ in wrong)
        return Finding("versions", "fail", f"{message}; {found}", f"pip install {names}")
    return Finding("versions", "ok", message)


def check_devices(driver: Path = DRIVER) -> Finding:
    """Report the CUDA devices that torch sees, or why there are none."""
    build = f"torch {torch.__version__} " + (f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA")
    if torch.cuda.is_available():
        devices = []
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            devices.append(f"cuda:{number} {name}, {format_bytes(free)} free of {format_bytes(total)}")
        return Finding("devices", "ok", f"{'; '.join(devices)}; {build}; {_driver(driver)}")
    if driver.exists():
        advice = "install a torch build that matches the driver: https://pytorch.org/get-started"
        return Finding("devices", "warn", f"torch sees no CUDA device; {build}; {_driver(driver)}", advice)
    return Finding("devices", "ok", f"CPU only; {build}")


def _driver(path: Path) -> str:
    try:
        return path.read_text().splitlines()[0].removeprefix("NVRM version: ").strip()
    except (OSError, IndexError):
        return "unknown driver version"


def check_hub() -> Finding:
    """Report the download cache and the access token of the Hugging Face hub."""
    cache = Path(constants.HF_HUB_CACHE)
    message = f"cache {cache}" + ("" if cache.is_dir() else " (empty)")
    if constants.HF_HUB_OFFLINE:
        message += "; HF_HUB_OFFLINE is set, so nothing is downloaded"
    if get_token() is None:
        return Finding("hub", "ok", f"{message}; no token, which gated models need: run `hf auth login`")
    return Finding("hub", "ok", f"{message}; token found")


def check_port(host: str, port: int) -> Finding:
    """Check that the server can listen on the address."""
    try:
        listen(host, port).close()
    except SettingsError as error:
        reason, _, advice = str(error).partition("; ")
        return Finding("port", "fail", reason, advice)
    return Finding("port", "ok", f"{host}:{port} is free" if port else f"{host} has free ports")
