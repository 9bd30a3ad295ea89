"""One tiny artifact for all tests of this folder."""

from __future__ import annotations

import pytest

from moshijax.export import artifact, runtime
from moshijax.testing.tiny import tiny_models


@pytest.fixture(scope="session")
def models():
    return tiny_models()


@pytest.fixture(scope="session")
def artifact_dir(models, tmp_path_factory):
    return artifact.build(*models, tmp_path_factory.mktemp("export") / "artifact", batches=(1, 4))


@pytest.fixture(scope="session")
def program4(artifact_dir):
    return runtime.load(artifact_dir, 4)


@pytest.fixture(scope="session")
def program1(artifact_dir):
    return runtime.load(artifact_dir, 1)
