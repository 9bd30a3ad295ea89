"""`moshijax doctor` on machines that lack something."""

from __future__ import annotations

import collections
import shutil
from importlib import metadata

import pytest

from moshijax.cli import doctor


def test_this_machine_can_run_the_quickstart(cli) -> None:
    code, out, _ = cli("doctor")
    assert code == 0 and "All that the quickstart needs is here." in out and "MISSING" not in out
    for subject in ("jax", "grain", "espeakng-loader", "espeak-ng library", "devices", "disk", "memory"):
        assert subject in out


@pytest.mark.parametrize(("package", "extra"), [("grain", "[data]"), ("espeakng-loader", "[synth]"), ("flax", "")])
def test_an_absent_package_is_named_with_the_command_that_brings_it(cli, monkeypatch, package, extra) -> None:
    installed = metadata.version

    def version(name: str) -> str:
        if name == package:
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    code, out, _ = cli("doctor")
    line = next(line for line in out.splitlines() if package in line)
    assert code == 1 and line.startswith("MISSING") and "not installed" in line
    assert f"moshijax{extra}" in out and "1 to fix." in out


def test_a_version_out_of_range_is_named_with_its_bounds(cli, monkeypatch) -> None:
    installed = metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "0.4.1" if name == "jax" else installed(name))
    code, out, _ = cli("doctor")
    assert code == 1 and "0.4.1, outside" in out and "pip install 'jax" in out and ">=0.10.2" in out


def test_little_disk_is_named_with_what_is_needed(monkeypatch, tmp_path) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 9, 5e8))
    finding = doctor.disk(tmp_path)
    assert finding.fix and "0.5 GB free" in finding.state and str(doctor.FREE_DISK_GB) in finding.state


def test_a_speech_library_that_does_not_load_is_named(monkeypatch, tmp_path) -> None:
    (tmp_path / "espeakng_loader.py").write_text("def get_library_path(): return '/nowhere/libespeak.so'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = doctor.speech_library()
    assert "libespeak" in finding.state and "moshijax[synth]" in finding.fix


def test_a_device_that_fails_to_start_is_a_finding_not_a_crash(monkeypatch) -> None:
    import jax

    def no_devices():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", no_devices)
    (finding,) = doctor.devices()
    assert "Unable to initialize" in finding.state and finding.fix


def test_an_unwritable_cache_is_named(monkeypatch, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "cache"))
    finding = doctor.compilation_cache()
    assert "not writable" in finding.state and finding.fix
