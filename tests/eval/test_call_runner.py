"""Calls as files: aligned, logged on both clocks, and the same bytes for the same seed, paced or not."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from moshijax.errors import ConfigError
from moshijax.eval import call_runner, evaluation
from moshijax.eval.activity import segments
from moshijax.eval.call_runner import CallRunner
from moshijax.eval.dynamics import Activity
from moshijax.runtime import audio
from tests.eval.test_activity import tone

RATE = 8000


def test_events_are_on_both_clocks_and_in_order():
    heard = Activity(segments([(2, 3)]), segments([(0.5, 1.5)]), 4.0)
    found = call_runner.events(heard, [("rain", 2.08, 2.4)], [("well", 0.5, 1.0)], 0.08)
    assert [(one["speaker"], one["event"], one["slot"][0]) for one in found] == [
        ("user", "word", 0.5), ("user", "speech", 0.5), ("model", "speech", 2.0), ("model", "word", 2.08),
    ]  # fmt: skip
    assert found[0]["causal"] == [0.5, 1.0] and found[0]["text"] == "well"
    assert found[3]["causal"] == [2.16, 2.48] and found[2]["causal"] == [2.08, 3.08] and "text" not in found[2]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A mono recording without a transcript, and a call with one in a folder of its own."""
    folder = tmp_path_factory.mktemp("users")
    audio.write(folder / "alone.wav", tone(1.2, RATE, (0.1, 0.6))[:, None], RATE)
    (folder / "more").mkdir()
    audio.write(folder / "more" / "call.wav", np.stack([tone(0.8, RATE), tone(0.8, RATE, (0.2, 0.5))], axis=1), RATE)
    sidecar = {"alignments": [["well", [0.2, 0.5], "user"], ["yes", [0.6, 0.7], "model"]]}
    (folder / "more" / "call.json").write_text(json.dumps(sidecar))
    return folder


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_command_writes_calls_and_the_same_seed_gives_the_same_bytes(artifact_dir, recordings, tmp_path, cli):
    fields = {"artifact": artifact_dir, "calls": recordings, "tail_seconds": 0.4, "seed": 7, "threshold_db": -70.0}
    arguments = [f"--gin.evaluation.{name}={value}" for name, value in fields.items()]
    code, out, err = cli("eval", "eval/call_runner.gin", "--out", tmp_path / "out", *arguments)
    assert code == 0, err
    written = files_of(tmp_path / "out" / "calls")
    assert set(written) == {
        f"{name}{end}" for name in ("alone", "more/call") for end in (".wav", ".json", ".events.jsonl")
    }
    pcm, rate = audio.read(tmp_path / "out" / "calls" / "alone.wav")
    assert len(pcm) == 1.6 * rate and np.abs(pcm[: round(1.2 * rate), 1]).max() > 0.05  # the user is on the right
    log = [json.loads(line) for line in written["more/call.events.jsonl"].decode().splitlines()]
    assert {"event": "word", "speaker": "user", "slot": [0.2, 0.5], "causal": [0.2, 0.5], "text": "well"} in log
    text = json.loads(written["more/call.json"])
    assert {"text", "words", "tokens", "frame_seconds"} <= text.keys()
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["values"]["calls"] == 2 and len(found["provenance"]["written"]) == 64
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<audio") == 2 and "<img" in page

    changed = {"left": "user", "paced": True}
    settings = CallRunner(**{**fields, "artifact": str(artifact_dir), "calls": str(recordings), **changed})
    began = time.monotonic()
    again = evaluation.run(settings, tmp_path / "paced")
    assert time.monotonic() - began >= 1.6  # in real time
    swapped = audio.read(tmp_path / "paced" / "calls" / "alone.wav")[0]
    assert np.array_equal(swapped[:, ::-1], pcm)  # the layout of MTR-DuplexBench
    same = {name: content for name, content in files_of(tmp_path / "paced" / "calls").items() if ".wav" not in name}
    assert same == {name: content for name, content in written.items() if ".wav" not in name}
    assert again.provenance["written"] != found["provenance"]["written"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"left": "both"}, "left 'both' must be one of model, user"),
        ({"tail_seconds": -1.0}, "tail_seconds -1"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_impossible_settings_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        CallRunner("artifact", "calls", **fields)


def test_both_clocks_are_reported():
    results = evaluation.Results("x")
    answered = Activity(segments([(2, 3)]), segments([(0.5, 1.5)]), 6.0)
    call_runner._latencies(results, {"a": answered, "b": Activity(segments([]), segments([(0.5, 1.5)]), 6.0)}, 0.08)
    assert results.values == pytest.approx(
        {"response/slot_seconds": 0.5, "response/causal_seconds": 0.58, "response/rate": 0.5, "calls": 2}
    )
    assert results.calls["response/rate"] == {"a": (1.0, 1.0), "b": (0.0, 1.0)}
