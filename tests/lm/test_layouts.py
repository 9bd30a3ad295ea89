from __future__ import annotations

import pytest

from moshijax.errors import ConfigError
from moshijax.lm import layouts
from moshijax.lm.layouts import Stream, StreamLayout


def test_dialogue_is_the_layout_of_moshi():
    layout = layouts.dialogue(codebooks=8, acoustic_delay=1)
    assert layout.delays == (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1)
    assert (layout.num_streams, layout.n_q, layout.dep_q, layout.max_delay) == (17, 16, 8, 1)
    assert layout.model_rows == tuple(range(9)) == layout.scored_rows
    assert layout.given_rows == tuple(range(9, 17))
    assert layout.rows("user") == layout.given_rows and layout.rows("model", "text") == (0,)


def test_scoring_the_user_adds_depth_steps_but_generates_nothing_more():
    layout = layouts.dialogue(codebooks=8, score_user=True)
    assert (layout.dep_q, layout.model_rows, layout.given_rows) == (16, tuple(range(9)), tuple(range(9, 17)))
    assert layout.scored_rows == tuple(range(17))


def test_other_layouts():
    single = layouts.single_stream(codebooks=3, acoustic_delay=2)
    assert (single.delays, single.dep_q, single.given_rows) == ((0, 0, 2, 2), 3, ())
    recognition = layouts.recognition(codebooks=3, text_delay=4)
    assert (recognition.delays, recognition.dep_q, recognition.model_rows) == ((4, 0, 0, 0), 0, (0,))
    synthesis = layouts.synthesis(codebooks=2, acoustic_delay=2, audio_delay=16)
    assert (synthesis.delays, synthesis.dep_q) == ((0, 16, 18), 2)


def test_published_delays():
    moshi = layouts.from_delays([0, *[0, *[1] * 7] * 2], 8)
    assert moshi == layouts.dialogue(8, 1)
    both = layouts.from_delays([0, *[0, 1, 1] * 2], 6)
    assert [s.speaker for s in both.streams[1:]] == ["model"] * 3 + ["user"] * 3
    assert [s.codebook for s in both.streams[1:]] == [0, 1, 2] * 2 and both.given_rows == ()
    odd = layouts.from_delays([3, 0, 1, 4], 3)
    assert odd.delays == (3, 0, 1, 4) and {s.speaker for s in odd.streams} == {"model"}


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ((), "row 0 must be the text"),
        ((Stream("audio", "model", 0),), "row 0 must be the text"),
        ((Stream("text", "model", given=True, generated=False),), "text stream is given"),
        (
            (Stream("text", "m"), Stream("audio", "u", 0, given=True, generated=False), Stream("audio", "m", 0)),
            "must be ordered",
        ),
    ],
)
def test_bad_layouts(streams, message):
    with pytest.raises(ConfigError, match=message):
        StreamLayout(streams)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(kind="video", speaker="m"), "kind='video'"),
        (dict(kind="audio", speaker="m", codebook=0, delay=-1), "delay=-1"),
        (dict(kind="audio", speaker="m"), "codebook=None"),
        (dict(kind="audio", speaker="m", codebook=0, given=True), "exactly one"),
    ],
)
def test_bad_streams(fields, message):
    with pytest.raises(ConfigError, match=message):
        Stream(**fields)
