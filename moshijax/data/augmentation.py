"""What a user's channel may go through before it is encoded: level, noise, echo of the model, reverberation, a line.

The instruct fine-tuning of Moshi (arXiv 2410.00037, 4.4), with the reverberation of the denoiser that it names
(arXiv 2006.12847); the line (`moshijax.data.line`) is ours. A draw is a function of a random generator alone; signals
pass in blocks, in bounded memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moshijax.data import audio, line
from moshijax.data.blocks import Buffer, Filter
from moshijax.data.line import Line
from moshijax.data.manifest import read_recordings
from moshijax.data.ranges import check_probabilities, check_span
from moshijax.errors import ConfigError, DataError

log = logging.getLogger(__name__)

_LONGEST_CLIP = 60.0  # seconds of a noise clip that are used


@dataclass(frozen=True)
class UserAugmentation:
    """Probabilities and ranges, as published.

    Attributes:
      gain, gain_db: level of the whole channel.
      noise, noise_db: clips one after the other over the whole recording, at a level relative to the user's; in the
        place of a clip comes with probability `pause` silence of up to `pause_seconds`.
      clips: a folder or manifest of noise recordings; None: no noise.
      room: probability of echo and reverberation together.
      echo, echo_ms: share of the model's own channel that returns, and when.
      first_echo, rt60, first_delay_ms, trains, jitter: of the reverberation: amplitude of the first reflection (up
        to), seconds in which it falls by 60 dB, its delay, how many trains of reflections, and how uneven they are.
      line: what the user calls over.
    """

    gain: float = 0.5
    gain_db: tuple[float, float] = (-24.0, 15.0)
    noise: float = 0.3
    noise_db: tuple[float, float] = (-30.0, 6.0)
    pause: float = 0.5
    pause_seconds: float = 30.0
    clips: str | None = None
    room: float = 0.3
    echo: float = 0.2
    echo_ms: tuple[float, float] = (100.0, 500.0)
    first_echo: float = 0.3
    rt60: tuple[float, float] = (0.3, 1.3)
    first_delay_ms: tuple[float, float] = (10.0, 30.0)
    trains: int = 3
    jitter: float = 0.1
    line: Line = Line()

    def __post_init__(self) -> None:
        check_probabilities(self, "gain", "noise", "pause", "room")
        if not self.pause_seconds > 0:
            raise ConfigError(f"pause_seconds is {self.pause_seconds}: it must be above 0")
        for name in ("gain_db", "noise_db", "echo_ms", "rt60", "first_delay_ms"):
            check_span(self, name)


class Augmenter:
    """Draw what happens to a user's channel, and apply it.

    Args:
      config: probabilities and ranges.
      rate: sample rate in Hz.

    Raises:
      ConfigError: the line cannot have this rate.
    """

    def __init__(self, config: UserAugmentation, rate: int):
        self.config, self.rate = config, rate
        config.line.check_rate(rate)
        self._clips = [] if config.clips is None else [item.audio for item in read_recordings(config.clips).items]

    def apply(
        self, blocks: Iterator[np.ndarray], user_rms: float, rng: np.random.Generator
    ) -> tuple[Iterator[np.ndarray], tuple[str, ...]]:
        """Change the user's channel of a recording by one draw.

        Args:
          blocks: of the recording, [n, 2] float32 (model, user).
          user_rms: of the user's whole channel; the noise is relative to it.
          rng: decides everything that is drawn.

        Returns:
          The changed blocks, and the names of what was drawn ("gain", "noise", "room", and those of the line).
        """
        c = self.config
        wanted = rng.random(3) < (c.gain, c.noise, c.room)
        seeds = rng.integers(2**63, size=2)  # of the noise and the room, whose draws differ in number
        gain = 10 ** (rng.uniform(*c.gain_db) / 20) if wanted[0] else 1.0
        level = 10 ** (rng.uniform(*c.noise_db) / 20)
        noise = wanted[1] and bool(self._clips) and user_rms > 0
        names = [name for name, on in (("gain", wanted[0]), ("noise", noise), ("room", wanted[2])) if on]
        stream = self._noise(np.random.default_rng(seeds[0])) if noise else None
        room = self._room(np.random.default_rng(seeds[1])) if wanted[2] else None
        crossed, changes = line.draw(c.line, self.rate, rng)

        def changed() -> Iterator[np.ndarray]:
            for block in blocks:
                model, user = block[:, 0], gain * block[:, 1]
                if stream is not None:
                    user = user + gain * user_rms * level * stream.take(len(user))
                if room is not None:
                    echo, reverberation = room
                    user = user + echo(model)
                    user = user + reverberation(user)
                yield np.stack([model, user.astype(np.float32)], axis=1)

        return line.through(changed(), changes) if changes else changed(), (*names, *crossed)

    def _noise(self, rng: np.random.Generator) -> Buffer:
        def pieces() -> Iterator[np.ndarray]:
            failures = 0
            while failures < max(8, len(self._clips)):
                if rng.random() < self.config.pause:
                    yield np.zeros(int(rng.uniform(0, self.config.pause_seconds) * self.rate), np.float32)
                    continue
                path = self._clips[int(rng.integers(len(self._clips)))]
                try:
                    clip = _clip(path, self.rate)
                except DataError as error:
                    failures += 1
                    log.warning("%s; another clip is taken", error)
                    continue
                rms = float(np.sqrt(np.mean(np.square(clip)))) if len(clip) else 0.0
                if rms == 0.0 or not np.isfinite(rms):
                    failures += 1
                    log.warning("noise clip %s is silent or damaged; another one is taken", path)
                    continue
                failures = 0
                yield clip / rms
            raise DataError(f"{failures} noise clips in a row cannot be used: look at {self.config.clips}")

        return Buffer(pieces())

    def _room(self, rng: np.random.Generator) -> tuple[Filter, Filter]:
        """Echo of the model's channel, and the reflections of the user's."""
        c = self.config
        echo = np.zeros(round(rng.uniform(*c.echo_ms) * self.rate / 1000) + 1)
        echo[-1] = rng.uniform(0, c.echo)
        first, rt60 = rng.uniform(0, c.first_echo), rng.uniform(*c.rt60)
        step = rng.uniform(*c.first_delay_ms) / 1000
        taps: dict[int, float] = {}
        for _ in range(c.trains):
            delay, gain = 0.0, first
            while gain >= 1e-3:
                wait = step * (1 + c.jitter * rng.uniform(-1, 1))
                delay += wait
                at = round(delay * self.rate)
                taps[at] = taps.get(at, 0.0) + gain
                gain *= 10 ** (-3 * wait / rt60)
        kernel = np.zeros(max(taps, default=0) + 1)
        for at, gain in taps.items():
            kernel[at] = gain
        return Filter(echo), Filter(kernel)


def _clip(path: Path, rate: int) -> np.ndarray:
    """The first minute of a recording's first channel."""
    parts, have = [], 0
    for block in audio.blocks(path, rate, (0,)):
        parts.append(block[:, 0])
        have += len(block)
        if have >= _LONGEST_CLIP * rate:
            break
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)
