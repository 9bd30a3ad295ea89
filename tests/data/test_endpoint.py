"""Requests to a real HTTP server in the test's process: retries, time limits, keys, and what is said when it fails."""

from __future__ import annotations

import time

import pytest

from moshijax.data.endpoint import Endpoint
from moshijax.errors import ConfigError, DataError, MoshijaxError
from tests.data.server import Answer, serving


def test_a_reply_comes_with_the_key_that_the_variable_holds(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    with serving(
        lambda path, body, headers: Answer(body=str((path, body, headers["Authorization"])).encode())
    ) as server:
        reply = Endpoint(f"{server.url}/v1/", key="SOME_KEY").post("audio/speech", {"input": "é"})
    assert reply.decode() == "('/v1/audio/speech', {'input': 'é'}, 'Bearer secret')"
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(ConfigError, match="the variable SOME_KEY, which is to hold a key, is not set"):
        Endpoint(server.url, key="SOME_KEY").post("x", {})


def test_what_a_server_asks_for_again_is_asked_again():
    answers = iter([Answer(429, b"busy", {"Retry-After": "0"}), Answer(503), Answer(body=b"done")])
    with serving(lambda *_: next(answers)) as server:
        assert Endpoint(server.url).post("x", {}) == b"done"
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, ConfigError, r"answered 401, 'bad key': check the key \(in no variable\)"),
        (404, ConfigError, "answered 404, 'bad key': check the URL and the model's name"),
        (400, DataError, "answered 400, 'bad key': change the text"),
        (500, MoshijaxError, "answered 500, 'bad key', also after 1 retries: try again later"),
    ],
)
def test_each_refusal_has_a_remedy(status, error, message):
    with serving(lambda *_: Answer(status, b'{"error": {"message": "bad key"}}')) as server:
        with pytest.raises(error, match=message) as raised:
            Endpoint(server.url, retries=1).post("x", {})
        assert type(raised.value) is error and len(server.requests) == (2 if status == 500 else 1)


def test_a_server_that_is_silent_or_not_there_ends_in_one_line():
    def silent(*_):
        time.sleep(1.0)
        return Answer()

    with serving(silent) as server, pytest.raises(MoshijaxError, match=r"no reply in 1 tries \(Read timed out.*0.2"):
        Endpoint(server.url, seconds=0.2, retries=0).post("x", {})
    with pytest.raises(MoshijaxError, match=r"no reply in 2 tries .*[Rr]efused.*check that the server runs") as error:
        Endpoint(server.url, retries=1).post("x", {})
    assert "\n" not in str(error.value) and "object at" not in str(error.value)


def test_settings_that_cannot_be_are_refused():
    for url in ("localhost:8000", "ftp://a", "http://", "http://a b"):
        with pytest.raises(ConfigError, match="write its URL, such as http"):
            Endpoint(url)
    for settings in ({"seconds": 0}, {"retries": -1}):
        with pytest.raises(ConfigError, match="must be above 0|use 0 or more"):
            Endpoint("http://a", **settings)
