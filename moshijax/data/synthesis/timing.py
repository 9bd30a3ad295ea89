"""When people speak: gaps, overlaps and backchannels of a reference corpus, and draws from them for scripts.

Scripts say who speaks, rarely when. The statistics are those of the words' times, as in a reference corpus, so they are
the same for recordings and for what is made; `Timing.figures` of both are shown side by side.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moshijax import files
from moshijax.data.interruption import is_backchannel, turns
from moshijax.data.synthesis.dialogue import Dialogue, Utterance
from moshijax.data.transcript import Word
from moshijax.errors import DataError

_QUANTILES = 101  # points of a distribution that are kept
_ENOUGH = 20  # changes of the speaker, without which a distribution is not known
_PAUSE = 0.5  # seconds, after which words are another part: what a listener says is none of their own turn before
_LONG_TURN = 6  # words, from which a turn may have a backchannel
_TEXTS = 50  # backchannels that are kept, the most frequent


@dataclass(frozen=True)
class Timing:
    """Statistics of who speaks when.

    Attributes:
      gaps: quantiles, evenly spaced, of the seconds from the end of a turn to the start of the next one, which is the
        other speaker's; negative where they overlap.
      backchannels: per turn of at least six words.
      places: quantiles of where in that turn they begin, 0 to 1; () if there are none.
      texts: of backchannels, with their numbers.
      changes: of the speaker, from which the gaps are known.
      within: turns that begin and end while the other speaks and are longer than backchannels; none are drawn.
      seconds: of all calls.
    """

    gaps: tuple[float, ...]
    backchannels: float
    places: tuple[float, ...]
    texts: tuple[tuple[str, int], ...]
    changes: int
    within: int
    seconds: float

    def figures(self) -> dict[str, float]:
        """Return figures by name, as they are shown: of gaps in seconds, and shares."""
        gaps = np.array(self.gaps)
        return {
            "gap p10": float(np.quantile(gaps, 0.1)),
            "gap median": float(np.quantile(gaps, 0.5)),
            "gap p90": float(np.quantile(gaps, 0.9)),
            "overlapping changes": float((gaps < 0).mean()),
            "backchannels per long turn": self.backchannels,
            "changes per minute": 60 * self.changes / self.seconds,
        }


def fit(calls: Iterable[tuple[Sequence[Word], float]]) -> Timing:
    """Return the statistics of calls.

    Args:
      calls: words with the speakers "model" and "user", sorted by start, and seconds.

    Raises:
      DataError: the speaker changes too rarely.
    """
    gaps: list[float] = []
    places: list[float] = []
    texts: Counter[str] = Counter()
    long_turns = within = 0
    total = 0.0
    for words, seconds in calls:
        total += seconds
        found = [(part, speaker) for speaker in ("model", "user") for part in turns(words, speaker, _PAUSE)]
        begin, stop, said, holder = 0.0, 0.0, 0, ""  # of the turn that ends last
        for part, speaker in sorted(found, key=lambda entry: entry[0][0].start):
            start, end = part[0].start, max(word.end for word in part)
            if speaker == holder:  # speaks again after a pause
                stop, said, before = max(stop, end), said + len(part), said
                long_turns += before < _LONG_TURN <= said
            elif end > stop:
                if holder:
                    gaps.append(start - stop)
                begin, stop, said, holder = start, end, len(part), speaker
                long_turns += said >= _LONG_TURN
            elif is_backchannel(part):
                places.append((start - begin) / (stop - begin))
                texts[" ".join(word.text for word in part).lower()] += 1
            else:
                within += 1
    if len(gaps) < _ENOUGH:
        raise DataError(f"the speaker changes {len(gaps)} times in these calls: give a corpus with at least {_ENOUGH}")
    rate = len(places) / long_turns if long_turns else 0.0
    return Timing(
        _quantiles(gaps), rate, _quantiles(places) if places else (), tuple(texts.most_common(_TEXTS)), len(gaps),
        within, total,
    )  # fmt: skip


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in np.quantile(values, np.linspace(0, 1, _QUANTILES)))


def draw(dialogue: Dialogue, timing: Timing, seed: int) -> Dialogue:
    """Return a dialogue in which the gaps that are not written are drawn, and backchannels added to long turns.

    A turn that has a backchannel or an interruption in the script gets none. Both speakers give backchannels. What is
    drawn follows from the seed and the id.
    """
    rng = random.Random(f"{seed} {dialogue.id} timing")
    made: list[Utterance] = []
    script = dialogue.utterances
    for number, utterance in enumerate(script):
        if utterance.kind == "turn" and utterance.gap is None and number:
            utterance = dataclasses.replace(utterance, gap=round(_drawn(timing.gaps, rng), 3))
        made.append(utterance)
        following = script[number + 1].kind if number + 1 < len(script) else "turn"
        long = utterance.kind == "turn" and len(utterance.text.split()) >= _LONG_TURN
        if long and following == "turn" and timing.places and rng.random() < timing.backchannels:
            words, counts = zip(*timing.texts, strict=True)
            (text,) = rng.choices(words, counts)
            other = "user" if utterance.speaker == "model" else "model"
            made.append(Utterance(other, text, kind="backchannel", at=round(_drawn(timing.places, rng), 3)))
    return dataclasses.replace(dialogue, utterances=tuple(made))


def _drawn(quantiles: Sequence[float], rng: random.Random) -> float:
    return float(np.interp(rng.random() * (len(quantiles) - 1), np.arange(len(quantiles)), quantiles))


def write(timing: Timing, path: Path) -> None:
    """Write statistics as JSON."""
    files.write_json(path, dataclasses.asdict(timing))


def read(path: Path) -> Timing:
    """Read statistics that `write` wrote.

    Raises:
      DataError: the file holds something else.
    """
    content: Any = files.read_json(path, "timing")
    try:
        found = Timing(**content)
        texts = tuple((str(text), int(count)) for text, count in found.texts)
        gaps, places = (tuple(map(float, values)) for values in (found.gaps, found.places))
        if len(gaps) < 2 or not np.isfinite(gaps).all() or bool(places) != bool(texts) or not 0 <= found.backchannels:
            raise ValueError("values are missing or not numbers")
        return dataclasses.replace(found, texts=texts, gaps=gaps, places=places)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} is no timing ({error}): make it with `moshijax data timing`") from None
