"""Calls played offline through a `runtime.Program`: recordings in, speech, text with times and frame timings out."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moshijax.errors import ConfigError, MoshijaxError
from moshijax.export import audio, runtime
from moshijax.export.runtime import UNGENERATED, Program

if TYPE_CHECKING:
    from jaxtyping import Float, Int


WORD_MARK = "\u2581"  # SentencePiece's mark of a word's beginning


@dataclass(frozen=True)
class Call:
    """One finished call of T frames, in grid time: column t of everything belongs to the same 80 ms.

    text_tokens [T] and codes [K, T] int32 (UNGENERATED where the model was not ready, at most the first column);
    pcm [T * frame_size] float32, the model's voice (None for recognition); user [T * frame_size], what it heard.
    """

    text_tokens: Int[np.ndarray, " T"]
    codes: Int[np.ndarray, "K T"]
    pcm: Float[np.ndarray, " N"] | None
    user: Float[np.ndarray, " N"]


@dataclass(frozen=True)
class Timing:
    """Wall time of every step of the batch, against the duration of a frame; all in seconds."""

    step_seconds: Float[np.ndarray, " steps"]
    frame_seconds: float

    def summary(self) -> dict[str, float]:
        """median_ms, p99_ms, max_ms, frame_ms, late (share of steps longer than a frame), steps."""
        ms = 1000 * self.step_seconds
        return {
            "steps": len(ms),
            "median_ms": round(float(np.median(ms)), 3),
            "p99_ms": round(float(np.percentile(ms, 99)), 3),
            "max_ms": round(float(ms.max()), 3),
            "frame_ms": 1000 * self.frame_seconds,
            "late": round(float((ms > 1000 * self.frame_seconds).mean()), 5),
        }


def play(
    program: Program,
    waveforms: Sequence[Float[np.ndarray, " N"]],
    seeds: Sequence[int] | None = None,
    sampling: Mapping[str, float] | Sequence[Mapping[str, float]] | None = None,
    tail_seconds: float = 0.0,
    prompts: Sequence[np.ndarray | None] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Call], Timing]:
    """Play any number of calls, `program.batch` at a time; a free row is given to the next call at once.

    waveforms: each call's user channel at the program's sample rate, any length > 0; padded with silence to whole
    frames, after `tail_seconds` of silence for a late answer. seeds: one per call (default 0, 1, ..).
    sampling: one mapping for all calls, or one per call. progress is told (frames done, frames in all).
    A call's result does not depend on the others in the batch. Returns the calls in order, and the step times.
    Raises: ConfigError if the artifact takes no audio.
    """
    if not program.has_pcm_in:
        raise ConfigError(f"the layout of {program.artifact} takes no audio in; it cannot play a user's recording")
    seeds = range(len(waveforms)) if seeds is None else seeds
    per_call = [sampling] * len(waveforms) if sampling is None or isinstance(sampling, Mapping) else sampling
    prompts = [None] * len(waveforms) if prompts is None else prompts
    size = program.frame_size
    tail = round(tail_seconds * program.sample_rate)
    users = [_whole_frames(waveform, tail, size) for waveform in waveforms]
    waiting = deque(range(len(waveforms)))
    playing: dict[int, _Playing] = {}
    calls: list[Call | None] = [None] * len(waveforms)
    seconds: list[float] = []
    done, total = 0, sum(len(user) // size for user in users)
    while waiting or playing:
        while waiting and program.free_rows:
            number = waiting.popleft()
            row = program.open(int(seeds[number]), per_call[number], prompts[number])
            prompt = prompts[number]
            playing[number] = _Playing(program, row, users[number], 0 if prompt is None else prompt.shape[1])
        pcm_BN = np.zeros((program.batch, size), np.float32)
        for call in playing.values():
            pcm_BN[call.row] = call.next_frame()
        frame = program.step(pcm_BN)
        seconds.append(frame.seconds)
        done += len(playing)
        for number, call in list(playing.items()):
            if call.take(frame):
                calls[number] = call.result()
                program.close(call.row)
                del playing[number]
        progress(min(done, total), total)
    return calls, Timing(np.array(seconds), size / program.sample_rate)


class _Playing:
    """A call on its way: which frame goes in next, and what has come out."""

    def __init__(self, program: Program, row: runtime.Row, user: np.ndarray, first: int):
        self.row = row
        self.first = first  # the grid column that the first user frame belongs to: columns before it are the prompt
        self.user = user
        self.size = program.frame_size
        self.frames = len(user) // self.size
        self.sent = 0
        self.text = np.full(self.frames, UNGENERATED, np.int32)
        self.codes = np.full((program.num_streams, self.frames), UNGENERATED, np.int32)
        self.pcm = np.zeros(len(user), np.float32) if program.has_pcm_out else None

    def next_frame(self) -> np.ndarray:
        """The next user frame; silence while the last delayed columns are still coming out."""
        start = self.sent * self.size
        self.sent += 1
        frame = self.user[start : start + self.size]
        return frame if len(frame) else np.zeros(self.size, np.float32)

    def take(self, frame: runtime.Frame) -> bool:
        """Store what a step returned at its grid column; True when the last column is in."""
        column = int(frame.index[self.row]) - self.first
        if frame.ready[self.row] and 0 <= column < self.frames:
            self.text[column] = frame.text_token[self.row]
            self.codes[:, column] = frame.codes[self.row]
            if self.pcm is not None:
                self.pcm[column * self.size : (column + 1) * self.size] = frame.pcm[self.row]
        return column >= self.frames - 1

    def result(self) -> Call:
        return Call(self.text, self.codes, self.pcm, self.user)


def _whole_frames(waveform: np.ndarray, tail: int, size: int) -> np.ndarray:
    waveform = np.asarray(waveform, np.float32)
    if waveform.ndim != 1 or not len(waveform):
        raise ConfigError(f"a user waveform must be [N] with N > 0, got {list(waveform.shape)}")
    length = len(waveform) + tail
    return np.pad(waveform, (0, tail + -length % size))


def words_of(program: Program, tokens: Iterable[int]) -> list[tuple[str, float, float]]:
    """Words with their start and end in seconds of grid time, from one text token per frame.

    A piece that begins with the SentencePiece word mark starts a word; PAD, EPAD, BOS, EOS and UNGENERATED are no text.
    """
    frame = program.frame_size / program.sample_rate
    special = set(program.manifest["text"]["special"].values())
    words: list[list] = []
    for index, token in enumerate(tokens):
        token = int(token)
        if token < 0 or token in special or token >= len(program.pieces):
            continue
        piece = program.pieces[token]
        if piece.startswith(WORD_MARK) or not words:
            words.append([b"", index * frame, 0.0])
        words[-1][0] += _piece_bytes(piece)
        words[-1][2] = (index + 1) * frame
    texts = [(text.decode("utf-8", "replace").strip(), round(start, 4), round(end, 4)) for text, start, end in words]
    return [word for word in texts if word[0]]


def _piece_bytes(piece: str) -> bytes:
    """UTF-8 of a piece; byte pieces such as <0xE2> are joined before decoding."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(WORD_MARK, " ").encode("utf-8")


def stereo(program: Program, call: Call, as_heard: bool = False) -> Float[np.ndarray, "N 2"]:
    """Left the model, right the user. In grid time, or `as_heard`: the model later by the delay of a live call."""
    model = np.zeros_like(call.user) if call.pcm is None else call.pcm
    user = call.user
    if as_heard:
        delay = program.max_delay * program.frame_size
        model, user = np.pad(model, (delay, 0)), np.pad(user, (0, delay))
    return np.stack([model, user], axis=1)


def transcript(program: Program, call: Call) -> dict:
    """The model's text as JSON values: text, words with times in seconds, and every token that is not PAD."""
    words = words_of(program, call.text_tokens)
    pad = program.manifest["text"]["special"]["pad"]
    tokens = [
        {"frame": frame, "id": int(token), "piece": program.pieces[token] if token < len(program.pieces) else None}
        for frame, token in enumerate(call.text_tokens)
        if token >= 0 and token != pad
    ]
    return {
        "text": " ".join(word for word, _, _ in words),
        "words": [{"word": word, "start": start, "end": end} for word, start, end in words],
        "frame_seconds": program.frame_size / program.sample_rate,
        "tokens": tokens,
    }


def run(
    artifact: str | Path,
    user: str | Path,
    out: str | Path | None = None,
    *,
    text_out: str | Path | None = None,
    as_heard: bool = False,
    channel: str | None = None,
    tail_seconds: float = 0.0,
    seed: int = 0,
    sampling: Mapping[str, float] | None = None,
    batch: int | None = None,
    platform: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Play one recording through an artifact, frame by frame, and write the stereo call and its text.

    Returns {"transcript", "timing", "frames", "out"}: what `moshijax run` prints. batch: the program to use (default:
    the smallest in the artifact). Raises: ConfigError, DataError, MoshijaxError as `runtime.load` and `audio.read`.
    """
    manifest = runtime.manifests.read(artifact)
    for path in filter(None, (out, text_out)):
        if not Path(path).resolve().parent.is_dir():
            raise ConfigError(f"cannot write {path}: its folder does not exist; create it first")
    waveform = audio.read_channel(user, manifest["audio"]["sample_rate"], channel)
    program = runtime.load(artifact, batch or min(manifest["batches"]), platform)
    if out is not None and not program.has_pcm_out:
        raise ConfigError(f"the layout of {artifact} has no audio out; leave --out away")
    [call], timing = play(program, [waveform], [seed], sampling, tail_seconds, progress=progress)
    result = {
        "transcript": transcript(program, call),
        "timing": timing.summary(),
        "frames": len(call.text_tokens),
        "out": None if out is None else str(out),
    }
    if out is not None:
        audio.write(out, stereo(program, call, as_heard), program.sample_rate)
    if text_out is not None:
        _write_text(Path(text_out), json.dumps({**result["transcript"], "timing": result["timing"]}, indent=1))
    return result


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise MoshijaxError(f"cannot write {path}: {error.strerror}; choose another path or free some space") from None


def report_lines(result: Mapping) -> list[str]:
    """What a person reads after a call: words with times, then how the steps kept up with real time."""
    words = result["transcript"]["words"]
    lines = [f"{word['start']:8.2f} s  {word['word']}" for word in words] or ["(the model said no word)"]
    timing = result["timing"]
    verdict = "faster" if timing["p99_ms"] < timing["frame_ms"] else "SLOWER"
    lines.append(
        f"{timing['steps']} steps: median {timing['median_ms']:.1f} ms, p99 {timing['p99_ms']:.1f} ms, "
        f"{verdict} than the {timing['frame_ms']:.0f} ms of a frame; {timing['late']:.1%} late"
    )
    if result["out"]:
        lines.append(f"wrote {result['out']} (left the model, right the user)")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m moshijax.export.runtime`: the same call as `moshijax run`, with nothing but the standard library."""
    parser = argparse.ArgumentParser(prog="python -m moshijax.export.runtime", description=run.__doc__.split("\n")[0])
    parser.add_argument("artifact")
    parser.add_argument("--user", required=True, help="recording of the user")
    parser.add_argument("--out", help="stereo WAV to write")
    parser.add_argument("--text-out", help="JSON to write: text, words with times, tokens, timing")
    parser.add_argument("--as-heard", action="store_true", help="add the delay of a live call to the model's channel")
    parser.add_argument("--channel", choices=("left", "right"), help="which channel of a stereo recording is the user")
    parser.add_argument("--tail", type=float, default=0.0, help="seconds of silence after the recording")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--platform", choices=runtime.manifests.PLATFORMS)
    for name in runtime.SAMPLING_INPUTS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int if "top_k" in name else float)
    options = parser.parse_args(argv)
    sampling = {name: value for name in runtime.SAMPLING_INPUTS if (value := getattr(options, name)) is not None}
    try:
        result = run(
            options.artifact,
            options.user,
            options.out,
            text_out=options.text_out,
            as_heard=options.as_heard,
            channel=options.channel,
            tail_seconds=options.tail,
            seed=options.seed,
            sampling=sampling,
            batch=options.batch,
            platform=options.platform,
        )
    except MoshijaxError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write("\n".join(report_lines(result)) + "\n")
    return 0
