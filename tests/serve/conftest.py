"""An artifact for eight callers, and a world in which time passes only when a test says so."""

from __future__ import annotations

import pytest

from moshijax import runtime
from tools.soak.world import World


@pytest.fixture(scope="session")
def eight(models, tmp_path_factory):
    """A tiny artifact that takes eight calls at once."""
    from moshijax.export import artifact

    out = tmp_path_factory.mktemp("serve") / "artifact"
    return runtime.load(artifact.build(*models, out, batches=(8,), prefill_lengths=(4, 16)))


@pytest.fixture
def world(eight):
    """A new engine for eight callers at the beginning of time."""
    return World(eight, 8)
