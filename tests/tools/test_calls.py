"""The load generator: its callers follow from the seed, stay on this machine, and measure a real server."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tools.bench import calls
from tools.bench.caller import FRAME_SECONDS, RATE, RECOVERY_SECONDS, scripts, tone_bursts

RECORDINGS = [np.zeros(3 * RATE, np.float32), np.zeros(5 * RATE, np.float32)]


@pytest.mark.parametrize("url", ["http://192.0.2.7:8998", "https://voice.example.org", "127.0.0.1:8998", "http://"])
def test_only_this_machine_is_called(url) -> None:
    with pytest.raises(SystemExit, match="is not on this machine"):
        calls.checked(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8998", "https://localhost:1", "http://[::1]:8998"])
def test_this_machine_is(url) -> None:
    assert calls.checked(url + "/") == url


@pytest.mark.parametrize(("option", "value"), [("--callers", "257"), ("--callers", "0"), ("--seconds", "3601")])
def test_a_run_is_bounded(option, value) -> None:
    with pytest.raises(SystemExit, match="--callers must be 1 to 256, and --seconds at most 3600"):
        calls.main(["http://127.0.0.1:1", option, value])


def test_what_a_caller_does_follows_from_the_seed() -> None:
    one = scripts(3, 600, 0, RECORDINGS, steady=False)
    assert one == scripts(3, 600, 0, RECORDINGS, steady=False)
    assert one != scripts(4, 600, 0, RECORDINGS, steady=False) != scripts(4, 600, 1, RECORDINGS, steady=False)
    assert len(one) > 5 and any(script.stalls for script in one) and any(script.abrupt for script in one)
    for script, following in zip(one, one[1:]):
        assert script.begins < script.ends < following.begins
        assert 0 <= script.offset < len(RECORDINGS[script.recording])
        # A stall and the time to recover are over before the next, and before the call is.
        ends = [at + lasts + RECOVERY_SECONDS for at, lasts in script.stalls]
        assert all(at >= end for (at, _), end in zip(script.stalls[1:], ends))
        assert all(at + lasts < script.ends - script.begins for at, lasts in script.stalls)
    (steady,) = scripts(0, 600, 0, RECORDINGS, steady=True)
    assert steady.ends == 600 and not steady.stalls
    np.testing.assert_array_equal(tone_bursts(2, 5), tone_bursts(2, 5))


def test_two_callers_talk_to_a_server_of_an_artifact(artifact_dir, tmp_path) -> None:
    found = calls.main(
        ["--artifact", str(artifact_dir), "--callers", "2", "--seconds", "3", "--json", str(tmp_path / "calls.json")]
    )
    assert (found["calls"], found["refused"], found["calls with an error"]) == (2, 0, 0)
    assert 2 * 1.9 / FRAME_SECONDS < found["frames sent"] <= 2 * 3 / FRAME_SECONDS
    assert found["frames received"] > 10 and found["server: ticks"] > 10
    written = json.loads((tmp_path / "calls.json").read_text())
    assert [len(call["gaps"]) > 10 and call["first_audio"] > 0 for call in written["calls"]] == [True, True]
