"""How well a representation tells phonemes apart: the ABX error over triphones that differ in their middle.

A and X are two tokens of one triphone, B is a token of another with the same neighbours and another middle, all of one
speaker. The error is how often X is nearer to B than to A, by the mean angle along the best alignment; a tie counts
half, so that 0.5 is chance. Source: arXiv 1811.03519 and the Libri-light evaluation, within speaker.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

GAP = 0.03  # seconds between phonemes that still follow each other


class Triphone(NamedTuple):
    """A place in a recording where three phonemes follow each other.

    Attributes:
      before: symbol of the first.
      middle: symbol of the second, the one that is told apart.
      after: symbol of the third.
      speaker: who speaks.
      start: in seconds.
      end: in seconds.
    """

    before: str
    middle: str
    after: str
    speaker: str
    start: float
    end: float


class Token(NamedTuple):
    """A triphone as a representation shows it.

    Attributes:
      triphone: where it is.
      frames: that it touches.
    """

    triphone: Triphone
    frames: Float[np.ndarray, "T D"]


class AbxResult(NamedTuple):
    """The ABX error of a set of tokens.

    Attributes:
      error: 0 to 1, averaged over the cells; NaN without a comparison.
      cells: combinations of speaker, neighbours and pair of middles.
      comparisons: of tokens, over all cells.
    """

    error: float
    cells: int
    comparisons: int


def triphones(phonemes: Iterable[Sequence[Any]]) -> list[Triphone]:
    """Return the triphones of a sidecar's list "phonemes", [symbol, [start, end], speaker] each."""
    by_speaker: dict[str, list] = defaultdict(list)
    for symbol, (start, end), speaker in phonemes:
        by_speaker[speaker].append((float(start), float(end), str(symbol).strip("ˈˌ")))
    found = []
    for speaker, spans in by_speaker.items():
        spans.sort()
        for one, two, three in zip(spans, spans[1:], spans[2:], strict=False):
            if two[0] - one[1] <= GAP and three[0] - two[1] <= GAP:
                found.append(Triphone(one[2], two[2], three[2], speaker, one[0], three[1]))
    return found


def cut(triphone: Triphone, frames: Float[np.ndarray, "T D"], rate: float) -> Float[np.ndarray, "t D"]:
    """Return the frames that a triphone touches, at least one."""
    first = min(int(triphone.start * rate), max(0, len(frames) - 1))
    return frames[first : max(first + 1, int(np.ceil(triphone.end * rate)))]


def angle(one: Float[np.ndarray, "T D"], two: Float[np.ndarray, "U D"]) -> float:
    """Return the mean angle (in half turns) between frames along the path of least total angle."""

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)

    cost = np.arccos(np.clip(unit(one) @ unit(two).T, -1, 1)) / np.pi
    total = np.full((len(one) + 1, len(two) + 1), np.inf)
    steps = np.zeros(total.shape)
    total[0, 0] = 0
    for i, j in itertools.product(range(1, len(one) + 1), range(1, len(two) + 1)):
        best = min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda at: total[at])
        total[i, j], steps[i, j] = total[best] + cost[i - 1, j - 1], steps[best] + 1
    return float(total[-1, -1] / steps[-1, -1])


def abx(tokens: Sequence[Token], most: int = 5, seed: int = 0) -> AbxResult:
    """Return the ABX error of tokens.

    Args:
      tokens: of any number of speakers; only tokens of one speaker are compared.
      most: tokens per triphone and speaker, drawn at random, that are compared.
      seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    groups: dict[tuple, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for triphone, frames in tokens:
        groups[triphone.speaker, triphone.before, triphone.after][triphone.middle].append(frames)
    errors, comparisons = [], 0
    for key in sorted(groups):
        chosen = {}
        for middle, found in sorted(groups[key].items()):
            picks = rng.permutation(len(found))[:most]
            chosen[middle] = [found[i] for i in picks]
        for own, other in itertools.permutations(chosen, 2):
            if len(chosen[own]) < 2:
                continue
            wrong = []
            for x, a in itertools.permutations(range(len(chosen[own])), 2):
                near = angle(chosen[own][a], chosen[own][x])
                for b in chosen[other]:
                    far = angle(b, chosen[own][x])
                    wrong.append(0.5 if near == far else float(near > far))
            errors.append(np.mean(wrong))
            comparisons += len(wrong)
    return AbxResult(float(np.mean(errors)) if errors else float("nan"), len(errors), comparisons)
