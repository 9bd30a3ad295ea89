"""G.711, the telephone network's companding (ITU-T Recommendation G.711, tables 1 and 2): one byte per sample at 8 kHz.

A byte has the sign in its highest bit and the number of one of 128 intervals of the magnitude in the other seven. The
intervals are 16 to a segment, and their width doubles from segment to segment. The bits are inverted for
transmission: all of them in mu-law, every second one in A-law.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

#: Samples per second, and in one packet of 20 ms.
RATE, PACKET = 8000, 160


@dataclass(frozen=True, eq=False)
class Law:
    """One of the two laws, as tables over all bytes and over all 16-bit samples.

    Attributes:
      name: as media types have it, `audio/x-NAME`.
      inverted: the bits of a byte that transmission inverts, besides the sign.
      lowest: the 128 smallest magnitudes of the intervals, in 16-bit units (the decision values).
      middle: the 128 magnitudes that they are decoded to, in 16-bit units.
    """

    name: str
    inverted: int
    lowest: np.ndarray
    middle: np.ndarray
    _decoded: np.ndarray = field(init=False, repr=False)
    _encoded: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        codes = np.arange(256)
        interval, sign = (codes ^ self.inverted) & 0x7F, np.where(codes & 0x80, 1, -1)
        object.__setattr__(self, "_decoded", (sign * self.middle[interval] / 32768).astype(np.float32))
        samples = np.arange(-32768, 32768)
        interval = np.searchsorted(self.lowest, np.abs(samples), side="right") - 1
        encoded = (interval ^ self.inverted) | np.where(samples < 0, 0, 0x80)
        object.__setattr__(self, "_encoded", encoded.astype(np.uint8))

    def decode(self, data: bytes | UInt8[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """Return the samples of the bytes, float32 in [-1, 1]."""
        return self._decoded[np.frombuffer(data, np.uint8)]

    def encode(self, audio: Float[np.ndarray, " N"]) -> bytes:
        """Return one byte per sample of float32 in [-1, 1]; louder samples are clipped."""
        samples = np.clip(np.round(audio * 32768.0), -32768, 32767).astype(np.int32)
        return self._encoded[samples + 32768].tobytes()


def _mu_law() -> Law:
    # 14-bit magnitudes. With 33 added, a segment begins at a power of two.
    segment, step = np.divmod(np.arange(128), 16)
    middle = ((33 + 2 * step) << segment) - 33
    # The first interval lies on both sides of zero.
    return Law("mulaw", 0x7F, 4 * np.maximum(middle - (1 << segment), 0), 4 * middle)


def _a_law() -> Law:
    # 13-bit magnitudes. The first two segments are equally wide.
    segment, step = np.divmod(np.arange(128), 16)
    half = 1 << np.maximum(segment - 1, 0)
    middle = half * (2 * np.where(segment == 0, step, 16 + step) + 1)
    return Law("alaw", 0x55, 8 * (middle - half), 8 * middle)


MU_LAW, A_LAW = _mu_law(), _a_law()
