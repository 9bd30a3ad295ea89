"""G.711: the tables of the Recommendation, and libsndfile's coder as an independent reference."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from moshijax.g711 import A_LAW, MU_LAW

EVERY_SAMPLE = np.arange(-32768, 32768).astype("<i2")
EVERY_BYTE = bytes(range(256))


@pytest.mark.parametrize(
    ("law", "values"),
    [
        # Decoder outputs y of tables 2a and 1a, at the ends of the segments, in the Recommendation's units.
        (MU_LAW, {1: 0, 2: 2, 16: 30, 17: 33, 32: 93, 33: 99, 65: 495, 81: 1023, 97: 2079, 113: 4191, 128: 8031}),
        (A_LAW, {1: 1, 16: 31, 17: 33, 32: 63, 33: 66, 49: 132, 65: 264, 81: 528, 97: 1056, 113: 2112, 128: 4032}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_decoder_gives_the_values_of_the_recommendation(law, values) -> None:
    unit = {"mulaw": 4, "alaw": 8}[law.name] / 32768
    for number, value in values.items():
        inverted = {"mulaw": 0x7F, "alaw": 0x55}[law.name]
        positive, negative = 0x80 | ((number - 1) ^ inverted), (number - 1) ^ inverted
        assert law.decode(bytes([positive, negative])).tolist() == [value * unit, -value * unit]


@pytest.mark.parametrize(("law", "subtype"), [(MU_LAW, "ULAW"), (A_LAW, "ALAW")], ids=["mulaw", "alaw"])
def test_every_byte_and_every_sample_agree_with_libsndfile(law, subtype) -> None:
    decoded, _ = soundfile.read(
        io.BytesIO(EVERY_BYTE), format="RAW", subtype=subtype, samplerate=8000, channels=1, dtype="int16"
    )
    np.testing.assert_array_equal(law.decode(EVERY_BYTE) * 32768, decoded)
    encoded = io.BytesIO()
    soundfile.write(encoded, EVERY_SAMPLE, 8000, format="RAW", subtype=subtype)
    assert law.encode(EVERY_SAMPLE / np.float32(32768)) == encoded.getvalue()


@pytest.mark.parametrize("law", [MU_LAW, A_LAW], ids=["mulaw", "alaw"])
def test_coding_twice_changes_nothing_and_loud_samples_are_clipped(law) -> None:
    once = law.decode(law.encode(EVERY_SAMPLE / np.float32(32768)))
    np.testing.assert_array_equal(law.decode(law.encode(once)), once)
    assert law.encode(np.array([3.0, 1.0, -3.0, -1.0], np.float32)) == law.encode(
        np.array([32767, 32767, -32768, -32768], np.float32) / 32768
    )
