"""Whatever a transcript or a script holds: it is refused by a message, or nothing of it is lost uncounted."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st

from moshijax.data.synthesis import texts
from moshijax.data.transcript import SPEAKERS, UnknownSpeaker, parse_alignments
from moshijax.errors import DataError

FUZZ = settings(derandomize=True, database=None, deadline=None, max_examples=200)

WORD = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ["", " ", "the", "the", "a b", "\u0301e", "\ufeff"]
)
TIME = st.none() | st.floats(-1, 12) | st.floats() | st.integers(-1, 12) | st.sampled_from(["", "1.5", math.nan])
ENTRY = st.tuples(WORD, st.none() | st.tuples(TIME, TIME), st.sampled_from(sorted(SPEAKERS)))
SCORED = st.tuples(WORD, st.tuples(TIME, TIME), st.sampled_from(sorted(SPEAKERS)), st.none() | st.floats(0, 1))


def shapes_of(words):
    """Each word's text without form and spaces, with its speaker, as often as it occurs."""
    import unicodedata

    return Counter((" ".join(unicodedata.normalize("NFC", text).split()), SPEAKERS[label]) for text, label in words)


@FUZZ
@given(st.lists(ENTRY | SCORED, max_size=8), st.floats(0, 11))
@example([("a", (9.0, 2.0), "user"), ("b", (None, None), "user"), ("c", (9.5, None), "user")], 10.0)
def test_words_of_a_transcript_are_kept_in_order_inside_the_recording_or_counted(entries, duration):
    try:
        words, counts = parse_alignments([list(entry) for entry in entries], duration)
    except DataError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert len(words) == len(entries) - counts["empty_word"]
    left = shapes_of((entry[0], entry[2]) for entry in entries)
    assert shapes_of((word.text, word.speaker) for word in words) == +Counter(
        {key: number for key, number in left.items() if key[0]}
    )
    for word in words:
        assert 0 <= word.start <= word.end <= duration and math.isfinite(word.end), (word, duration)
    assert [word.start for word in words] == sorted(word.start for word in words)
    untouched = {
        (" ".join(entry[0].split()), float(entry[1][0]), float(entry[1][1]))
        for entry in entries
        if entry[0].isascii() and entry[1] and all(isinstance(t, int | float) and math.isfinite(t) for t in entry[1])
        and 0 <= entry[1][0] < entry[1][1] <= duration and entry[0].strip()
    }  # fmt: skip
    assert untouched <= {(word.text, word.start, word.end) for word in words}


@FUZZ
@given(st.lists(st.tuples(WORD, st.tuples(TIME, TIME), st.text(max_size=4) | st.none() | st.integers()), max_size=6))
def test_labels_without_a_map_stop_and_are_counted(entries):
    try:
        parse_alignments([list(entry) for entry in entries], 10.0)
    except UnknownSpeaker as error:
        assert sum(error.labels.values()) <= len(entries) and not error.labels.keys() & SPEAKERS.keys()
    except DataError:
        pass
    else:
        assert all(label in SPEAKERS for text, _, label in entries if text.split())


SAID = st.text(st.sampled_from("abc ,.?!:@'é語"), max_size=12)
LINE = st.one_of(
    st.builds("{}: {}".format, st.sampled_from(["user", "model", "user +0.3", "model -0.2"]), SAID),
    st.builds("{} {}{}: {}".format, st.sampled_from(["user", "model"]), st.sampled_from("@!"), st.floats(0, 2), SAID),
    st.builds("{} {}".format, st.sampled_from(["lead", "tail", "duration", "gain", "snr"]), st.floats(-3, 3) | SAID),
    st.builds(
        "voice {}: {}".format, st.sampled_from(["user", "model"]), st.sampled_from(["", "hibari", "en-us rate=1"])
    ),
    st.text(max_size=12),
    st.just("# a comment"),
)


@FUZZ
@given(st.lists(LINE, max_size=6))
def test_what_a_script_says_is_kept_or_refused_with_its_line(lines):
    script = "\n".join(["== one", "user: begin", *lines])
    try:
        dialogues = texts.parse(script, "script.txt")
    except DataError as error:
        assert str(error).startswith("script.txt") and "\n" not in str(error)
        return
    kept = [turn.text for dialogue in dialogues for turn in dialogue.utterances]
    said = [
        line.partition(": ")[2].strip()
        for line in script.split("\n")
        if line.startswith(("user", "model")) and line.partition(": ")[2].strip()
    ]
    for text in said:
        assert any(text in other for other in kept), (text, kept)
