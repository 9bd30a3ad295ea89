"""Offline calls: recordings or texts in; speech, text with times and frame timings out."""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax import files
from moshijax.errors import ConfigError
from moshijax.runtime import artifact as artifacts
from moshijax.runtime import asking, audio, manifest, prompt, script
from moshijax.runtime import conditions as condition_values
from moshijax.runtime.artifact import Artifact
from moshijax.runtime.checks import check_sampling, split_seed
from moshijax.runtime.hosting import Call, ScriptWord, Use, use_of
from moshijax.runtime.rows import CallOptions, Frame, Row, Rows
from moshijax.runtime.text import words_of

if TYPE_CHECKING:
    from jaxtyping import Float

    Progress = Callable[[int, int], None]

#: Seconds of silence that may be asked for after a recording.
LONGEST_TAIL = 3600


@dataclass(frozen=True)
class Timing:
    """How long the steps of a batch took.

    Attributes:
      step_seconds: wall time of every step, joins and prompts included.
      frame_seconds: duration of a frame.
    """

    step_seconds: Float[np.ndarray, " steps"]
    frame_seconds: float

    def late(self) -> int:
        """Return how many frames would come late in a live call, in which one arrives every `frame_seconds`.

        A step begins when its frame has arrived and the last step is over, so that one slow step may make several
        frames late; a frame is late if it is not out before the next one arrives.
        """
        over, late = 0.0, 0
        for number, seconds in enumerate(self.step_seconds):
            arrived = number * self.frame_seconds
            over = max(arrived, over) + seconds
            late += over > arrived + self.frame_seconds
        return late

    def summary(self) -> dict[str, float]:
        """Return steps, median_ms, p99_ms, max_ms, frame_ms and late (frames, see `late`)."""
        ms = 1000 * self.step_seconds
        return {
            "steps": len(ms),
            "median_ms": round(float(np.median(ms)), 3),
            "p99_ms": round(float(np.percentile(ms, 99)), 3),
            "max_ms": round(float(ms.max()), 3),
            "frame_ms": 1000 * self.frame_seconds,
            "late": int(self.late()),
        }


def play(
    rows: Rows,
    waveforms: Sequence[Float[np.ndarray, " N"]],
    options: Sequence[CallOptions] | None = None,
    *,
    tail_seconds: float | None = None,
    paced: bool = False,
    forced: Sequence[Mapping[int, int]] | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[list[Call], Timing]:
    """Play any number of recordings, `rows.batch` at a time; a free row is given to the next call at once.

    A call's result does not depend on the others in the batch.

    Args:
      rows: all of them free.
      waveforms: each call's user channel at the artifact's sample rate, any length > 0; padded with silence to whole
        frames.
      options: how each call begins; by default with the seeds 0, 1, ...
      tail_seconds: silence after each recording. By default none in a conversation; the delay of the text and a second
        in recognition; in translation, which ends by itself, at most `hosting.TRANSLATION_TAIL`.
      forced: of each call the text tokens that the model is made to write, by the column after a prompt.
      paced: begin no step before its frame would have arrived in a live call. The output is the same.
      progress: is told (frames done, frames in all).

    Returns:
      The calls in order, and the step times.

    Raises:
      ConfigError: the artifact takes no audio, or an option is out of range.
    """
    uses = [use_of(rows.artifact) for _ in waveforms]
    for use, waveform in zip(uses, waveforms):
        use.listen(waveform, tail_seconds)
    for use, tokens in zip(uses, forced or ()):
        use.forced = tokens
    return _run(rows, uses, options, progress, paced)


def speak(
    rows: Rows,
    scripts: Sequence[Sequence[ScriptWord]],
    options: Sequence[CallOptions] | None = None,
    *,
    progress: Progress = lambda done, total: None,
) -> tuple[list[Call], Timing]:
    """Speak any number of scripts (`moshijax.runtime.script.words`), `rows.batch` at a time.

    Args:
      rows: all of them free.
      scripts: the words of each call.
      options: how each call begins; by default with the seeds 0, 1, ...
      progress: is told (words begun, words in all).

    Returns:
      The calls in order, without what comes before a voice prompt ends, and the step times.

    Raises:
      ConfigError: the artifact takes no text, or an option is out of range.
    """
    uses = [use_of(rows.artifact) for _ in scripts]
    for use, words in zip(uses, scripts):
        use.say(words, done=True)
    return _run(rows, uses, options, progress)


def _run(
    rows: Rows, uses: Sequence[Use], options: Sequence[CallOptions] | None, progress: Progress, paced: bool = False
) -> tuple[list[Call], Timing]:
    options = [CallOptions(seed) for seed in range(len(uses))] if options is None else options
    calls = [_Playing(rows.artifact, *job) for job in zip(uses, options, strict=True)]
    waiting, playing = deque(calls), []
    seconds: list[float] = []
    began = time.monotonic()
    while waiting or playing:
        while waiting and rows.free_rows:
            playing.append(waiting.popleft())
            playing[-1].row = rows.open(playing[-1].options, playing[-1].use)
        pcm_BN = np.zeros((rows.batch, rows.artifact.frame_size), np.float32)
        for call in playing:
            pcm_BN[call.row] = call.use.next_frame()
        if paced:
            time.sleep(max(0.0, began + (len(seconds) + 1) * rows.artifact.frame_seconds - time.monotonic()))
        frame = rows.submit(pcm_BN if rows.artifact.hears else None).result()
        seconds.append(frame.seconds)
        for call in list(playing):
            if call.take(frame):
                rows.close(call.row)
                playing.remove(call)
        progress(sum(use.done for use in uses), sum(use.total for use in uses))
    return [call.result() for call in calls], Timing(np.array(seconds), rows.artifact.frame_seconds)


class _Playing:
    """An offline call under way, and the columns that it has returned."""

    def __init__(self, artifact: Artifact, use: Use, options: CallOptions):
        self.artifact, self.use, self.options = artifact, use, options
        self.first = use.first_column(options.prompt_columns)  # the grid column that its result begins with
        self.columns: list[tuple[int, np.ndarray, np.ndarray | None, np.ndarray | None]] = []
        self.row: Row | None = None

    def take(self, frame: Frame) -> bool:
        """Store what a tick returned at its grid column; return whether the call is over."""
        row, index = self.row, int(frame.index[self.row])
        self.use.sent += bool(frame.heard[row])
        column = index - self.first
        if column >= 0:
            heads = None if frame.extra_heads is None else frame.extra_heads[row]
            pcm = None if frame.pcm is None else frame.pcm[row]
            self.columns.append((int(frame.text_token[row]), frame.codes[row], pcm, heads))
        return self.use.over(column, index, frame.ended is not None and bool(frame.ended[row]))

    def result(self) -> Call:
        texts, codes, pcm, heads = zip(*self.columns) if self.columns else ((), (), (), ())
        return Call(
            text_tokens=np.array(texts, np.int32),
            codes=np.stack(codes, axis=1) if codes else np.zeros((len(self.artifact.streams), 0), np.int32),
            pcm=np.concatenate([np.zeros(0, np.float32), *pcm]) if self.artifact.speaks else None,
            extra_heads=np.stack(heads) if heads and heads[0] is not None else None,
            **self.use.result(len(self.columns)),
        )


def stereo(artifact: Artifact, call: Call, as_heard: bool = False) -> Float[np.ndarray, "N channels"]:
    """Return the model on the left and the user on the right; one channel where there is no user.

    In grid time, or `as_heard`: the model later by the delay of a live call.
    """
    if call.user is None:
        return call.pcm[:, None]
    model = np.zeros_like(call.user) if call.pcm is None else call.pcm
    user = call.user
    if as_heard:
        delay = artifact.max_delay * artifact.frame_size
        model, user = np.pad(model, (delay, 0)), np.pad(user, (0, delay))
    return np.stack([model, user], axis=1)


def transcript(artifact: Artifact, call: Call) -> dict:
    """Return the model's text as JSON values: text, words with times in seconds, and every token that is not PAD."""
    words = words_of(artifact, call.text_tokens, call.text_delay) if call.words is None else call.words
    pad = artifact.manifest["text"]["special"]["pad"]
    tokens = [
        {"frame": frame, "id": int(token), "piece": artifact.pieces[token] if token < len(artifact.pieces) else None}
        for frame, token in enumerate(call.text_tokens)
        if token >= 0 and token != pad
    ]
    return {
        "text": " ".join(word for word, _, _ in words),
        "words": [{"word": word, "start": start, "end": end} for word, start, end in words],
        "frame_seconds": artifact.frame_seconds,
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
    omega: int | None = None,
    batch: int | None = None,
    platform: str | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Play one recording through an artifact, or let it speak a text, and write what it says as audio and text.

    An artifact of LLaMA-Omni answers the recording (`moshijax.runtime.asking.run`).

    Args:
      artifact: the directory that `moshijax export` wrote.
      user, text: a recording or a text to speak, as the artifact's layout demands.
      out, text_out: the WAV and the JSON to write.
      as_heard, channel, tail_seconds, seed, sampling, platform: as `moshijax.runtime.options` describes them.
      conditions: `NAME=VALUE`, in place of the artifact's.
      voice_prompt, text_prompt: what the call begins with (`moshijax.runtime.prompt`).
      omega: as `moshijax.runtime.asking.run` takes it; calls have none.
      batch: the batch size to run; by default the smallest in the artifact.
      progress: is told (done, total), in frames or in words.

    Returns:
      {"transcript", "timing", "frames", "complete", "out"}, and "extra_heads" where the model has them.

    Raises:
      ConfigError: the artifact, a file or an option is not usable.
      DataError: a damaged artifact, or a recording that cannot be read.
      MoshijaxError: a file cannot be written, or a package is missing.
    """
    description = manifest.read(artifact)
    if description["config"]["policy"]["type"] == manifest.ANSWER:
        foreign = {"text": text, "as-heard": as_heard, "tail": tail_seconds, "condition": tuple(conditions)}
        foreign |= {"voice-prompt": voice_prompt, "text-prompt": text_prompt, "batch": batch}
        asking.refuse(artifact, foreign)
        return asking.run(
            *(artifact, user, out),
            **dict(text_out=text_out, channel=channel, seed=seed, sampling=sampling, omega=omega, platform=platform),
            progress=progress,
        )
    if omega is not None:
        raise ConfigError(f"{artifact} takes calls, which have no omega; omit --omega")
    assigned = [value.partition("=") for value in conditions]
    vectors = [v.split(",") for name, _, v in assigned if "dim" in description["conditions"].get(name, {})]
    files.check_outputs((out, text_out), (artifact, user, voice_prompt, *itertools.chain(*vectors)))
    if tail_seconds is not None and not 0 <= tail_seconds <= LONGEST_TAIL:
        raise ConfigError(f"tail is {tail_seconds} s: must be a number of seconds from 0 to {LONGEST_TAIL}")
    hears, reads = "pcm" in description["inputs"]["step"], "word" in description["inputs"]["step"]
    for given, wanted, option, what in ((user, hears, "--user", "recording"), (text, reads, "--text", "text")):
        if wanted and given is None:
            raise ConfigError(f"{artifact} takes a {what}: give {option}")
        if given is not None and not wanted:
            raise ConfigError(f"{artifact} takes no {what}; omit {option}")
    if out is not None and "pcm" not in description["outputs"]["step"]:
        raise ConfigError(f"the layout of {artifact} has no audio out; omit --out")
    rate = description["audio"]["sample_rate"]
    waveform = None if user is None else audio.read_channel(user, rate, channel)
    voice = None if voice_prompt is None else prompt.read_voice(voice_prompt, rate)
    values = condition_values.parse(description["conditions"], conditions)
    loaded = artifacts.load(artifact, platform)
    check_sampling(loaded, sampling or {})
    split_seed(seed)
    words = None if text is None else script.words(loaded, text)
    begins = prompt.make(loaded, voice, text_prompt)
    rows = Rows(loaded, batch or min(description["batches"]), prompts=begins is not None)
    options = [CallOptions(seed, sampling, values, begins)]
    if words is None:
        [call], timing = play(rows, [waveform], options, tail_seconds=tail_seconds, progress=progress)
    else:
        [call], timing = speak(rows, [words], options, progress=progress)
    result = {
        "transcript": transcript(loaded, call),
        "timing": timing.summary(),
        "frames": len(call.text_tokens),
        "complete": call.complete,
        "out": None if out is None else str(out),
    }
    if call.extra_heads is not None:
        result["extra_heads"] = np.round(call.extra_heads, 4).tolist()
    if out is not None:
        audio.write(out, stereo(loaded, call, as_heard), rate)
    if text_out is not None:
        written = {name: result[name] for name in ("timing", "complete", "extra_heads") if name in result}
        files.write(Path(text_out), json.dumps({**result["transcript"], **written}, indent=1) + "\n")
    return result


def report_lines(result: Mapping[str, Any]) -> list[str]:
    """Return what a person reads after a call: words with times, then how the steps kept up with real time."""
    if "latency" in result:
        return asking.report_lines(result)
    words = result["transcript"]["words"]
    lines = [f"{word['start']:8.2f} s  {word['word']}" for word in words] or ["(the model said no word)"]
    timing = result["timing"]
    lines.append(
        f"{timing['steps']} steps: p50 {timing['median_ms']:.1f} ms, p99 {timing['p99_ms']:.1f} ms, "
        f"worst {timing['max_ms']:.1f} ms; paced at {timing['frame_ms']:.0f} ms, {timing['late']} frames would be late"
    )
    if not result["complete"]:
        lines.append("the model was still speaking when time ran out; allow more with --tail")
    if result["out"]:
        lines.append(f"wrote {result['out']}")
    return lines
