"""When people speak: statistics of word times, draws for scripts, and what is made of them beside the reference."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from moshijax.cli.main import cli
from moshijax.data.synthesis import Dialogue, Utterance
from moshijax.data.synthesis.timing import Timing, draw, fit, read, write
from moshijax.data.transcript import Word
from moshijax.errors import ConfigError, DataError

FEW = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def turn(speaker: str, start: float, count: int, each: float = 0.3) -> list[Word]:
    return [Word(f"w{n}", start + n * each, start + (n + 1) * each, speaker) for n in range(count)]


def talk(gaps: list[float], backchannels: bool = False) -> tuple[list[Word], float]:
    """Turns of eight words, each begun by the other speaker after a gap."""
    words, start = [], 0.0
    for number, gap in enumerate([*gaps, 0.0]):
        speaker, other = ("user", "model")[:: 1 if number % 2 else -1]
        words += turn(speaker, start, 8)
        if backchannels and number % 2:
            words += [Word("right", start + 1.2, start + 1.4, other)]
        start += 8 * 0.3 + gap
    return sorted(words, key=lambda word: word.start), start


def test_gaps_overlaps_and_backchannels_are_those_of_the_words():
    gaps = [0.1, 0.5, -0.3, 0.9] * 10
    found = fit([talk(gaps, backchannels=True)])
    assert found.changes == 40 and found.within == 0
    np.testing.assert_allclose([found.gaps[0], found.gaps[50], found.gaps[-1]], [-0.3, 0.3, 0.9], atol=1e-3)
    assert found.figures()["overlapping changes"] == pytest.approx(0.25, abs=0.02)
    assert found.backchannels == pytest.approx(20 / 41) and found.texts == (("right", 20),)
    np.testing.assert_allclose(found.places, 0.5, atol=1e-3)
    with pytest.raises(DataError, match="the speaker changes 4 times in these calls: give a corpus with at least 20"):
        fit([talk(gaps[:4])])


def test_a_long_turn_inside_another_is_counted_and_not_taken_for_a_backchannel():
    words, seconds = talk([0.2] * 20)
    inside = [*words, *turn("user", 0.5, 4, 0.1)]
    found = fit([(sorted(inside, key=lambda word: word.start), seconds)])
    assert found.within == 1 and found.backchannels == 0 and found.places == () and found.texts == ()


def test_draws_follow_the_reference_and_leave_what_is_written():
    reference = fit([talk([0.1, 0.5, -0.3, 0.9] * 10, backchannels=True)])
    long = "this is a turn of more than six words"
    turns = (
        Utterance("user", long),
        Utterance("model", long),
        Utterance("user", long, gap=0.7),
        Utterance("model", "no"),
    )
    calls = [draw(Dialogue(f"c{n}", turns), reference, seed=3) for n in range(300)]
    assert calls[0] == draw(Dialogue("c0", turns), reference, seed=3) != draw(Dialogue("c0", turns), reference, seed=4)
    gaps = [u.gap for c in calls for u in c.utterances[1:] if u.kind == "turn" and u.gap != 0.7]
    assert len(gaps) == 600 and abs(np.mean(np.array(gaps) < 0) - 0.25) < 0.06 and abs(np.mean(gaps) - 0.3) < 0.06
    assert all(sum(u.gap == 0.7 for u in c.utterances) == 1 and c.utterances[0].gap is None for c in calls)
    added = [u for c in calls for u in c.utterances if u.kind == "backchannel"]
    assert abs(len(added) / 900 - reference.backchannels) < 0.06 and {u.text for u in added} == {"right"}
    assert {u.speaker for u in added} == {"user", "model"} and all(abs(u.at - 0.5) < 0.01 for u in added)
    marked = (Utterance("user", long), Utterance("model", "wait", kind="interruption"), Utterance("user", "oh"))
    assert all(len(draw(Dialogue(f"m{n}", marked), reference, 0).utterances) == 3 for n in range(20))


@FEW
@given(st.lists(st.tuples(st.sampled_from(["user", "model"]), st.floats(0, 60), st.integers(1, 9), st.floats(0.1, 1)),
                max_size=30))  # fmt: skip
def test_any_words_have_statistics(turns):
    words = sorted(
        (w for speaker, start, n, each in turns for w in turn(speaker, start, n, each)), key=lambda w: w.start
    )
    base, seconds = talk([0.2] * 20)
    found = fit([(words, 70.0), (base, seconds)])
    assert found.changes >= 20 and found.seconds == 70.0 + seconds
    assert all(0 <= place <= 1 for place in found.places) and list(found.gaps) == sorted(found.gaps)
    draw(Dialogue("a", (Utterance("user", "one two three four five six"), Utterance("model", "b"))), found, 0)


def test_the_file_holds_all_of_it_and_other_files_are_refused(tmp_path):
    found = fit([talk([0.1, 0.5] * 15, backchannels=True)])
    write(found, tmp_path / "t.json")
    assert read(tmp_path / "t.json") == found
    good = json.loads((tmp_path / "t.json").read_text())
    for content in (
        [],
        {},
        {**good, "gaps": []},
        {**good, "gaps": ["x", "y"]},
        {**good, "texts": []},
        {**good, "more": 1},
    ):
        (tmp_path / "bad.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match="bad.json is no timing .*make it with `moshijax data timing`"):
            read(tmp_path / "bad.json")


def test_instructions_become_calls_in_one_command_with_the_timing_of_a_corpus(tmp_path):
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("num2words")
    rng = random.Random(0)
    gaps = tuple(sorted(rng.gauss(0.3, 0.2) for _ in range(101)))
    write(Timing(gaps, 1.0, (0.4, 0.6), (("mm hm", 1),), 100, 0, 1000.0), tmp_path / "fisher.json")
    source = tmp_path / "alpaca.json"
    entries = [{"instruction": f"Why is {n} more than {n - 1}, and less than 99?", "input": "", "output": "It is."}
               for n in range(24)]  # fmt: skip
    source.write_text(json.dumps([*entries, {"instruction": "Draw", "output": "`x`"}]))

    def invoke(*arguments):
        return CliRunner().invoke(cli, ["data", *map(str, arguments)])

    done = invoke("synthesize", source, tmp_path / "calls", "--timing", tmp_path / "fisher.json", "--workers", 2)
    assert done.exit_code == 0, done.output
    assert "24 dialogues of 25 entries" in done.output and "rejected code: 1 entries" in done.output
    rows = dict(re.findall(r"^  ([a-z][a-z0-9 ]+?)  +[-\d.]+ +([-\d.]+)$", done.output, flags=re.M))
    assert rows.keys() == set(Timing(gaps, 0, (), (), 1, 0, 1.0).figures())
    assert abs(float(rows["gap median"]) - 0.3) < 0.15 and float(rows["backchannels per long turn"]) > 0.8
    again = invoke("timing", tmp_path / "calls" / "manifest.jsonl", tmp_path / "made.json")
    assert again.exit_code == 0 and read(tmp_path / "made.json").changes == 24
    picture = tmp_path / "made.png"
    beside = ("--beside", tmp_path / "fisher.json", "--picture")
    drawn = invoke("timing", tmp_path / "calls" / "manifest.jsonl", tmp_path / "made.json", *beside, picture)
    assert drawn.exit_code == 0 and f"wrote {tmp_path / 'made.json'}, {picture}" in drawn.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert re.findall(r"^  gap median +([-\d.]+) +", drawn.output, re.M) == re.findall(
        r"^  gap median +([-\d.]+) +", done.output, re.M
    )
    for path, message in ((tmp_path / "a.pdf", "name it a.png"), (source, "would replace")):
        bad = invoke("timing", source, tmp_path / "bad.json", *beside, path)
        assert isinstance(bad.exception, ConfigError) and message in str(bad.exception)
    spoken = json.loads((tmp_path / "calls" / "audio" / "instruction-000003.json").read_text())
    assert "mm hm" in " ".join(word for word, _, who in spoken["alignments"] if who == "SPEAKER_MAIN")
