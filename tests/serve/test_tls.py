"""Certificates; calls over https are in test_server.py."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from moshijax.errors import ConfigError, MoshijaxError
from moshijax.serve import tls


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return tls.own_certificate(tmp_path_factory.mktemp("tls") / "certificate")


def test_the_certificate_is_renewed_before_it_ends(certificate, tmp_path) -> None:
    copies = [tmp_path / path.name for path in certificate]
    for path, copy in zip(certificate, copies):
        shutil.copy(path, copy)
    assert tls.own_certificate(tmp_path) == tuple(copies)
    assert copies[0].read_bytes() == certificate[0].read_bytes()
    # One that ends in three days.
    command = f"openssl req -x509 -days 3 -subj /CN=x -key {copies[1]} -out {copies[0]}".split()
    subprocess.run(command, check=True, capture_output=True)
    ending = copies[0].read_bytes()
    tls.own_certificate(tmp_path)
    assert copies[0].read_bytes() != ending
    tls.context(*copies)


def test_files_that_are_no_certificate_are_refused(certificate, tmp_path) -> None:
    made, key = certificate
    with pytest.raises(ConfigError, match=r"nowhere.pem with .*: No such file or directory; give a PEM certificate"):
        tls.context(tmp_path / "nowhere.pem", key)
    other = tls.own_certificate(tmp_path / "other")[1]
    with pytest.raises(ConfigError, match="KEY_VALUES_MISMATCH"):
        tls.context(made, other)


def test_without_openssl_the_message_says_what_to_do(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MoshijaxError, match="install it, or give --tls-cert and --tls-key"):
        tls.own_certificate(tmp_path)
