"""`moshijax serve`: what is refused before anything is loaded. Calls are in tests/serve."""

from __future__ import annotations

import socket

import pytest


def test_without_an_artifact_the_last_quickstart_answers(cli, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = cli("serve")
    assert code == 2 and "there is no runs/quickstart/artifact" in error and "moshijax quickstart" in error
    (tmp_path / "runs" / "quickstart" / "artifact").mkdir(parents=True)
    code, _, error = cli("serve")
    assert code == 2 and "runs/quickstart/artifact" in error and "artifact.json" in error


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--calls", 5), 2, "takes up to 4 calls at once, not 5; rebuild it from itself: moshijax export"),
        (("--tls", "--tls-cert", "a.pem"), 2, "give --tls-cert and --tls-key together, or --tls alone"),
        (("--tls-key", "a.pem"), 2, "give --tls-cert and --tls-key together"),
        (("--tls-cert", "a.pem", "--tls-key", "b.pem"), 2, "cannot use a.pem with b.pem"),
        (("--token", "short"), 2, "the token must have at least 8 characters"),
        (("--prompts", "none"), 2, "none is no folder"),
        (("--call-seconds", "nan"), 2, "not a finite number"),
        (("--origin", "foo"), 2, "'foo' must be a page's scheme and host alone"),
        (("--origin", "https://example.org/"), 2, "'https://example.org/' must be a page's"),
    ],
)
def test_options_that_cannot_be_used(cli, artifact_dir, options, code, message) -> None:
    found, _, error = cli("serve", artifact_dir, *options)
    assert found == code and message in error and error.count("\n") == 1, error


def test_a_port_that_is_taken(cli, artifact_dir) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, error = cli("serve", artifact_dir, "--port", port)
    assert code == 1 and f"cannot listen at 127.0.0.1:{port}" in error and "choose another --host or --port" in error
