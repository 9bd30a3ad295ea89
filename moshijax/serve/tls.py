"""Certificates: the operator's own, or one that is made here, which browsers warn of once."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

from moshijax.errors import ConfigError, MoshijaxError

DAYS = 365


def context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return what a server with this certificate needs.

    Raises:
      ConfigError: the files cannot be used.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        made.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"cannot use {certificate} with {key}: {reason}; give a PEM certificate and its key"
        ) from None
    return made


def own_certificate(folder: Path) -> tuple[Path, Path]:
    """Return a self-signed certificate for this machine and its key; the one made before, so that browsers know it.

    Args:
      folder: where they are kept, for this user alone.

    Raises:
      MoshijaxError: openssl is missing or fails.
    """
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    openssl = shutil.which("openssl")
    if openssl is None:
        raise MoshijaxError("--tls needs the command openssl: install it, or give --tls-cert and --tls-key")
    valid = ("x509", "-checkend", str(7 * 24 * 3600), "-noout", "-in", str(certificate))
    if key.exists() and not subprocess.run([openssl, *valid], capture_output=True).returncode:
        return certificate, key
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = socket.gethostname()
    names = ",".join(f"DNS:{host}" for host in dict.fromkeys(("localhost", name))) + ",IP:127.0.0.1,IP:::1"
    address = _own_address()
    if address:
        names += f",IP:{address}"
    command = (
        openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", str(DAYS),
        "-subj", "/CN=moshijax", "-addext", f"subjectAltName={names}", "-keyout", str(key), "-out", str(certificate),
    )  # fmt: skip
    before = os.umask(0o077)
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    finally:
        os.umask(before)
    if done.returncode:
        raise MoshijaxError(
            f"openssl made no certificate: {done.stderr.strip().splitlines()[-1:]}; give --tls-cert and --tls-key"
        )
    return certificate, key


def _own_address() -> str | None:
    """Return the address of this machine in its network, by which others call it; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return None
