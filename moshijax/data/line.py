"""What a line does to a voice that is called over it: telephone band, G.711, Opus at low rates, lost packets.

Moshi's augmentation (arXiv 2410.00037, 4.4) has none of these; all probabilities and ranges are ours. Packets are lost
in bursts, by the model of E. N. Gilbert ("Capacity of a burst-noise channel", 1960) in the form in which every packet
of the bad state is lost. Signals pass in blocks, in bounded memory, and keep their length and their time.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from moshijax import g711, optional
from moshijax.data.blocks import Buffer, centred, pieces
from moshijax.data.ranges import check_probabilities, check_span
from moshijax.errors import ConfigError

Blocks = Iterator[np.ndarray]  # of samples [n] float32

_BAND = (300.0, 3400.0)  # Hz, of telephones (ITU-T G.712)
_TAPS = 321  # of the band's filter at 8 kHz: 140 Hz from passing to stopping
_PACKETS = 50  # per second
_OPUS_RATES = (8000, 12_000, 16_000, 24_000, 48_000)  # Hz that the codec takes
_OPUS_SECONDS, _OPUS_BEFORE = (
    20,
    0.2,
)  # of sound in one stream, and of what comes before it, which lets the coder settle
_OPUS_SLOWEST, _OPUS_FASTEST = 6.0, 256.0  # kbit/s, the ends of libsndfile's compression level


@dataclass(frozen=True)
class Line:
    """Probabilities and ranges.

    Attributes:
      telephone: the band from 300 to 3400 Hz, at 8 kHz and back.
      mu_law: of calls by telephone, those whose samples are coded by G.711.
      opus, opus_kbps: coded by Opus, at a bit rate of kbit/s.
      loss: packets of 20 ms are lost.
      loss_share, loss_burst: the share of all packets, and the mean length of a burst in packets.
      repeat: of calls with losses, those in which the last packet is repeated, each time at half the level; silence
        stands for the lost packets of the others.
    """

    telephone: float = 0.0
    mu_law: float = 0.0
    opus: float = 0.0
    opus_kbps: tuple[float, float] = (6.0, 24.0)
    loss: float = 0.0
    loss_share: tuple[float, float] = (0.01, 0.1)
    loss_burst: tuple[float, float] = (1.0, 4.0)
    repeat: float = 0.5

    def __post_init__(self) -> None:
        check_probabilities(self, "telephone", "mu_law", "opus", "loss", "repeat")
        if self.mu_law and not self.telephone:
            raise ConfigError(f"mu_law is {self.mu_law}, of calls by telephone, but telephone is 0: set it too")
        check_span(self, "opus_kbps", _OPUS_SLOWEST, _OPUS_FASTEST)
        check_span(self, "loss_share", 0.0, 0.5)
        check_span(self, "loss_burst", 1.0, 50.0)

    def check_rate(self, rate: int) -> None:
        """Refuse a sample rate, in Hz, at which what may be drawn is not possible.

        Raises:
          ConfigError: Opus does not know it.
        """
        if self.opus and rate not in _OPUS_RATES:
            raise ConfigError(f"opus is {self.opus}, but Opus has no {rate} Hz, only {_OPUS_RATES}: set opus to 0")


def draw(config: Line, rate: int, rng: np.random.Generator) -> tuple[tuple[str, ...], list[Callable[[Blocks], Blocks]]]:
    """Draw a line.

    Args:
      config: probabilities and ranges.
      rate: samples per second of the signal.
      rng: decides what is drawn.

    Returns:
      The names of what was drawn ("telephone", "mu_law", "opus", "loss"), and the changes, in order.
    """
    telephone_, mu_law, opus_, loss, repeat = rng.random(5) < (
        config.telephone, config.mu_law, config.opus, config.loss, config.repeat
    )  # fmt: skip
    kbps, share, burst = (rng.uniform(*span) for span in (config.opus_kbps, config.loss_share, config.loss_burst))
    chance = int(rng.integers(2**63))
    names, changes = [], []
    if telephone_:
        names += ["telephone", "mu_law"] if mu_law else ["telephone"]
        changes.append(lambda blocks: telephone(blocks, rate, bool(mu_law)))
    if opus_:
        names.append("opus")
        changes.append(lambda blocks: opus(blocks, rate, kbps))
    if loss:
        names.append("loss")
        changes.append(
            lambda blocks: lose_packets(blocks, rate, share, burst, bool(repeat), np.random.default_rng(chance))
        )
    return tuple(names), changes


def telephone(blocks: Blocks, rate: int, mu_law: bool) -> Blocks:
    """Limit a signal to the band of telephones, at 8 kHz and back, there coded by G.711 or not."""
    total = 0

    def counted() -> Blocks:
        nonlocal total
        for block in blocks:
            total += len(block)
            yield block

    def coded(narrow: Blocks) -> Blocks:
        for block in narrow:
            yield g711.MU_LAW.decode(g711.MU_LAW.encode(block)) if mu_law else block

    narrow = coded(centred(_resampled(counted(), rate, g711.RATE), _band_pass()))
    given = 0
    for block in _resampled(narrow, g711.RATE, rate):
        block = block[: total - given]
        given += len(block)
        yield block
    yield np.zeros(total - given, np.float32)  # what two roundings of the length may leave


def _resampled(blocks: Blocks, rate: int, wanted: int) -> Blocks:
    stream = optional.load("soxr").ResampleStream(rate, wanted, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block, np.float32))
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _band_pass() -> np.ndarray:
    low, high = (edge / g711.RATE for edge in _BAND)
    times = np.arange(_TAPS) - _TAPS // 2
    return np.blackman(_TAPS) * (2 * high * np.sinc(2 * high * times) - 2 * low * np.sinc(2 * low * times))


def opus(blocks: Blocks, rate: int, kbps: float) -> Blocks:
    """Code a signal by Opus and decode it again."""
    before = np.zeros(0, np.float32)
    for piece in pieces(blocks, _OPUS_SECONDS * rate):
        decoded = _through_opus(np.concatenate([before, piece]), rate, kbps)
        yield decoded[len(before) :]
        before = piece[-round(_OPUS_BEFORE * rate) :]


def _through_opus(signal: np.ndarray, rate: int, kbps: float) -> np.ndarray:
    soundfile = optional.load("soundfile")
    level = (_OPUS_FASTEST - kbps) / (_OPUS_FASTEST - _OPUS_SLOWEST)
    form = {"samplerate": rate, "channels": 1, "format": "OGG", "subtype": "OPUS"}
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", compression_level=level, **form) as file:
        file.write(signal)
    stream.seek(0)
    decoded, _ = soundfile.read(stream, dtype="float32")
    return np.pad(decoded, (0, max(0, len(signal) - len(decoded))))[: len(signal)]


def lose_packets(
    blocks: Blocks, rate: int, share: float, burst: float, repeat: bool, rng: np.random.Generator
) -> Blocks:
    """Lose packets of 20 ms.

    Args:
      blocks: of the signal.
      rate: samples per second.
      share: of all packets that are lost, on average; up to 0.5.
      burst: mean number of packets that are lost one after the other; from 1.
      repeat: the last packet is repeated, each time at half the level; otherwise there is silence.
      rng: decides which.
    """
    size = rate // _PACKETS
    found, last, lost = 1 / burst, np.zeros(size, np.float32), bool(rng.random() < share)
    for second in pieces(blocks, size * _PACKETS):
        heard = second.copy()
        for start in range(0, len(heard), size):
            packet = heard[start : start + size]
            if lost:
                last = 0.5 * last if repeat else np.zeros(size, np.float32)
                packet[:] = last[: len(packet)]
            elif len(packet) == size:
                last = 2.0 * packet  # its first repetition is as loud as the packet itself
            lost = bool(rng.random() < (1 - found if lost else found * share / (1 - share)))
        yield heard


def through(blocks: Iterator[np.ndarray], changes: list[Callable[[Blocks], Blocks]]) -> Iterator[np.ndarray]:
    """Send the second channel of a recording [n, 2] through changes, which may cut it into other blocks."""
    waiting: list[np.ndarray] = []

    def user() -> Blocks:
        for block in blocks:
            waiting.append(block[:, 0])
            yield block[:, 1]

    def model() -> Blocks:
        while waiting:
            yield waiting.pop(0)

    stream = user()
    for change in changes:
        stream = change(stream)
    first = Buffer(model())
    for second in stream:
        if len(second):
            yield np.stack([first.take(len(second)), second], axis=1).astype(np.float32)
