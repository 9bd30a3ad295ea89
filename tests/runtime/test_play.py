"""Offline calls: whole commands, files and text."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from moshijax.errors import ConfigError
from moshijax.runtime import CallOptions, audio
from moshijax.runtime import play as playing
from moshijax.runtime.play import Timing, play


@pytest.fixture
def user(tmp_path):
    path = tmp_path / "user.wav"
    audio.write(path, np.random.RandomState(0).uniform(-0.4, 0.4, (640 * 12 + 5, 1)), 8000)
    return path


def test_run_command(cli, artifact_dir, user, tmp_path):
    out, text = tmp_path / "reply.wav", tmp_path / "reply.json"
    code, printed, _ = cli(
        "run",
        artifact_dir,
        "--user",
        user,
        "--out",
        out,
        "--text-out",
        text,
        "--seed",
        3,
        "--tail",
        0.16,
        "--top-k",
        10,
    )
    assert code == 0
    stereo, rate = audio.read(out)
    assert rate == 8000 and stereo.shape == (640 * 15, 2)  # 12 frames and a bit, 2 of silence, whole frames
    heard, _ = audio.read(user)
    np.testing.assert_allclose(stereo[: len(heard), 1], heard[:, 0], atol=1e-4)
    assert (stereo[len(heard) :, 1] == 0).all() and stereo[:, 0].std() > 0
    result = json.loads(text.read_text())
    assert result["timing"]["steps"] == 16 and result["timing"]["frame_ms"] == 80
    assert result["text"] == " ".join(word["word"] for word in result["words"])
    assert all(0 <= word["start"] < word["end"] <= 1.2 for word in result["words"])
    assert "p50" in printed and "p99" in printed and "0 frames would be late" in printed and str(out) in printed


def test_same_seed_same_bytes(cli, artifact_dir, user, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert cli("run", artifact_dir, "--user", user, "--out", tmp_path / f"{name}.wav", "--seed", seed)[0] == 0
    a, b, c = ((tmp_path / f"{name}.wav").read_bytes() for name in "abc")
    assert a == b != c


def test_as_heard_is_later_by_the_delay(cli, artifact_dir, user, tmp_path):
    cli("run", artifact_dir, "--user", user, "--out", tmp_path / "grid.wav")
    cli("run", artifact_dir, "--user", user, "--out", tmp_path / "heard.wav", "--as-heard")
    grid, heard = audio.read(tmp_path / "grid.wav")[0], audio.read(tmp_path / "heard.wav")[0]
    np.testing.assert_array_equal(heard[640:, 0], grid[:, 0])
    np.testing.assert_array_equal(heard[:-640, 1], grid[:, 1])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere", "--user", "USER"), 2, "no artifact at nowhere"),
        (("ARTIFACT", "--user", "nothing.wav"), 2, "no audio file at nothing.wav"),
        (("ARTIFACT", "--user", "USER", "--out", "no/such/folder/a.wav"), 2, "its folder does not exist"),
        (("ARTIFACT", "--user", "USER", "--platform", "tpu"), 2, "made for cpu, not for tpu"),
        (("ARTIFACT", "--user", "USER", "--batch", "9"), 2, "not for 9"),
        (("ARTIFACT", "--user", "USER", "--temperature", "-1"), 2, "temperature=-1.0 is outside"),
        (("ARTIFACT", "--user", "USER", "--seed", "-1"), 2, "seed -1 must be"),
    ],
)
def test_bad_arguments(cli, artifact_dir, user, arguments, code, message):
    places = {"ARTIFACT": str(artifact_dir), "USER": str(user)}
    got, out, err = cli("run", *[places.get(argument, argument) for argument in arguments])
    assert got == code and message in err and err.startswith("error: ") and err.count("\n") == 1


def test_without_click(artifact_dir, user, tmp_path):
    """The entry that needs nothing but the runtime's packages gives the same call."""
    command = [sys.executable, "-m", "moshijax.runtime", str(artifact_dir), "--user", str(user)]
    done = subprocess.run([*command, "--out", str(tmp_path / "a.wav")], capture_output=True, text=True, check=True)
    assert "p50" in done.stdout and "worst" in done.stdout
    playing.run(artifact_dir, user, tmp_path / "b.wav")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    failed = subprocess.run([*command, "--temperature", "-1"], capture_output=True, text=True)
    assert failed.returncode == 2 and failed.stderr.startswith("error: temperature=-1.0")


def test_many_calls_share_the_rows(rows4):
    """More calls than rows, of different lengths: all come back, in order, as if each had been alone."""
    random = np.random.RandomState(3)
    waves = [(random.randn(n) * 0.3).astype(np.float32) for n in (1, 640, 641, 9000, 3000, 5000, 100)]
    seen = []
    calls, timing = play(rows4, waves, progress=lambda done, total: seen.append((done, total)))
    assert [call.text_tokens.shape for call in calls] == [(1,), (1,), (2,), (15,), (5,), (8,), (1,)]
    assert rows4.free_rows == 4 and seen[-1] == (33, 33) and len(timing.step_seconds) == len(seen) < 33
    for number, wave in enumerate(waves):
        [alone], _ = play(rows4, [wave], [CallOptions(number)])
        np.testing.assert_array_equal(alone.codes, calls[number].codes)
        np.testing.assert_array_equal(alone.pcm, calls[number].pcm)


def test_a_waveform_must_be_a_waveform(rows4):
    for wrong in (np.zeros((2, 100)), np.zeros(0)):
        with pytest.raises(ConfigError, match="N > 0"):
            play(rows4, [wrong])
    assert rows4.free_rows == 4


def test_late_frames_are_counted_as_a_live_call_would_have_them():
    """A slow step makes the frames after it late too, until the steps have caught up; a pause is not made up for."""
    assert Timing(np.array([0.01, 0.30, 0.01, 0.01, 0.01, 0.01]), 0.08).late() == 4
    assert Timing(np.array([0.07] * 50), 0.08).late() == 0
    assert Timing(np.array([0.09] * 50), 0.08).late() == 50
    assert Timing(np.array([0.01, 0.085, 0.076, 0.076]), 0.08).late() == 2
