"""Who may call, decided about requests alone; the door in a server is in test_server.py."""

from __future__ import annotations

import json

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from moshijax.serve import door
from moshijax.serve.settings import Settings


def request(*headers: tuple[str, str], path: str = "/v1/realtime"):
    return make_mocked_request("GET", path, CIMultiDict([("Host", "here:8998"), *headers]))


def code(answer) -> str | None:
    return None if answer is None else json.loads(answer.text)["error"]["code"]


@pytest.mark.parametrize(
    ("origin", "refused"),
    [
        ("http://here:8998", None),
        ("https://here:8998", None),
        ("https://friend.example", None),
        ("http://here", "origin"),
        ("http://[", "origin"),
        ("http://]:x", "origin"),
        ("null", "origin"),
        ("", "origin"),
    ],
)
def test_pages_of_other_hosts_are_refused_whatever_they_claim(origin, refused) -> None:
    keeper = door.Door(Settings(origins=("https://friend.example",)))
    assert code(keeper.check_call(request(("Origin", origin)))) == refused


def test_wrong_tokens_are_limited_and_the_right_one_is_not_told_apart_after_them(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(door.time, "monotonic", lambda: now[0])
    keeper = door.Door(Settings(token="open-sesame", calls_per_minute=6))
    guess, right = request(("Authorization", "Bearer sesame")), request(("Authorization", "Bearer open-sesame"))
    assert [code(keeper.check_token(request())) for _ in range(20)] == ["unauthorized"] * 20, "no token is no guess"
    assert [code(keeper.check_token(guess)) for _ in range(7)] == ["unauthorized"] * 6 + ["rate"]
    assert code(keeper.check_token(right)) == code(keeper.check_call(right)) == "rate"
    now[0] += 10.5
    assert keeper.check_call(right) is None


def test_calls_are_limited_for_each_address(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(door.time, "monotonic", lambda: now[0])
    keeper = door.Door(Settings(proxied=True, calls_per_minute=6))

    def answers(address: str, count: int) -> list[str | None]:
        return [code(keeper.check_call(request(("X-Forwarded-For", address)))) for _ in range(count)]

    assert answers("1.2.3.4", 8) == [None] * 6 + ["rate"] * 2
    assert answers("1.2.3.5", 1) == [None]
    now[0] += 20.5
    assert answers("1.2.3.4", 3) == [None] * 2 + ["rate"]


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        (["9.9.9.9"], "9.9.9.9"),
        (["1.1.1.1, 9.9.9.9"], "9.9.9.9"),
        (["1.1.1.1", "9.9.9.9"], "9.9.9.9"),
        (["1.1.1.1, 2.2.2.2", "3.3.3.3,9.9.9.9 "], "9.9.9.9"),
    ],
)
def test_the_address_is_the_one_that_our_proxy_added(lines, address) -> None:
    keeper = door.Door(Settings(proxied=True))
    assert keeper.address(request(*(("X-Forwarded-For", line) for line in lines))) == address
