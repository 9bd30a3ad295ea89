"""Callers who break off or send nonsense on any protocol: they get an error, and nobody else notices."""

from __future__ import annotations

import asyncio

import aiohttp
import numpy as np
import pytest

from moshijax.serve import server
from tests.serve.calls import serving, url
from tools.soak import abuse


def test_callers_who_misbehave_leave_nothing_behind_and_the_others_hear_what_they_would_alone(
    loaded, monkeypatch
) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.5)
    found = asyncio.run(abuse.soak(loaded, 30, seed=3))
    assert sum(found.abusers.values()) == 30 and len(found.abusers) == len(set(abuse.ABUSES))
    assert found.frames > 5 and found.tasks_left == 0


@pytest.mark.parametrize("kind", sorted(set(abuse.ABUSES), key=lambda kind: kind.__name__), ids=lambda k: k.__name__)
def test_what_an_abuser_sends_follows_from_the_seed_and_begins_like_a_call(kind) -> None:
    for path in abuse.PATHS:
        one, again = (kind(path, np.random.RandomState(7)) for _ in range(2))
        assert one == again and len(one) < 2_000_000
        assert one.startswith(b"G") and abuse.request("/api/chat")[:4].startswith(one[:4])


def test_a_request_without_the_upgrade_is_told_so_and_who_sent_it_and_takes_no_slot(loaded) -> None:
    async def scenario() -> None:
        async with serving(loaded, 4) as running, aiohttp.ClientSession() as http:
            for path in abuse.PATHS:
                async with http.get(url(running, path), headers={"Via": "1.1 edge, 1.0 inner"}) as answer:
                    error = (await answer.json())["error"]
                    assert answer.status == 426 and answer.headers["Upgrade"] == "websocket"
                    assert error["code"] == "upgrade" and "1.0 inner, from which" in error["message"]
            assert running.engine.stats.calls == 0

    asyncio.run(scenario())
