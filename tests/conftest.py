"""Settings that every test runs under."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before the first import of jax: the CPU alone, and compiled programs kept between runs.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "moshijax" / "test-compilation"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`soak` tests run only when they are asked for (`-m soak`); whole-system tests go first, as the longest."""
    if "soak" not in (config.option.markexpr or ""):
        soak = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]
    items.sort(key=lambda item: 0 if "quickstart" in item.path.name else 1 if item.path.parent.name == "system" else 2)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests measured (`record_property("figures", text)`), also from the worker processes of a parallel run."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, text in getattr(report, "user_properties", ()):
                if name == "figures" and report.when == "call":
                    terminalreporter.section(f"figures of {report.nodeid}")
                    terminalreporter.write_line(str(text))


@pytest.fixture(scope="module", autouse=True)
def compiled_programs():
    """Drop the compiled programs of a test file when it ends.

    Each takes several memory maps, of which Linux grants a process 65,530; when none is left, the compiler crashes.
    """
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """An empty place for a run; the folder itself does not exist yet."""
    return tmp_path / "run"


@pytest.fixture
def cli(capsys):
    """Run one `moshijax` command line in this process: `code, out, err = cli("train", "recipe.gin")`."""
    from moshijax.cli.main import run

    def call(*arguments: object) -> tuple[int, str, str]:
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def codec_speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recordings with words, phonemes and a teacher's features, for tests that train a codec."""
    from tests.train.support.models import write_codec_data

    path = tmp_path_factory.mktemp("codec") / "speech"
    write_codec_data(path)
    return path


@pytest.fixture(scope="session")
def models():
    """A tiny codec, language model and text pieces, as `export.artifact.build` takes them."""
    from moshijax.testing.tiny import tiny_models

    return tiny_models()


@pytest.fixture(scope="session")
def artifact_dir(models, tmp_path_factory):
    """One tiny artifact for all tests."""
    from moshijax.export import artifact

    out = tmp_path_factory.mktemp("export") / "artifact"
    return artifact.build(*models, out, batches=(1, 4), prefill_lengths=(4, 16))


@pytest.fixture(scope="session")
def loaded(artifact_dir):
    from moshijax import runtime

    return runtime.load(artifact_dir)


@pytest.fixture(scope="session")
def rows4(loaded):
    from moshijax import runtime

    return runtime.Rows(loaded, 4)


@pytest.fixture(scope="session")
def rows1(loaded):
    from moshijax import runtime

    return runtime.Rows(loaded, 1)
