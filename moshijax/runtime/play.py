"""Calls played offline through a `runtime.Program`: recordings in, speech, text with times and frame timings out."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax.errors import ConfigError, MoshijaxError
from moshijax.runtime import audio, prompt, script
from moshijax.runtime import conditions as condition_values
from moshijax.runtime import rows as runtime
from moshijax.runtime.rows import UNGENERATED, Program

if TYPE_CHECKING:
    from jaxtyping import Float, Int


WORD_MARK = "\u2581"  # SentencePiece's mark of a word's beginning
TRANSLATION_TAIL = 30.0  # seconds after its input that a translation may take to say all


@dataclass(frozen=True)
class Call:
    """One finished call of T frames, in grid time: column t of everything belongs to the same 80 ms.

    text_tokens [T] and codes [K, T] int32 (UNGENERATED where the model was not ready, at most the first column);
    pcm [T * frame_size] float32, the model's voice (None for recognition); user [T * frame_size], what it heard (None
    for synthesis). words: (word, start, end) in seconds where the model was told its words (None: they are in its text
    tokens, `text_delay` seconds late). extra_heads [T, H, V]: probabilities of the extra heads, where there are any.
    complete: translation and synthesis said all within the time they had.
    """

    text_tokens: Int[np.ndarray, " T"]
    codes: Int[np.ndarray, "K T"]
    pcm: Float[np.ndarray, " N"] | None
    user: Float[np.ndarray, " N"] | None
    words: list[tuple[str, float, float]] | None = None
    text_delay: float = 0.0
    extra_heads: Float[np.ndarray, "T H V"] | None = None
    complete: bool = True


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


@dataclass(frozen=True)
class Beginning:
    """How a call begins: seed, sampling, conditions and prompt as `runtime.Program.open` takes them.

    `prompt_columns`: of the grid, before what the call returns; `null_until`: columns that guidance hides.
    """

    seed: int = 0
    sampling: Mapping[str, float] | None = None
    conditions: Mapping[str, Any] | None = None
    prompt: Int[np.ndarray, "K T"] | None = None
    null_until: int = 0

    @property
    def prompt_columns(self) -> int:
        return 0 if self.prompt is None else self.prompt.shape[1]


def play(
    program: Program,
    waveforms: Sequence[Float[np.ndarray, " N"]],
    seeds: Sequence[int] | None = None,
    sampling: Mapping[str, float] | Sequence[Mapping[str, float]] | None = None,
    tail_seconds: float | None = None,
    prompts: Sequence[np.ndarray | None] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    conditions: Mapping[str, Any] | None = None,
) -> tuple[list[Call], Timing]:
    """Play any number of calls, `program.batch` at a time; a free row is given to the next call at once.

    waveforms: each call's user channel at the program's sample rate, any length > 0; padded with silence to whole
    frames, after `tail_seconds` of silence for a late answer (default: none in a conversation; the delay of the text
    and a second in recognition; at most `TRANSLATION_TAIL` in translation, which ends when the model has said all).
    seeds: one per call (default 0, 1, ..). sampling: one mapping for all calls, or one per call. conditions: of all
    calls. progress is told (frames done, frames in all).
    A call's result does not depend on the others in the batch. Returns the calls in order, and the step times.
    Raises: ConfigError if the artifact takes no audio.
    """
    if not program.has_pcm_in:
        raise ConfigError(f"the layout of {program.artifact} takes no audio in; it cannot play a user's recording")
    seeds = range(len(waveforms)) if seeds is None else seeds
    per_call = [sampling] * len(waveforms) if sampling is None or isinstance(sampling, Mapping) else sampling
    prompts = [None] * len(waveforms) if prompts is None else prompts
    kind = _Translating if program.policy["type"] == "Translation" else _Listening
    return _run(
        program,
        [
            kind(program, Beginning(int(seed), chosen, conditions, prompt), waveform, tail_seconds)
            for seed, chosen, prompt, waveform in zip(seeds, per_call, prompts, waveforms)
        ],
        progress,
    )


def speak(
    program: Program,
    scripts: Sequence[Sequence[runtime.Word]],
    beginnings: Sequence[Beginning] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Call], Timing]:
    """Speak any number of scripts (`moshijax.runtime.script.words`), `program.batch` at a time.

    Returns the calls in order, what comes before a voice prompt ends left away, and the step times. progress is told
    (words begun, words in all). Raises: ConfigError if the artifact takes no text.
    """
    if not program.has_text_in:
        raise ConfigError(f"the layout of {program.artifact} takes no text in; it cannot speak a text")
    beginnings = [Beginning(seed) for seed in range(len(scripts))] if beginnings is None else beginnings
    return _run(program, [_Speaking(program, *job) for job in zip(beginnings, scripts, strict=True)], progress)


def _run(program: Program, jobs: Sequence[_Playing], progress: Callable[[int, int], None]) -> tuple[list[Call], Timing]:
    waiting, playing = deque(jobs), []
    seconds: list[float] = []
    while waiting or playing:
        while waiting and program.free_rows:
            playing.append(waiting.popleft())
            playing[-1].open()
        pcm_BN = np.zeros((program.batch, program.frame_size), np.float32)
        for job in playing:
            pcm_BN[job.row] = job.next_frame()
        frame = program.step(pcm_BN if program.has_pcm_in else None)
        seconds.append(frame.seconds)
        for job in list(playing):
            if job.take(frame):
                job.close()
                playing.remove(job)
        progress(sum(job.done for job in jobs), sum(job.total for job in jobs))
    return [job.call for job in jobs], Timing(np.array(seconds), program.frame_size / program.sample_rate)


class _Playing:
    """A call on its way: which frame goes in next, and what has come out."""

    def __init__(self, program: Program, beginning: Beginning):
        self.program, self.beginning = program, beginning
        self.size = program.frame_size
        self.first = beginning.prompt_columns  # the grid column that its result begins with
        self.columns: list[tuple[int, np.ndarray, np.ndarray | None, np.ndarray | None]] = []
        self.done, self.total = 0, 1
        self.call: Call | None = None

    def open(self, **more: Any) -> None:
        b = self.beginning
        self.row = self.program.open(
            b.seed, b.sampling, b.prompt, conditions=b.conditions, null_until=b.null_until, **more
        )

    def next_frame(self) -> np.ndarray:
        """What is heard in the next frame."""
        return np.zeros(self.size, np.float32)

    def store(self, frame: runtime.Frame) -> int:
        """Keep what a step returned; the grid column it was, counted from the first."""
        column, row = int(frame.index[self.row]) - self.first, self.row
        if column >= 0:
            heads = None if frame.extra_heads is None else frame.extra_heads[row]
            pcm = None if frame.pcm is None else frame.pcm[row]
            if column and not self.columns:  # (without any delay nothing is returned for the first)
                nothing = np.full_like(frame.codes[row], UNGENERATED)
                self.columns.append(
                    (UNGENERATED, nothing, *(x if x is None else np.zeros_like(x) for x in (pcm, heads)))
                )
            self.columns.append((int(frame.text_token[row]), frame.codes[row], pcm, heads))
        return column

    def take(self, frame: runtime.Frame) -> bool:
        """Store what a step returned at its grid column; True when the last column is in."""
        raise NotImplementedError

    def close(self) -> None:
        """Free the row and make the result."""
        self.call = self.result()
        self.program.close(self.row)

    def result(self, user: np.ndarray | None = None, **more: Any) -> Call:
        texts, codes, pcm, heads = zip(*self.columns) if self.columns else ((), (), (), ())
        spoken = bool(pcm) and pcm[0] is not None
        return Call(
            np.array(texts, np.int32),
            np.stack(codes, axis=1) if codes else np.zeros((self.program.num_streams, 0), np.int32),
            np.concatenate(pcm) if spoken else (np.zeros(0, np.float32) if self.program.has_pcm_out else None),
            user,
            extra_heads=np.stack(heads) if heads and heads[0] is not None else None,
            **more,
        )


class _Listening(_Playing):
    """A conversation or recognition: as long as what is heard."""

    def __init__(self, program: Program, beginning: Beginning, waveform: np.ndarray, tail: float | None):
        super().__init__(program, beginning)
        policy, rate = program.policy, program.sample_rate
        silence, self.text_delay = 0.0, 0.0
        if policy["type"] == "Recognition":
            silence, self.text_delay = policy["silence"], policy["silence"] + policy["text_delay"]
            tail = policy["text_delay"] + 1.0 if tail is None else tail
        self.user = _whole_frames(waveform, round(silence * rate), self.tail(tail), self.size)
        self.frames = self.total = len(self.user) // self.size
        self.sent = 0

    def tail(self, seconds: float | None) -> int:
        """Samples of silence after the recording."""
        return round((seconds or 0.0) * self.program.sample_rate)

    def next_frame(self) -> np.ndarray:
        """The next user frame; silence while the last delayed columns are still coming out."""
        start = self.sent * self.size
        self.sent += 1
        frame = self.user[start : start + self.size]
        return frame if len(frame) else super().next_frame()

    def take(self, frame: runtime.Frame) -> bool:
        self.done = min(self.sent, self.total)
        return self.store(frame) >= self.frames - 1

    def result(self) -> Call:
        return super().result(self.user, text_delay=self.text_delay)


class _Translating(_Listening):
    """As long as what is heard, then silence until the model has said all."""

    def tail(self, seconds: float | None) -> int:
        self.patience = round((TRANSLATION_TAIL if seconds is None else seconds) / self.frame_seconds)
        return 0

    @property
    def frame_seconds(self) -> float:
        return self.size / self.program.sample_rate

    def next_frame(self) -> np.ndarray:
        if self.sent == self.frames:
            self.program.end_input(self.row)
        return super().next_frame()

    def take(self, frame: runtime.Frame) -> bool:
        column = self.store(frame)
        self.done = min(self.sent, self.total)
        self.complete = bool(frame.ended[self.row])
        return self.complete or column >= self.frames + self.patience

    def result(self) -> Call:
        user = np.pad(self.user, (0, max(0, len(self.columns) * self.size - len(self.user))))
        return replace(super().result(), user=user[: len(self.columns) * self.size], complete=self.complete)


class _Speaking(_Playing):
    """Until the model has asked for a word after the last one, and its voice has come that far."""

    def __init__(self, program: Program, beginning: Beginning, script: Sequence[runtime.Word]):
        super().__init__(program, beginning)
        self.script = script
        self.total = sum(bool(word.pieces) for word in script)
        # A prompt's columns reach until its sound ends, which is as much behind its text as all sound.
        self.prefix = max(0, self.first - program.policy["audio_delay"])
        self.first = self.prefix + program.policy["audio_delay"]
        self.last: int | None = None

    def open(self) -> None:
        super().open(words=self.script)

    def take(self, frame: runtime.Frame) -> bool:
        column = self.store(frame)
        self.done = len(self.program.spoken(self.row))
        if self.last is None and frame.ended[self.row]:
            end = int(frame.index[self.row]) + self.program.max_delay
            self.last = end - self.prefix + self.program.policy["final_padding"]
        return self.last is not None and column >= self.last - 1

    def result(self) -> Call:
        frame = self.size / self.program.sample_rate
        spoken = self.program.spoken(self.row)
        starts = [(column - self.prefix) * frame for _, column in spoken]
        ends = [*starts[1:], (self.last - self.program.policy["final_padding"]) * frame]
        words = [(word, round(start, 4), round(end, 4)) for (word, _), start, end in zip(spoken, starts, ends)]
        return super().result(words=words)


def _whole_frames(waveform: np.ndarray, before: int, after: int, size: int) -> np.ndarray:
    waveform = np.asarray(waveform, np.float32)
    if waveform.ndim != 1 or not len(waveform):
        raise ConfigError(f"a user waveform must be [N] with N > 0, got {list(waveform.shape)}")
    return np.pad(waveform, (before, after + -(len(waveform) + before + after) % size))


def words_of(program: Program, tokens: Iterable[int], delay: float = 0.0) -> list[tuple[str, float, float]]:
    """Words with their start and end in seconds of grid time, less `delay`, from one text token per frame.

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
    shifted = [
        (text.decode("utf-8", "replace").strip(), max(0.0, round(start - delay, 4)), max(0.0, round(end - delay, 4)))
        for text, start, end in words
    ]
    return [word for word in shifted if word[0]]


def _piece_bytes(piece: str) -> bytes:
    """UTF-8 of a piece; byte pieces such as <0xE2> are joined before decoding."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(WORD_MARK, " ").encode("utf-8")


def stereo(program: Program, call: Call, as_heard: bool = False) -> Float[np.ndarray, "N channels"]:
    """Left the model, right the user. In grid time, or `as_heard`: the model later by the delay of a live call.

    One channel where there is no user.
    """
    if call.user is None:
        return call.pcm[:, None]
    model = np.zeros_like(call.user) if call.pcm is None else call.pcm
    user = call.user
    if as_heard:
        delay = program.max_delay * program.frame_size
        model, user = np.pad(model, (delay, 0)), np.pad(user, (0, delay))
    return np.stack([model, user], axis=1)


def transcript(program: Program, call: Call) -> dict:
    """The model's text as JSON values: text, words with times in seconds, and every token that is not PAD."""
    words = words_of(program, call.text_tokens, call.text_delay) if call.words is None else call.words
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
    user: str | Path | None = None,
    out: str | Path | None = None,
    *,
    text: str | None = None,
    text_out: str | Path | None = None,
    as_heard: bool = False,
    channel: str | None = None,
    tail_seconds: float | None = None,
    seed: int = 0,
    sampling: Mapping[str, float] | None = None,
    conditions: Sequence[str] = (),
    voice_prompt: str | Path | None = None,
    text_prompt: str | None = None,
    batch: int | None = None,
    platform: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Play one recording through an artifact, or let it speak a text, and write what it says as audio and text.

    user or text: as the artifact's layout demands. conditions: `NAME=VALUE`. voice_prompt, text_prompt: what the call
    begins with (`moshijax.runtime.prompt`). Returns {"transcript", "timing", "frames", "complete", "out"}: what
    `moshijax run` prints. batch: the program to use (default: the smallest in the artifact).
    Raises: ConfigError, DataError, MoshijaxError as `runtime.load`, `audio.read` and `runtime.Program.open`.
    """
    manifest = runtime.manifests.read(artifact)
    for path in filter(None, (out, text_out)):
        if not Path(path).resolve().parent.is_dir():
            raise ConfigError(f"cannot write {path}: its folder does not exist; create it first")
    hears, reads = "pcm" in manifest["inputs"]["step"], "word" in manifest["inputs"]["step"]
    for given, wanted, option, what in ((user, hears, "--user", "a recording"), (text, reads, "--text", "a text")):
        if wanted and given is None:
            raise ConfigError(f"{artifact} takes {what}: give {option}")
        if given is not None and not wanted:
            raise ConfigError(f"{artifact} takes no {what[2:]}: leave {option} away")
    if out is not None and "pcm" not in manifest["outputs"]["step"]:
        raise ConfigError(f"the layout of {artifact} has no audio out; leave --out away")
    rate = manifest["audio"]["sample_rate"]
    waveform = None if user is None else audio.read_channel(user, rate, channel)
    voice = None if voice_prompt is None else prompt.read_voice(voice_prompt, rate)
    values = condition_values.parse(manifest["conditions"], conditions)
    program = runtime.load(artifact, batch or min(manifest["batches"]), platform)
    words = None if text is None else script.words(program, text)
    begins, null_until = prompt.build(program, voice, text_prompt)
    if words is None:
        [call], timing = play(
            program, [waveform], [seed], sampling, tail_seconds, [begins], progress=progress, conditions=values
        )
    else:
        beginning = Beginning(seed, sampling, values, begins, null_until)
        [call], timing = speak(program, [words], [beginning], progress)
    result = {
        "transcript": transcript(program, call),
        "timing": timing.summary(),
        "frames": len(call.text_tokens),
        "complete": call.complete,
        "out": None if out is None else str(out),
    }
    if call.extra_heads is not None:
        result["extra_heads"] = np.round(call.extra_heads, 4).tolist()
    if out is not None:
        audio.write(out, stereo(program, call, as_heard), program.sample_rate)
    if text_out is not None:
        written = {name: result[name] for name in ("timing", "complete", "extra_heads") if name in result}
        _write_text(Path(text_out), json.dumps({**result["transcript"], **written}, indent=1))
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
    if not result["complete"]:
        lines.append("the model had not said all when its time was over; give it more with --tail")
    if result["out"]:
        lines.append(f"wrote {result['out']}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m moshijax.runtime`: the same call as `moshijax run`, with nothing but the standard library."""
    parser = argparse.ArgumentParser(prog="python -m moshijax.runtime", description=run.__doc__.split("\n")[0])
    parser.add_argument("artifact")
    parser.add_argument("--user", help="recording of the user")
    parser.add_argument("--text", help="text to speak")
    parser.add_argument("--out", help="WAV to write")
    parser.add_argument("--condition", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--voice-prompt", help="recording of the voice to speak with")
    parser.add_argument("--text-prompt", help="what the model is told before the call")
    parser.add_argument("--text-out", help="JSON to write: text, words with times, tokens, timing")
    parser.add_argument("--as-heard", action="store_true", help="add the delay of a live call to the model's channel")
    parser.add_argument("--channel", choices=("left", "right"), help="which channel of a stereo recording is the user")
    parser.add_argument("--tail", type=float, help="seconds of silence after the recording")
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
            text=options.text,
            text_out=options.text_out,
            as_heard=options.as_heard,
            channel=options.channel,
            tail_seconds=options.tail,
            seed=options.seed,
            sampling=sampling,
            conditions=options.condition,
            voice_prompt=options.voice_prompt,
            text_prompt=options.text_prompt,
            batch=options.batch,
            platform=options.platform,
        )
    except MoshijaxError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write("\n".join(report_lines(result)) + "\n")
    return 0
