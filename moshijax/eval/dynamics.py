"""Statistics of who speaks when in a call of two: units, pauses, gaps and overlaps, and how each reacts to the other.

Silences and overlaps are those of dGSLM (arXiv 2203.16502) and of table 9 of Moshi (arXiv 2410.00037). Reactions follow
tau-voice (arXiv 2603.13686) but for two things: turns bridge short silences, as people's do, and a last turn is judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from moshijax.eval.activity import LEVEL_FRAME, both, neither

if TYPE_CHECKING:
    from moshijax.eval.activity import Segments

#: What a minute of dialogue is made of, and how a page calls it.
TIMES = {"ipu": "speech in units", "pause": "pauses", "gap": "gaps", "overlap": "overlaps"}
#: A user's turn continues over silences below this many seconds in which the model does not begin to speak.
TURN_SILENCE = 1.0
#: A last turn counts as unanswered when the call continues for this many seconds.
ANSWER_WINDOW = 2.0
#: A model that is interrupted has this many seconds to fall silent.
YIELD_WINDOW = 2.0
#: A model that falls silent within this many seconds of a backchannel has taken it for a turn.
BACKCHANNEL_WINDOW = 1.0
#: Where nobody has marked backchannels, a unit below this many seconds, spoken while the model speaks, is one.
BACKCHANNEL_SECONDS = 1.0
_SAME = 1e-6  # seconds that two times of one moment may differ by


@dataclass(frozen=True)
class Activity:
    """Who speaks when in a call.

    Attributes:
      model, user: inter-pausal units.
      seconds: length of the call.
      backchannels: of the user, as the data marks them; None: nobody has marked them.
    """

    model: Segments
    user: Segments
    seconds: float
    backchannels: Segments | None = None


@dataclass(frozen=True)
class Reactions:
    """How the model reacts to the user, in one call or in many.

    Attributes:
      responses: seconds from the end of each answered turn to the model's first sound.
      unanswered: turns after which the user, or nobody, spoke next.
      yields: seconds from the start of each interruption to the model's silence, where that came in time.
      unyielded: interruptions over which the model went on to speak.
      incursions: times that the model began to speak while the user spoke.
      ignored: backchannels over which the model went on to speak.
      obeyed: backchannels for which it fell silent.
    """

    responses: tuple[float, ...] = ()
    unanswered: int = 0
    yields: tuple[float, ...] = ()
    unyielded: int = 0
    incursions: int = 0
    ignored: int = 0
    obeyed: int = 0

    def __add__(self, other: Reactions) -> Reactions:
        return Reactions(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Dynamics:
    """Of a set of calls.

    Attributes:
      lengths: of every unit, pause, gap and overlap of all calls, in seconds, by the names of `TIMES`.
      per_minute: seconds per minute in each call, by the same names.
      seconds: of all calls.
      reactions: of the model, in all calls.
    """

    lengths: Mapping[str, Sequence[float]]
    per_minute: Mapping[str, Sequence[float]]
    seconds: float
    reactions: Reactions = field(default_factory=Reactions)

    @property
    def values(self) -> dict[str, float]:
        """The figures, without those that nothing was found for.

        `<time>/seconds_per_minute` and `<time>/per_minute` for each of `TIMES`; `response/rate`, `/latency` (median),
        `/turns`; `yield/rate`, `/latency`, `/interruptions`; `incursions/per_turn`; `backchannels/ignored`, `/count`.
        """
        minutes, found = self.seconds / 60, self.reactions
        values = {}
        for name in TIMES:
            values[f"{name}/seconds_per_minute"] = float(sum(self.lengths[name]) / minutes)
            values[f"{name}/per_minute"] = len(self.lengths[name]) / minutes
        turns = len(found.responses) + found.unanswered
        interruptions = len(found.yields) + found.unyielded
        backchannels = found.ignored + found.obeyed
        values |= {"response/turns": turns, "yield/interruptions": interruptions, "backchannels/count": backchannels}
        if turns:
            values |= {"response/rate": len(found.responses) / turns, "incursions/per_turn": found.incursions / turns}
        if interruptions:
            values["yield/rate"] = len(found.yields) / interruptions
        if backchannels:
            values["backchannels/ignored"] = found.ignored / backchannels
        for name, latencies in (("response", found.responses), ("yield", found.yields)):
            if latencies:
                values[f"{name}/latency"] = float(np.median(latencies))
        return values


def parts(call: Activity) -> dict[str, tuple[float, float]]:
    """Return what a call adds to both sums of the figures of `Dynamics.values` that are quotients; medians are not."""
    one = measure([call])
    minutes, found = one.seconds / 60, one.reactions
    turns, interruptions = len(found.responses) + found.unanswered, len(found.yields) + found.unyielded
    return {
        **{f"{name}/seconds_per_minute": (sum(one.lengths[name]), minutes) for name in TIMES},
        **{f"{name}/per_minute": (len(one.lengths[name]), minutes) for name in TIMES},
        "response/rate": (len(found.responses), turns),
        "incursions/per_turn": (found.incursions, turns),
        "yield/rate": (len(found.yields), interruptions),
        "backchannels/ignored": (found.ignored, found.ignored + found.obeyed),
    }


def measure(calls: Iterable[Activity]) -> Dynamics:
    """Return the dynamics of calls; figures per minute are of all their time together."""
    calls = list(calls)
    lengths: dict[str, list[float]] = {name: [] for name in TIMES}
    per_minute: dict[str, list[float]] = {name: [] for name in TIMES}
    for call in calls:
        for name, found in times(call).items():
            own = (found[:, 1] - found[:, 0]).tolist()
            lengths[name] += own
            per_minute[name].append(60 * sum(own) / call.seconds)
    seconds = sum(call.seconds for call in calls)
    return Dynamics(lengths, per_minute, seconds, sum((reactions(call) for call in calls), Reactions()))


def times(call: Activity) -> dict[str, Segments]:
    """Return the units of both speakers, and the pauses, gaps and overlaps between them, by the names of `TIMES`.

    A silence of both is a pause if the speaker before it continues after it, and otherwise a gap; one at the beginning
    or the end of a call is neither. So units - overlaps + pauses + gaps is the length of the call without its ends.
    """
    silences = neither(call.model, call.user, call.seconds)
    kinds: dict[str, list[np.ndarray]] = {"pause": [], "gap": []}
    for start, end in silences:
        before = [np.any(np.abs(speaker[:, 1] - start) < _SAME) for speaker in (call.model, call.user)]
        after = [np.any(np.abs(speaker[:, 0] - end) < _SAME) for speaker in (call.model, call.user)]
        if any(before) and any(after):
            same = any(a and b for a, b in zip(before, after, strict=True))
            kinds["pause" if same else "gap"].append(np.array([start, end]))
    return {
        "ipu": np.concatenate([call.model, call.user]),
        **{name: np.array(found).reshape(-1, 2) for name, found in kinds.items()},
        "overlap": both(call.model, call.user),
    }


def reactions(call: Activity) -> Reactions:
    """Return how the model reacts to the user's turns, interruptions and backchannels.

    A turn is answered if the model begins to speak before the user does again. Turns that end while the model speaks
    are not counted, nor is a last one with less than `ANSWER_WINDOW` after it. A unit that the user begins while the
    model speaks is a backchannel, or else an interruption, to which the model yields if it falls silent within
    `YIELD_WINDOW`.
    """
    marked = _backchannels(call)
    spoken = call.user[~marked]
    starts = call.model[:, 0]
    responses, unanswered = [], 0
    turns = _turns(spoken, starts)
    for (_, end), following in zip(turns, np.append(turns[1:, 0], call.seconds), strict=False):
        if _speaking(call.model, end) is not None:
            continue
        answer = starts[(starts >= end) & (starts <= following)]
        if len(answer):
            responses.append(float(answer[0] - end))
        elif following < call.seconds or call.seconds - end >= ANSWER_WINDOW:
            unanswered += 1
    yields = _stops(call, spoken[:, 0], YIELD_WINDOW)
    obeyed = _stops(call, call.user[marked, 0], BACKCHANNEL_WINDOW)
    incursions = sum(_speaking(spoken, start) is not None for start in starts)
    return Reactions(
        tuple(responses), unanswered, tuple(stop for stop in yields if stop is not None), yields.count(None),
        incursions, obeyed.count(None), len(obeyed) - obeyed.count(None),
    )  # fmt: skip


def _stops(call: Activity, starts: Iterable[float], window: float) -> list[float | None]:
    """Seconds from each start, at which the model speaks, to its silence; None: that is beyond the window.

    Starts so late that the call ends before the window does are left out, unless the model stops before that.
    """
    found: list[float | None] = []
    for start in starts:
        stop = _speaking(call.model, start)
        if stop is None or (stop > call.seconds - LEVEL_FRAME and call.seconds - start < window):
            continue
        found.append(stop - start if stop - start <= window else None)
    return found


def _speaking(speaker: Segments, moment: float) -> float | None:
    """When the unit ends that began before a moment and continues after it; None: the speaker is silent."""
    inside = speaker[(speaker[:, 0] < moment - _SAME) & (speaker[:, 1] > moment + _SAME)]
    return float(inside[0, 1]) if len(inside) else None


def _turns(spoken: Segments, model_starts: np.ndarray) -> Segments:
    turns: list[list[float]] = []
    for start, end in spoken:
        bridged = turns and start - turns[-1][1] < TURN_SILENCE
        if bridged and not np.any((model_starts >= turns[-1][1]) & (model_starts <= start)):
            turns[-1][1] = end
        else:
            turns.append([start, end])
    return np.array(turns, np.float64).reshape(-1, 2)


def _backchannels(call: Activity) -> np.ndarray:
    """Which of the user's units are backchannels, bool [U]."""
    user = call.user
    if call.backchannels is not None:
        return np.array([len(both(unit[None], call.backchannels)) > 0 for unit in user], bool)
    short = user[:, 1] - user[:, 0] < BACKCHANNEL_SECONDS
    alone = np.array([start for start, _ in user[1:]] + [np.inf]) - user[:, 1] >= TURN_SILENCE
    return short & alone & np.array([_speaking(call.model, start) is not None for start, _ in user], bool)
