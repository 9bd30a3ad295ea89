"""Dialogues to a data set of recordings: a pool of worker processes, a manifest at the end."""

from __future__ import annotations

import hashlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moshijax import optional
from moshijax.data.synthesis.dialogue import Dialogue, dialogue_to_dict
from moshijax.errors import DataError, MoshijaxError

_SYNTHESIS_VERSION = 1
_TIME_LIMIT = 300.0  # seconds for one dialogue


@dataclass(frozen=True)
class SynthesisResult:
    """What was made: `manifest` path, number of `items`, their `seconds` and `words`, and (id, reason) rejected."""

    manifest: Path
    items: int
    seconds: float
    words: int
    rejected: tuple[tuple[str, str], ...]


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class _Worker:
    """One synthesis process; started when first used, replaced when it dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        for _ in range(2):
            if self._process is None:
                command = [sys.executable, "-m", "moshijax.data.synthesis.worker"]
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True
                )
            process = self._process
            timer = threading.Timer(_TIME_LIMIT, process.kill)
            timer.start()
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            finally:
                timer.cancel()
            if line:
                return json.loads(line)
            self.close()
        return {"error": "the synthesis process died twice on this dialogue", "fatal": False}

    def close(self) -> None:
        if self._process is not None:
            with suppress(BrokenPipeError):  # what a dead process has not read
                self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()
            self._process = None


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
) -> SynthesisResult:
    """Speaks dialogues with espeak-ng and writes `manifest.jsonl` and `audio/<id>.wav` + `.json` under out_dir.

    Stereo 24 kHz 16-bit, left the model, right the user. The bytes of an item depend on its dialogue and the seed
    alone. A second run with the same arguments keeps finished items; the manifest appears last.

    Args:
        progress: called with (items done, items in all) from the calling thread.

    Raises:
        DataError: an id occurs twice, or no dialogue could be spoken.
        MoshijaxError: espeak-ng is not installed, or a file could not be written.
    """
    dialogues = list(dialogues)
    ids = [dialogue.id for dialogue in dialogues]
    twice = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise DataError(f"dialogue id {twice[0]!r} occurs {ids.count(twice[0])} times: ids must be unique")
    out_dir = Path(out_dir)
    try:
        (out_dir / "audio").mkdir(parents=True, exist_ok=True)
        (out_dir / "manifest.jsonl").unlink(missing_ok=True)
    except OSError as error:
        raise MoshijaxError(f"cannot write to {out_dir}: {error.strerror}: choose another folder") from error
    requests: queue.SimpleQueue = queue.SimpleQueue()
    replies: queue.SimpleQueue = queue.SimpleQueue()
    results: list[dict[str, Any] | None] = [None] * len(dialogues)
    waiting = 0
    for index, dialogue in enumerate(dialogues):
        content = dialogue_to_dict(dialogue)
        fingerprint = _digest(_SYNTHESIS_VERSION, seed, content)
        audio = out_dir / "audio" / f"{dialogue.id}.wav"
        results[index] = _finished(audio, fingerprint)
        if results[index] is None:
            waiting += 1
            item_seed = int(_digest(seed, dialogue.id)[:8], 16)
            requests.put(
                (index, {"dialogue": content, "seed": item_seed, "audio": str(audio), "fingerprint": fingerprint})
            )
    stop = threading.Event()

    def serve() -> None:
        worker = _Worker()
        try:
            while not stop.is_set():
                index, request = requests.get_nowait()
                replies.put((index, worker(request)))
        except queue.Empty:
            pass
        except Exception as error:
            replies.put((None, error))
        finally:
            worker.close()

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(max(1, min(workers, waiting)))]
    for thread in threads:
        thread.start()
    done = len(dialogues) - waiting
    try:
        if progress is not None:
            progress(done, len(dialogues))
        for _ in range(waiting):
            index, reply = replies.get()
            if index is None:
                raise reply
            if reply.get("fatal"):
                raise MoshijaxError(f"dialogue {ids[index]!r}: {reply['error']}")
            results[index] = reply
            done += 1
            if progress is not None:
                progress(done, len(dialogues))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return _write_manifest(out_dir, ids, results)


def _write_manifest(out_dir: Path, ids: list[str], results: list[dict[str, Any] | None]) -> SynthesisResult:
    rejected = tuple((name, reply["error"]) for name, reply in zip(ids, results, strict=True) if "error" in reply)
    if ids and len(rejected) == len(ids):
        raise DataError(f"none of the {len(ids)} dialogues could be spoken; the first, {ids[0]!r}: {rejected[0][1]}")
    good = [(name, reply) for name, reply in zip(ids, results, strict=True) if "error" not in reply]
    lines = [json.dumps({"path": f"audio/{name}.wav", "duration": reply["duration"]}) + "\n" for name, reply in good]
    manifest = out_dir / "manifest.jsonl"
    temporary = out_dir / ".manifest.jsonl.part"
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(manifest)
    return SynthesisResult(
        manifest, len(good), sum(r["duration"] for _, r in good), sum(r["words"] for _, r in good), rejected
    )
