"""A codec as data preparation uses it: batches of recordings of many lengths, long ones piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from moshijax.data.records import digest, tree_digest
from moshijax.errors import ConfigError, DataError

_CALLS_AT_ONCE = 2  # one leaves cores idle: a small codec is encoded 1.7 times as fast on two cores
_ROWS_AT_ONCE = 4
_FRAMES_AT_ONCE = 1500  # of all rows of one call together
_BLOCK_FRAMES = 50  # of a long recording per step


def codec_sha256(config: Any, params: Any) -> str:
    """Return what binds codes to the codec that made them: the sha256 of its config and parameters."""
    return digest(repr(config), tree_digest(params))


class CodecEncoder:
    """Encode with `moshijax.codec`; float32, so that codes do not depend on what shares a batch.

    Args:
      config, params: of the codec.
      num_codebooks: how many to keep; None: all.
      source: where it was read from; recorded with the data.
    """

    def __init__(self, config: Any, params: Any, num_codebooks: int | None = None, source: str | None = None):
        from moshijax import codec
        from moshijax.codec import functions  # noqa: F401 - its listed lengths

        if num_codebooks is not None and not 1 <= num_codebooks <= config.num_codebooks:
            raise ConfigError(f"num_codebooks is {num_codebooks}: this codec has 1 to {config.num_codebooks}")
        self._codec, self._config, self.source = codec, config, source
        self.sample_rate, self.frame_size = config.sample_rate, config.frame_size
        self.num_codebooks = num_codebooks or config.num_codebooks
        self.sha256 = codec_sha256(config, params)
        self._params = codec.inference_layout(config, params)
        self._silence: dict[int, np.ndarray] = {}

    @classmethod
    def load(cls, path: str | Path, num_codebooks: int | None = None) -> CodecEncoder:
        """Read the codec from a published file, a directory, or a run (`moshijax.weights.load_mimi`)."""
        from moshijax import weights

        return cls(*weights.load_mimi(path), num_codebooks=num_codebooks, source=str(Path(path).absolute()))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as where the codec was read from: parameters stay behind, and each process opens it once."""
        if self.source is None:
            raise TypeError("a codec that was not read from a path cannot go to another process; use CodecEncoder.load")
        return _opened, (self.source, self.num_codebooks, self.sha256)

    def encode(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Encode waveforms [N_i] float32 to int32 codes [Q, ceil(N_i / frame_size)], in the same order."""
        groups: dict[int, list[int]] = {}
        codes: list[np.ndarray] = []
        for number, waveform in enumerate(waveforms):
            frames = -(-len(waveform) // self.frame_size)
            codes.append(self._silent(frames) if not waveform.any() else np.zeros(0))
            if waveform.any():
                groups.setdefault(self._listed(frames), []).append(number)
        calls: list[tuple[list[int], int, int]] = []
        for length, members in sorted(groups.items()):
            rows = max(1, min(_ROWS_AT_ONCE, _FRAMES_AT_ONCE // length))
            calls += [(members[first : first + rows], length, rows) for first in range(0, len(members), rows)]

        def encode(call: tuple[list[int], int, int]) -> list[np.ndarray]:
            members, length, rows = call
            return self._encode_rows([waveforms[number] for number in members], length, rows)

        with ThreadPoolExecutor(_CALLS_AT_ONCE) as pool:
            for (members, _, _), found in zip(calls, pool.map(encode, calls), strict=True):
                for number, row in zip(members, found, strict=True):
                    codes[number] = row
        return codes

    def _encode_rows(self, waveforms: Sequence[np.ndarray], length: int, rows: int) -> list[np.ndarray]:
        """Codes of at most `rows` waveforms of at most `length` frames; compiled for (rows, length)."""
        batch = np.zeros((rows, length * self.frame_size), np.float32)
        lengths = np.zeros(rows, np.int32)
        for row, waveform in enumerate(waveforms):
            batch[row, : len(waveform)] = waveform
            lengths[row] = len(waveform)
        out = np.asarray(self._codec.encode(self._config, self._params, batch, self.num_codebooks, lengths_B=lengths))
        return [out[row, :, : -(-len(w) // self.frame_size)] for row, w in enumerate(waveforms)]

    def _silent(self, frames: int) -> np.ndarray:
        """Codes of digital silence, encoded once per length: data sets are full of it."""
        if frames not in self._silence:
            zeros = np.zeros(frames * self.frame_size, np.float32)
            empty = np.zeros((self.num_codebooks, 0), np.int32)
            self._silence[frames] = self._encode_rows([zeros], self._listed(frames), 1)[0] if frames else empty
        return self._silence[frames]

    def _listed(self, frames: int) -> int:
        """Frames of the shortest compiled length, or pieces of the longest and then one that fits."""
        listed = self._codec.functions.FRAMES_PER_CALL
        whole, rest = divmod(frames, listed[-1])
        return whole * listed[-1] + (next(n for n in listed if n >= rest) if rest else 0)

    def silence(self) -> list[int]:
        """Return the code of lasting digital silence in every codebook, that of the end of two seconds."""
        return self._silent(round(2 * self.sample_rate / self.frame_size))[:, -1].tolist()

    def encode_blocks(self, blocks: Iterator[np.ndarray]) -> np.ndarray:
        """Encode one recording in bounded memory.

        Args:
          blocks: of the recording, [n, C] float32.

        Returns:
          int32 codes [C, Q, ceil(N / frame_size)].
        """

        def step(state: Any, pcm: np.ndarray) -> tuple[Any, np.ndarray]:
            state, out = self._codec.encode_step(
                self._config, self._params, state, pcm, num_codebooks=self.num_codebooks
            )
            return state, np.asarray(out)

        blocks = iter(blocks)
        first = next(blocks, np.zeros((0, 2), np.float32))
        channels = first.shape[1]
        state = self._codec.init_encoder_state(self._config, channels)
        size = _BLOCK_FRAMES * self.frame_size
        pending, total, codes = np.zeros((0, channels), np.float32), 0, []
        for block in chain([first], blocks):
            total += len(block)
            pending = np.concatenate([pending, block])
            while len(pending) >= size:
                state, out = step(state, np.ascontiguousarray(pending[:size].T))
                codes.append(out)
                pending = pending[size:]
        if len(pending):
            last = np.zeros((channels, size), np.float32)
            last[:, : len(pending)] = pending.T
            codes.append(step(state, last)[1])
        if not codes:
            return np.zeros((channels, self.num_codebooks, 0), np.int32)
        return np.concatenate(codes, axis=-1)[..., : -(-total // self.frame_size)]


@cache
def _opened(source: str, num_codebooks: int, sha256: str) -> CodecEncoder:
    """Open a codec in the process that unpickles it."""
    encoder = CodecEncoder.load(source, num_codebooks)
    if encoder.sha256 != sha256:
        raise DataError(
            f"codec {source} has sha256 {encoder.sha256[:12]}..., the job was planned with {sha256[:12]}...: start it "
            "again with the codec as it is now, in another folder"
        )
    return encoder
