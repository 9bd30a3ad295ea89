"""Distances between a recording and its decoded form. STOI and PESQ come from their own libraries."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from moshijax import optional
from moshijax.codec import losses
from moshijax.runtime.audio import resample

if TYPE_CHECKING:
    from jaxtyping import Float

PESQ_RATE = 16_000
DNSMOS_RATE = 16_000
SILENT = 1e-4  # RMS of full scale below which a clip has nothing to compare


def si_sdr(estimate: Float[np.ndarray, " N"], target: Float[np.ndarray, " N"]) -> float:
    """Return the scale-invariant signal-to-distortion ratio in dB (arXiv 1811.02508); NaN for a constant target."""
    estimate, target = (x - x.mean() for x in (np.asarray(y, np.float64) for y in (estimate, target)))
    energy = np.dot(target, target)
    if energy < 1e-12:
        return float("nan")
    wanted = np.dot(estimate, target) / energy * target
    return float(10 * np.log10((np.sum(wanted**2) + 1e-12) / (np.sum((estimate - wanted) ** 2) + 1e-12)))


def mel_distance(estimate: Float[np.ndarray, " N"], target: Float[np.ndarray, " N"], sample_rate: int) -> float:
    """Return the multi-scale mel loss of training (`moshijax.codec.losses.multi_scale_mel`)."""
    return float(losses.multi_scale_mel(estimate[None], target[None], sample_rate)[0])


def stoi(estimate: Float[np.ndarray, " N"], target: Float[np.ndarray, " N"], sample_rate: int) -> float:
    """Return the short-time objective intelligibility, about 0 to 1; NaN where the library finds too little speech.

    Raises:
      MissingPackage: pystoi is not installed.
    """
    pystoi = optional.load("pystoi")
    if np.sqrt(np.mean(np.square(target))) < SILENT:
        return float("nan")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = float(pystoi.stoi(target, estimate, sample_rate))
    return float("nan") if any("STOI" in str(w.message) or "frames" in str(w.message) for w in caught) else value


def pesq(estimate: Float[np.ndarray, " N"], target: Float[np.ndarray, " N"], sample_rate: int) -> float:
    """Return the wide-band PESQ (MOS-LQO, about 1 to 4.6) at 16 kHz; NaN where the library finds no utterance.

    Raises:
      MissingPackage: pesq is not installed.
    """
    library = optional.load("pesq")
    both = [x.astype(np.float32) for x in (target, estimate)]
    if sample_rate != PESQ_RATE:
        both = [optional.load("soxr").resample(x, sample_rate, PESQ_RATE) for x in both]
    try:
        return float(library.pesq(PESQ_RATE, *both, "wb"))
    except (library.NoUtterancesError, library.BufferTooShortError):
        return float("nan")


def dnsmos(estimate: Float[np.ndarray, " N"], sample_rate: int) -> float:
    """Return the overall opinion score that DNSMOS P.835 predicts (about 1 to 5), without a reference; NaN for silence.

    The networks are those of Microsoft's package speechmos (MIT), in its wheel. A clip below 9 s is repeated.

    Raises:
      MissingPackage: speechmos, or librosa, which it needs and does not ask for, is not installed.
    """
    optional.load("librosa")
    library = optional.load("speechmos.dnsmos")
    if np.sqrt(np.mean(np.square(estimate))) < SILENT:
        return float("nan")
    heard = np.clip(resample(estimate, sample_rate, DNSMOS_RATE), -1.0, 1.0)
    return float(library.run(np.asarray(heard, np.float32), DNSMOS_RATE)["ovrl_mos"])
