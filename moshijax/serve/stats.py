"""What the engine counts: whole numbers since the start, and the last few thousand ticks."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from moshijax.serve.session import Session

PATIENCE = 2  # frames: one to wait for the tick, one for the step
KEPT = 4096  # ticks and gaps that percentiles are taken of


class Stats:
    """Figures of one engine. Each is written by one thread; readers may see one tick's figures half.

    Args:
      frame_seconds: of the artifact.

    Attributes:
      calls, refused: calls taken, and callers who were told that every slot is taken.
      endings: {reason: calls that ended so}.
      ticks, frames: steps of the batch, and frames of calls in them.
      misses: frames whose answer was there more than `PATIENCE` frames after they had come.
      heard, dropped, said, unsent: frames, summed over the calls that ended (`session.Counts`).
      tick_seconds, delay_seconds, gap_seconds: the last of each: how long a step took; how long after a caller's frame
        had come the answer was there; how long after a caller's last frame the next was sent.
    """

    def __init__(self, frame_seconds: float):
        self.frame_seconds = frame_seconds
        self.calls = self.refused = self.ticks = self.frames = self.misses = 0
        self.heard = self.dropped = self.said = self.unsent = 0
        self.endings: dict[str, int] = {}
        self.tick_seconds: deque[float] = deque(maxlen=KEPT)
        self.delay_seconds: deque[float] = deque(maxlen=KEPT)
        self.gap_seconds: deque[float] = deque(maxlen=KEPT)

    def tick(self, seconds: float, frames: int) -> None:
        """Count a tick."""
        self.ticks += 1
        self.frames += frames
        self.tick_seconds.append(seconds)

    def delayed(self, seconds: float) -> None:
        """Count a frame of a caller that was answered."""
        self.misses += seconds > PATIENCE * self.frame_seconds
        self.delay_seconds.append(seconds)

    def ended(self, session: Session) -> None:
        """Count a call that is over."""
        self.endings[session.ended.reason] = self.endings.get(session.ended.reason, 0) + 1
        for name in ("heard", "dropped", "said", "unsent"):
            setattr(self, name, getattr(self, name) + getattr(session.counts, name))

    def percentiles(self, name: str, *shares: float) -> list[float]:
        """Return percentiles (0 to 100) of one of the last three; NaN while there are no values."""
        values = list(getattr(self, name))
        return [float(np.percentile(values, share)) if values else float("nan") for share in shares]
