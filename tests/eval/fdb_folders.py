"""Folders as Full-Duplex-Bench has them, made by hand."""

from __future__ import annotations

import json
from pathlib import Path

from moshijax.eval.fdb_tree import TASKS, Sample
from moshijax.runtime import audio
from tests.eval.test_activity import tone

RATE = 16_000


def words_json(*words: tuple[str, float, float]) -> dict:
    chunks = [{"text": text, "timestamp": [start, end]} for text, start, end in words]
    return {"text": " ".join(text for text, *_ in words), "chunks": chunks}


def sentence(start: float, count: int = 5, each: float = 0.4) -> dict:
    """A turn of words, one after the other."""
    return words_json(*((f"w{n}", start + n * each, start + (n + 1) * each) for n in range(count)))


NOTHING = words_json()


def sample(
    root: Path, task: str, id: str, said=(), words=None, *, heard=((0.5, 2.0),), seconds=6.0, rate=RATE, **more
) -> Sample:
    """Write a folder; `more` names further JSON files, and None for `said` leaves `output.wav` out."""
    folder = root / task / id
    folder.mkdir(parents=True)
    kind = TASKS[task]
    spans = {"pause": "pause", "turn_taking": "turn_taking", "interruption": "interrupt"}
    if kind in spans:
        more = {spans[kind]: [{"text": "", "context": "", "interrupt": "", "timestamp": [2.0, 3.0]}]} | more
    if kind == "overlap":
        audio.write(folder / "clean_input.wav", tone(seconds, RATE, *heard), RATE)
        more = {"metadata": {"timestamps": [2.0, 3.0]}} | more
    audio.write(folder / "input.wav", tone(seconds, RATE, *heard), RATE)
    if said is not None:
        audio.write(folder / "output.wav", tone(seconds, rate, *said), rate)
    for name, content in (more | ({} if words is None else {"output": words})).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Sample(task, id, folder)
