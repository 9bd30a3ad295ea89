"""Dialogues to a data set of recordings: a pool of worker processes, a manifest at the end."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moshijax import files, optional
from moshijax.data.isolation import Isolated, Lost
from moshijax.data.synthesis.dialogue import Dialogue
from moshijax.data.synthesis.hearing import Listening
from moshijax.data.synthesis.render import render
from moshijax.data.synthesis.voices import UNTIMED
from moshijax.errors import ConfigError, DataError, MoshijaxError

_SYNTHESIS_VERSION = 2
_TIME_LIMIT = 300.0  # seconds for one utterance
_CLIPS = "clips"  # folder of what is asked for once only
REPORT = "synthesize.report.json"


@dataclass(frozen=True)
class SynthesisResult:
    """What was made.

    Attributes:
      manifest: its path.
      items: number of recordings.
      seconds: of all recordings.
      words: of all recordings.
      rejected: id and reason of the dialogues that were not spoken.
      kinds: how many were rejected, by kind: those of `hearing.ClipRejected`, "text" or "lost".
    """

    manifest: Path
    items: int
    seconds: float
    words: int
    rejected: tuple[tuple[str, str], ...]
    kinds: Counter[str]


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _finished(audio: Path, fingerprint: str) -> dict[str, Any] | None:
    """The reply of an earlier run for the same recipe, if its files are complete."""
    sidecar = audio.with_suffix(".json")
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        if content["source"]["recipe"] != fingerprint:
            return None
        soundfile = optional.load("soundfile")
        return {"duration": soundfile.info(audio).duration, "words": len(content["alignments"])}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None


def synthesize(
    dialogues: Iterable[Dialogue],
    out_dir: str | Path,
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    listening: Listening | None = None,
) -> SynthesisResult:
    """Speak dialogues and write `manifest.jsonl` and `audio/<id>.wav` + `.json` under `out_dir`.

    Stereo 24 kHz 16-bit, left the model, right the user. The bytes of an item depend on its dialogue and the seed
    alone, where voices have no server behind them. A second run with the same arguments keeps finished items, and the
    clips of voices that are not built in (`clips`); the manifest appears last, and `synthesize.report.json` before it.

    Args:
      dialogues: what to speak.
      out_dir: folder of the set.
      seed: of noise and of the synthesisers.
      workers: processes that speak.
      progress: called with (items done, items in all) from the calling thread.
      listening: hears every clip again; None: only lengths and levels are checked.

    Raises:
      ConfigError: a voice does not say when its words are spoken, and nobody listens.
      DataError: an id occurs twice, or no dialogue could be spoken.
      MoshijaxError: the synthesiser of a voice is not installed, or a file could not be written.
    """
    dialogues = list(dialogues)
    ids = [dialogue.id for dialogue in dialogues]
    twice = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise DataError(f"dialogue id {twice[0]!r} occurs {ids.count(twice[0])} times: ids must be unique")
    for voice in {dialogue.voice_of(u) for dialogue in dialogues for u in dialogue.utterances}:
        if isinstance(voice, UNTIMED) and listening is None:
            raise ConfigError(
                f"{type(voice).__name__} does not say when its words are spoken: add --listen MODEL, which hears them"
            )
    deciding = None if listening is None else listening.deciding()
    out_dir = Path(out_dir)
    try:
        (out_dir / "audio").mkdir(parents=True, exist_ok=True)
        (out_dir / "manifest.jsonl").unlink(missing_ok=True)
    except OSError as error:
        raise files.cannot_write(out_dir, error) from error
    results: list[dict[str, Any] | None] = []
    waiting: dict[int, tuple[Dialogue, int, Path, str]] = {}  # place -> what `render` needs
    for place, dialogue in enumerate(dialogues):
        fingerprint = _digest(_SYNTHESIS_VERSION, seed, asdict(dialogue), deciding)
        audio = out_dir / "audio" / f"{dialogue.id}.wav"
        results.append(_finished(audio, fingerprint))
        if results[place] is None:
            waiting[place] = dialogue, int(_digest(seed, dialogue.id)[:8], 16), audio, fingerprint
    progress = progress or (lambda done, total: None)
    kept = len(dialogues) - len(waiting)
    progress(kept, len(dialogues))
    workers = max(1, min(workers, len(waiting)))
    try:
        with Isolated(workers) as isolated, ThreadPoolExecutor(workers, thread_name_prefix="synthesis") as pool:
            places = {
                pool.submit(_spoken, isolated, *request, out_dir / _CLIPS, listening): place
                for place, request in waiting.items()
            }
            try:
                for done, future in enumerate(as_completed(places), kept + 1):
                    results[places[future]] = future.result()
                    progress(done, len(dialogues))
            finally:
                pool.shutdown(cancel_futures=True)
        return _write_manifest(out_dir, ids, results)
    finally:
        with contextlib.suppress(OSError):  # (folders in which nothing was written go)
            (out_dir / "audio").rmdir()
            out_dir.rmdir()


def _spoken(isolated: Isolated, dialogue: Dialogue, *how: Any) -> dict[str, Any]:
    """What `render` returns, or {"error": reason} for a dialogue that cannot be spoken."""
    try:
        return isolated(render, dialogue, *how, seconds=_TIME_LIMIT * max(1, len(dialogue.utterances)))
    except DataError as error:
        return {"error": str(error), "kind": getattr(error, "kind", "text")}
    except Lost as error:
        return {"error": f"speaking it {error}", "kind": "lost"}
    except MoshijaxError as error:
        raise type(error)(f"dialogue {dialogue.id!r}: {error}") from error
    except OSError as error:
        raise MoshijaxError(f"dialogue {dialogue.id!r}: {error}") from error


def _write_manifest(out_dir: Path, ids: list[str], results: list[dict[str, Any] | None]) -> SynthesisResult:
    bad = [(name, reply) for name, reply in zip(ids, results, strict=True) if "error" in reply]
    rejected, kinds = tuple((name, reply["error"]) for name, reply in bad), Counter(reply["kind"] for _, reply in bad)
    if ids and len(rejected) == len(ids):
        raise DataError(f"none of the {len(ids)} dialogues could be spoken; the first, {ids[0]!r}: {rejected[0][1]}")
    good = [(name, reply) for name, reply in zip(ids, results, strict=True) if "error" not in reply]
    lines = [json.dumps({"path": f"audio/{name}.wav", "duration": reply["duration"]}) + "\n" for name, reply in good]
    seconds, words = sum(reply["duration"] for _, reply in good), sum(reply["words"] for _, reply in good)
    report = {"items": len(ids), "usable": len(good), "seconds": seconds, "words": words, "kinds": kinds}
    files.write_json(out_dir / REPORT, {**report, "rejected": rejected})
    manifest = out_dir / "manifest.jsonl"
    files.write(manifest, "".join(lines))
    return SynthesisResult(manifest, len(good), seconds, words, rejected, kinds)
