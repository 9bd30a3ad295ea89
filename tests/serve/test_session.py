"""A caller's queues by themselves."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from moshijax.errors import ConfigError
from moshijax.runtime.hosting import ScriptWord
from moshijax.serve.session import WORDS, Dropped, Session


def session() -> Session:
    artifact = SimpleNamespace(policy={}, frame_seconds=0.08, frame_size=640)
    return Session(artifact, lambda session: None, lambda: None, lambda: 0.0)


def test_words_that_nobody_has_begun_to_speak_are_bounded() -> None:
    caller, words = session(), [ScriptWord("a", (1,))] * (WORDS // 2)
    caller.say(words, False)
    caller.say(words, False)
    with pytest.raises(ConfigError, match=f"{WORDS} words wait .* these 1 are not taken"):
        caller.say(words[:1], True)
    assert len(caller.take_requests()) == 2
    caller.words_begun = 1
    caller.say(words[:1], True)
    with pytest.raises(ConfigError):
        caller.say(words[:1], True)


def test_frames_that_were_left_out_count_with_those_that_are_too_many() -> None:
    caller = session()
    caller.hear(np.zeros(6 * 640, np.float32), dropped=3)
    assert caller.take_events() == [Dropped(5)] and caller.counts.dropped == 5 and caller.waiting == 4
