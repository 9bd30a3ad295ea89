"""What is checked before a server takes calls: its batch, and what callers may ask for by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moshijax.errors import MoshijaxError
from moshijax.runtime import audio
from moshijax.serve import launch


@pytest.mark.parametrize(("calls", "batch"), [(None, 16), (1, 1), (2, 4), (4, 4), (5, 16), (16, 16)])
def test_the_smallest_batch_that_holds_the_calls_is_run(calls, batch) -> None:
    assert launch.batch_of({"batches": [4, 1, 16]}, Path("artifact"), calls) == batch


def write_voice(path: Path, pcm: np.ndarray) -> None:
    audio.write(path, pcm.astype(np.float32), 8000)


SPEECH = 0.1 * np.sin(np.arange(8000) * 0.2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("silent.wav", np.zeros(8000), "silent.wav: the voice prompt is silent"),
        ("short.wav", SPEECH[:800], "short.wav: .* at least 0.4 s are needed"),
        ("long.wav", np.tile(SPEECH, 60), "long.wav: .* shorten it"),
        ("torn.wav", b"RIFF", "torn.wav"),
        ("empty.txt", b"", "empty.txt holds 0 characters; it must hold 1 to 20"),
        ("much.txt", b"a" * 21, "much.txt holds 21 characters; it must hold 1 to 20"),
        ("latin.txt", b"caf\xe9", "latin.txt"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_named_before_the_server_starts(
    loaded, tmp_path, name, content, message
) -> None:
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else write_voice(path, content)
    with pytest.raises(MoshijaxError, match=message):
        launch.read_prompts(tmp_path, loaded, 20)
