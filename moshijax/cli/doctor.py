"""`moshijax doctor`: what is missing on this machine, and how to fix it."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import click

from moshijax.cli.common import writable

FREE_DISK_GB = 3  # a quickstart's data, checkpoints and artifact, with room to spare
FREE_MEMORY_GB = 4
EXTRAS = {
    "data": "preparing data",
    "train": "training",
    "synth": "speech for the embedded data set",
    "eval": "plots of the report",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
      subject: what was checked.
      state: what was found.
      fix: how to mend it; empty if nothing is wrong.
      needed: whether the quickstart needs it.
    """

    subject: str
    state: str
    fix: str = ""
    needed: bool = True


def findings() -> Iterator[Finding]:
    """Check everything, in the order of the report."""
    yield python()
    yield from packages("", "")
    for extra, purpose in EXTRAS.items():
        yield from packages(extra, purpose)
    yield speech_library()
    yield from devices()
    yield disk(Path.cwd())
    yield memory()
    yield compilation_cache()


def python() -> Finding:
    """Compare the version of Python with what the package requires."""
    version = ".".join(map(str, sys.version_info[:3]))
    wanted = metadata.metadata("moshijax")["Requires-Python"]
    from packaging.specifiers import SpecifierSet

    if version in SpecifierSet(wanted):
        return Finding("python", version)
    return Finding("python", f"{version}, outside {wanted}", "make a virtual environment with a newer Python")


def packages(extra: str, purpose: str) -> Iterator[Finding]:
    """Check the packages that moshijax (`extra` empty) or one of its extras requires against their bounds."""
    from packaging.requirements import Requirement

    install = f"pip install 'moshijax[{extra}]'" if extra else "pip install moshijax"
    for text in metadata.requires("moshijax") or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if requirement.name == "moshijax":  # an extra made of others, which are looked at themselves
            continue
        if marker and not marker.evaluate({"extra": extra}) or not marker and extra:
            continue
        bounds = str(requirement.specifier)
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            reason = f" (for {purpose})" if purpose else ""
            yield Finding(requirement.name, f"not installed{reason}", install)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Finding(requirement.name, version)
        else:
            yield Finding(requirement.name, f"{version}, outside {bounds}", f"pip install '{requirement.name}{bounds}'")


def speech_library() -> Finding:
    """Load the library in a process of its own, as the synthesiser does."""
    code = "import ctypes, espeakng_loader as e; ctypes.CDLL(e.get_library_path()); print(e.get_data_path())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding("espeak-ng library", last, "pip install --force-reinstall 'moshijax[synth]'")
    return Finding("espeak-ng library", "loads")


def devices() -> Iterator[Finding]:
    """List the devices that jax finds, and accelerators that it does not use."""
    try:
        import jax

        found = jax.devices()
    except Exception as error:  # whatever stops jax from finding a device is the finding
        yield Finding(
            "devices", " ".join(str(error).split()), "set JAX_PLATFORMS=cpu, or install the driver it asks for"
        )
        return
    kinds = {device.device_kind: 0 for device in found}
    for device in found:
        kinds[device.device_kind] += 1
    listing = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    yield Finding("devices", f"{jax.default_backend()}: {listing}, {os.cpu_count()} CPU cores")
    if jax.default_backend() == "cpu" and os.environ.get("JAX_PLATFORMS", "") != "cpu":
        driver = Path("/proc/driver/nvidia/version")
        if driver.exists():
            major = re.search(r"Kernel Module\D*(\d+)\.", driver.read_text())
            extra = "cuda13" if major and int(major[1]) >= 580 else "cuda12"
            yield Finding("NVIDIA GPU", "present, but jax does not use it", f"pip install 'moshijax[{extra}]'", False)
        if Path("/dev/accel0").exists():
            yield Finding("TPU", "present, but jax does not use it", "pip install 'moshijax[tpu]'", False)


def disk(folder: Path) -> Finding:
    """Measure the free space where `folder` is."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < FREE_DISK_GB:
        state = f"{free:.1f} GB free in {folder}, {FREE_DISK_GB} GB needed"
        return Finding("disk", state, "free some space, or choose a --run-dir on another disk")
    return Finding("disk", f"{free:.0f} GB free in {folder}")


def memory() -> Finding:
    """Measure the memory that is available."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                free = int(line.split()[1]) * 1024 / 1e9
    except (OSError, ValueError):
        return Finding("memory", "unknown")
    if free < FREE_MEMORY_GB:
        return Finding("memory", f"{free:.1f} GB free, {FREE_MEMORY_GB} GB needed", "close other programs")
    return Finding("memory", f"{free:.0f} GB free")


def compilation_cache() -> Finding:
    """Say where compiled programs are kept, if anywhere."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if not folder:
        return Finding(
            "compilation cache", "off (set JAX_COMPILATION_CACHE_DIR to keep compiled programs between runs)"
        )
    if "://" in folder or writable(Path(folder)):
        return Finding("compilation cache", folder)
    return Finding(
        "compilation cache", f"{folder} is not writable", "set JAX_COMPILATION_CACHE_DIR to a folder you can write to"
    )


@click.command()
def command() -> int:
    """Report what is missing on this machine, and how to install it.

    Checks Python, the packages of the quickstart and their versions, the speech library, devices, disk, memory and the
    compilation cache. Exits with 0 if the quickstart can run here, and with 1 if something it needs is missing.

    \b
    Example:
      moshijax doctor
    """
    found = list(findings())
    width = max(len(finding.subject) for finding in found)
    for finding in found:
        mark = "ok" if not finding.fix else ("MISSING" if finding.needed else "note")
        click.echo(f"{mark:<8}{finding.subject:<{width}}  {finding.state}")
        if finding.fix:
            click.echo(f"{'':<8}{'':<{width}}  fix: {finding.fix}")
    missing = sum(bool(finding.fix) and finding.needed for finding in found)
    click.echo("\nAll that the quickstart needs is here." if not missing else f"\n{missing} to fix.")
    return 1 if missing else 0
