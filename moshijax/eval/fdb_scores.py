"""The scores of Full-Duplex-Bench, as its scripts publish them and corrected; of transcripts and a detector of speech.

"As published" follows the rules of the public repository at commit d7336bd to the letter, its slips included, with one
freedom: where the scripts take the order of files from the system, it is that of names here. "Corrected" is what they
mean to measure. A score is None where nothing was there to measure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax import files
from moshijax.errors import DataError
from moshijax.eval.activity import SILERO_RATE, join
from moshijax.eval.fdb_tree import Sample, TimedWord, annotated, read_words
from moshijax.runtime import audio

if TYPE_CHECKING:
    from jaxtyping import Float

    from moshijax.eval.activity import Segments

    #: Finds speech in (pcm, sample rate).
    Detector = Callable[[np.ndarray, int], Segments]

TURN_SECONDS, TURN_WORDS = 1.0, 3  # shorter than the one and at most as many as the other: no turn is taken
BACKCHANNEL_SECONDS, BACKCHANNEL_WORDS = 1.0, 2
LONGEST_BACKCHANNEL = 3.0
BIN, EPSILON = 0.2, 1e-10  # of the histogram of backchannels, in seconds; added to its counts
#: Silences up to these many seconds are bridged; the scripts' comments say 0.3 and 0.05, their constants are these.
USER_SILENCE, MODEL_SILENCE = 0.6, 0.5


@dataclass
class Scores:
    """Of one task.

    Attributes:
      published, corrected: scores by name, None where there is nothing to measure.
      notes: what is missing, and what follows from it.
    """

    published: dict[str, float | None]
    corrected: dict[str, float | None]
    notes: list[str] = field(default_factory=list)


def score(
    samples: Sequence[Sample],
    detect: Detector | None,
    reference: Mapping[str, Sequence[float]] | None = None,
    frame_seconds: float | None = None,
) -> Scores:
    """Score the samples of one task.

    Args:
      samples: answered; those without `output.json` are noted.
      detect: finds speech; None: nothing that needs it is scored.
      reference: curves of human backchannels by ID; None: no divergence from them.
      frame_seconds: of the model, by which a causal clock is behind that of slots; None: unknown, and no causal times.

    Raises:
      DataError: no sample has a transcript, or a file cannot be used.
    """
    with_words = [sample for sample in samples if (sample.folder / "output.json").is_file()]
    kind, task = samples[0].kind, samples[0].task
    if not with_words and kind != "overlap":
        raise DataError(
            f"{task}: none of {len(samples)} folders has an output.json, the words of output.wav: transcribe it with "
            "the benchmark's get_transcript/asr.py, or let an artifact answer"
        )
    if kind == "pause":
        scores = _pause(samples, with_words)
    elif kind == "turn_taking":
        scores = _turn_taking(samples, with_words, frame_seconds)
    elif kind == "interruption":
        scores = _interruption(with_words, frame_seconds)
    elif detect is None:
        scores = Scores({}, {}, ["not scored without a detector of speech"])
    elif kind == "backchannel":
        scores = _backchannel(samples, detect, reference)
    else:
        scores = _overlap(samples, detect, frame_seconds)
    if kind != "overlap":
        lacking = [sample.id for sample in samples if sample not in with_words]
        if lacking:
            scores.notes.append(f"{len(lacking)} of {len(samples)} have no output.json and are left out of the "
                                f"corrected scores, such as {lacking[0]}: transcribe them")  # fmt: skip
        if with_words and not any(read_words(sample.folder / "output.json") for sample in with_words):
            scores.notes.append("no transcript has a word: the model is mute, or what transcribed it failed")
    scores.notes = [f"{task}: {note}" for note in scores.notes]
    return scores


def takes_over(words: Sequence[TimedWord]) -> bool:
    """Say whether words are a turn: they span a second, or are more than three. An unknown end is the word's start."""
    if not words:
        return False
    last = words[-1].end if words[-1].end is not None else words[-1].start
    if last is None or words[0].start is None:
        return len(words) > TURN_WORDS
    return last - words[0].start >= TURN_SECONDS or len(words) > TURN_WORDS


def _pause(samples: Sequence[Sample], with_words: Sequence[Sample]) -> Scores:
    listed = [read_words(path) for sample in samples for path in _listed(sample, "output.json")]
    own = [read_words(sample.folder / "output.json") for sample in with_words]
    return Scores({"take_over_rate": _mean(map(takes_over, listed))}, {"take_over_rate": _mean(map(takes_over, own))})


def _listed(sample: Sample, ending: str) -> list[Any]:
    """The files whose names end so, as the scripts look for them: `clean_output.json` is an `output.json` too."""
    return [sample.folder / name for name in sorted(os.listdir(sample.folder)) if name.endswith(ending)]


def _turn_taking(samples: Sequence[Sample], with_words: Sequence[Sample], frame_seconds: float | None) -> Scores:
    # The scripts make one list of answers and one of turns, and pair them by position.
    answers = [(sample, path) for sample in samples for path in _listed(sample, "output.json")]
    turns = [turn for sample, _ in answers for turn in _listed(sample, "turn_taking.json")]
    ends = [annotated(turn)[0] for turn in turns]
    listed = [(read_words(path), end) for (_, path), end in zip(answers, ends, strict=False)]
    own = [
        (read_words(sample.folder / "output.json"), annotated(sample.folder / "turn_taking.json")[0])
        for sample in with_words
    ]
    return Scores(_turns(listed), _turns(own) | _causal(own, frame_seconds))


def _turns(pairs: Sequence[tuple[Sequence[TimedWord], float]], later: float = 0.0) -> dict[str, float | None]:
    """The rate of turns taken, and the mean latency of those, where answers before the end count as 0."""
    taken = [(words[0].start, end) for words, end in pairs if takes_over(words)]
    latency = _mean(max(0.0, start + later - end) for start, end in taken if start is not None)
    return {"take_over_rate": _mean(takes_over(words) for words, _ in pairs), "latency": latency}


def _causal(pairs: Sequence[tuple[Sequence[TimedWord], float]], frame_seconds: float | None) -> dict[str, float | None]:
    return {"causal_latency": None if frame_seconds is None else _turns(pairs, frame_seconds)["latency"]}


def _interruption(with_words: Sequence[Sample], frame_seconds: float | None) -> Scores:
    pairs, own, rated, ratings = [], [], [], []
    for sample in with_words:
        words = read_words(sample.folder / "output.json")
        _, end = annotated(sample.folder / "interrupt.json")
        pairs.append((words, end))
        own.append(([word for word in words if word.start is None or word.start >= end], end))
        if (sample.folder / "rating.json").is_file() and takes_over(words):
            ratings.append(_rating(sample))
            rated.append(pairs[-1])
    published = {"take_over_rate": _turns(pairs)["take_over_rate"], "latency": _turns(rated)["latency"]}
    corrected = _turns(own) | _causal(own, frame_seconds)
    notes = []
    if not rated:
        notes.append(
            "judge = none: no rating, and no latency as published, which is that of rated answers alone; a paid judge "
            "writes rating.json"
        )
    rating = {"rating": _mean(ratings)}
    return Scores(published | rating, corrected | rating, notes)


def _rating(sample: Sample) -> float:
    content = files.read_json(sample.folder / "rating.json", "rating")
    value = content.get("rating") if isinstance(content, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 5:
        raise DataError(f'{sample.folder / "rating.json"}: "rating" is {value!r}, from 0 to 5 is possible; rate again')
    return float(value)


def _backchannel(
    samples: Sequence[Sample], detect: Detector, reference: Mapping[str, Sequence[float]] | None
) -> Scores:
    published: dict[str, list[float]] = {"take_over_rate": [], "frequency": [], "divergence": []}
    corrected: dict[str, list[float]] = {name: [] for name in published}
    verdict: bool | None = None
    notes = []
    for sample in samples:
        pcm, rate = audio.read(sample.folder / "output.wav")
        seconds = len(pcm) / rate
        transcript = sample.folder / "output.json"
        words = read_words(transcript) if transcript.is_file() else None
        # The scripts do not tell the detector the rate, which takes 16 kHz for granted and gives tenths of a second.
        found = [[round(float(time), 1) for time in segment] for segment in detect(pcm[:, 0], SILERO_RATE)]
        found = np.array(found).reshape(-1, 2)
        verdict, short = (verdict, found[:0]) if words is None else _last_verdict(found, words)
        if verdict is None:
            notes.append(f"the published script stops at {sample.id}, the first one, without output.json")
            verdict = False
        _append(published, sample, verdict, short, seconds, reference)
        if words is not None:
            found = detect(audio.resample(pcm[:, 0], rate, SILERO_RATE), SILERO_RATE)
            turns = [_is_turn(segment, _overlapping(segment, words)) for segment in found]
            _append(corrected, sample, any(turns), found[~np.array(turns, bool)], seconds, reference)
    if reference is None:
        notes.append("no divergence from human backchannels without icc_gt_distribution.json of the benchmark")
    return Scores(*({name: _mean(values) for name, values in one.items()} for one in (published, corrected)), notes)


def _append(
    scores: dict[str, list[float]], sample: Sample, turn: bool, found: Segments, seconds: float,
    reference: Mapping[str, Sequence[float]] | None,
) -> None:  # fmt: skip
    scores["take_over_rate"].append(turn)
    scores["frequency"].append(len(found) / seconds)
    if reference is not None:
        if sample.id not in reference:
            raise DataError(f"the reference has no curve for {sample.folder}; give icc_gt_distribution.json of the set")
        scores["divergence"].append(divergence(found, seconds, reference[sample.id]))


def _last_verdict(found: Segments, words: Sequence[TimedWord]) -> tuple[bool, Segments]:
    """The scripts' rule: segments up to the first of more than 3 s, of which the last one says what all are."""
    turn = False
    for number, segment in enumerate(found):
        if segment[1] - segment[0] > LONGEST_BACKCHANNEL:
            return True, found[:number]
        turn = _is_turn(segment, _touching(segment, words))
    return turn, found


def _is_turn(segment: Float[np.ndarray, " 2"], words: int) -> bool:
    length = segment[1] - segment[0]
    return bool(length >= BACKCHANNEL_SECONDS or words > BACKCHANNEL_WORDS)


def _overlapping(segment: Float[np.ndarray, " 2"], words: Sequence[TimedWord]) -> int:
    times = [(word.start, word.start if word.end is None else word.end) for word in words if word.start is not None]
    return sum(start < segment[1] and max(end, start + 1e-6) > segment[0] for start, end in times)


def _touching(segment: Float[np.ndarray, " 2"], words: Sequence[TimedWord]) -> int:
    """How many words the scripts count: also one that begins as the segment ends."""
    first, last = segment
    count = 0
    for _, start, end in words:
        if start is None or (end is None and start < last):
            continue
        end = start if end is None else end
        count += (start >= first and end <= last) or (start <= last < end) or (start <= first < end)
    return count


def divergence(found: Segments, seconds: float, curve: Sequence[float]) -> float:
    """Return the Jensen-Shannon distance (base e) of where backchannels are from a curve of human ones; 1 without any.

    The curve is stretched to the recording by linear interpolation.
    """
    if not len(found):
        return 1.0
    counts = np.zeros(int(seconds / BIN) + 1)
    for start, end in found:
        counts[int(start / BIN) : int(end / BIN) + 1] += 1
    human = np.interp(np.linspace(0, 1, len(counts)), np.linspace(0, 1, len(curve)), curve)
    p, q = ((shares / shares.sum()) for shares in (counts + EPSILON, human))
    middle = (p + q) / 2
    entropies = [np.sum(np.where(one > 0, one * np.log(np.maximum(one, 1e-300) / middle), 0.0)) for one in (p, q)]
    return float(np.sqrt(max(0.0, sum(entropies) / 2)))


def _overlap(samples: Sequence[Sample], detect: Detector, frame_seconds: float | None) -> Scores:
    found = _latencies(samples, detect)
    later = dict.fromkeys(found) if frame_seconds is None else _latencies(samples, detect, frame_seconds)
    notes = [
        "judge = none: no behaviour (RESPOND, RESUME, UNCERTAIN, UNKNOWN), which a paid judge writes as "
        "content_tag.json",
        "nothing before and after an overlap is compared: UTMOSv2, pitch and intensity need weights and packages that "
        "are not part of this",
    ]
    return Scores(found, found | {f"causal_{name}": value for name, value in later.items()}, notes)


def _latencies(samples: Sequence[Sample], detect: Detector, later: float = 0.0) -> dict[str, float | None]:
    found = [latency_intervals(sample, detect, later) for sample in samples]
    return {
        f"{name}_latency": _mean(end - start for one in found for start, end in one[f"latency_{short}_list"])
        for name, short in (("stop", "stop"), ("response", "resp"))
    }


def latency_intervals(sample: Sample, detect: Detector, later: float = 0.0) -> dict[str, list[list[float]]]:
    """Return what the benchmark writes as `latency_intervals.json`: overlaps, and silences before the model's starts.

    Overlaps that end in the same millisecond count once, the shortest; of the user's ends before one start of the
    model, the last.

    Args:
      sample: answered.
      detect: finds speech.
      later: seconds by which the model's channel is late.
    """
    user, model = (
        join(detect(audio.read_channel(sample.folder / name, SILERO_RATE), SILERO_RATE), silence, inclusive=True)
        for name, silence in (("input.wav", USER_SILENCE), ("output.wav", MODEL_SILENCE))
    )
    model = model + later
    overlaps: dict[int, tuple[float, float]] = {}
    for start, end in ((max(u[0], m[0]), min(u[1], m[1])) for u in user for m in model):
        known = overlaps.get(key := round(end * 1000))
        if end > start and (known is None or end - start < known[1] - known[0]):
            overlaps[key] = start, end
    silences: dict[int, tuple[float, float]] = {}
    for end in user[:, 1]:
        later = model[model[:, 0] > end, 0]
        if len(later):
            silences[round(later[0] * 1000)] = end, later[0]
    return {
        name: [
            [round(float(start), 3), round(float(end), 3)] for start, end in sorted(found.values(), key=lambda s: s[1])
        ]
        for name, found in (("latency_stop_list", overlaps), ("latency_resp_list", silences))
    }


def _mean(values: Any) -> float | None:
    """The mean, None of nothing: the scripts divide by zero there."""
    values = [float(value) for value in values]
    return sum(values) / len(values) if values else None
