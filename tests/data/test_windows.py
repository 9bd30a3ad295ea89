"""Audio windows and teacher features: aligned, deterministic, mostly speech."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moshijax.data.manifest import read_manifest
from moshijax.data.teacher import PhonemeTeacher, TeacherFeatures, compute_features
from moshijax.data.windows import AudioData, audio_batches
from moshijax.errors import ConfigError, DataError
from tests.data.sets import RATE, tones, write_item, write_manifest

PHONEMES = [["s", [0.3, 0.45], "SPEAKER_USER"], ["ˈaʊ", [0.45, 0.6], "SPEAKER_USER"], ["m", [1.0, 1.3], "SPEAKER_MAIN"]]
SPANS = [[symbol, times, speaker] for symbol, times, speaker in PHONEMES]


@pytest.fixture
def manifest(tmp_path):
    lines = [write_item(tmp_path, f"c{i}", SPANS, tones(SPANS, 2.0 + i), phonemes=PHONEMES) for i in range(4)]
    lines.append(write_item(tmp_path, "other", SPANS, tones(SPANS, 2.0, 16_000), 16_000, phonemes=PHONEMES))
    return write_manifest(tmp_path, lines)


def test_features_follow_the_phonemes(manifest):
    index, report = compute_features(read_manifest(manifest))
    assert (index["kind"], index["rate"], report.usable) == ("phonemes", 50, 5)
    assert json.loads((manifest.parent / "teacher" / "teacher.json").read_text())["dim"] == PhonemeTeacher.dim
    features = TeacherFeatures(manifest.parent / "teacher")["c0"].astype(np.float32)
    assert features.shape == (2, 100, PhonemeTeacher.dim)
    silence = features[0, 0]
    assert (features[0, :49] == silence).all() and (features[0, 66:] == silence).all()
    assert (features[1, :14] == silence).all() and (features[1, 31:] == silence).all()
    similarity = lambda a, b: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))  # noqa: E731
    assert similarity(features[1, 18], silence) < 0.1
    assert similarity(features[1, 24], features[1, 28]) < 0.9  # the two halves of a diphthong
    assert similarity(features[1, 18], features[1, 20]) > 0.99


def test_windows_and_features_are_aligned(manifest):
    compute_features(read_manifest(manifest))
    config = AudioData(str(manifest), str(manifest.parent / "teacher"), 16, 12_000, RATE)
    batch = audio_batches(config, 0).batch(0)
    assert batch["audio"].shape == (16, 12_000) and batch["audio"].dtype == np.float32
    assert batch["teacher"].shape == (16, 25, PhonemeTeacher.dim) and batch["teacher"].dtype == np.float32
    loud = np.sqrt(np.square(batch["audio"].reshape(16, 25, 480)).mean(-1)) > 0.05
    silence = PhonemeTeacher()._vectors["silence"]
    quiet = np.abs(batch["teacher"] - silence).max(-1) < 1e-3
    # Where a whole 20 ms frame and its neighbours sound, features are of speech, and the other way round.
    inner = loud[:, 1:-1] & loud[:, :-2] & loud[:, 2:]
    outer = ~loud[:, 1:-1] & ~loud[:, :-2] & ~loud[:, 2:]
    assert inner.sum() > 40 and not quiet[:, 1:-1][inner].any()
    assert outer.sum() > 40 and quiet[:, 1:-1][outer].all()


def test_batches_depend_on_seed_and_number_only(manifest):
    config = AudioData(str(manifest), None, 4, 12_000, RATE, gain_db=(-6.0, 6.0))
    one, two = audio_batches(config, 5), audio_batches(config, 5)
    expected = [one.batch(n)["audio"].tobytes() for n in range(20)]
    assert [two.batch(n)["audio"].tobytes() for n in reversed(range(20))] == expected[::-1]
    assert "teacher" not in one.batch(0)
    assert audio_batches(config, 6).batch(0)["audio"].tobytes() != expected[0]


def test_silent_windows_are_drawn_again(manifest):
    def share(speech_share):
        batch = audio_batches(AudioData(str(manifest), None, 64, 4800, RATE, speech_share), 0).batch(0)
        return float((np.abs(batch["audio"]).max(axis=1) > 0.05).mean())

    assert share(1.0) > 0.6 > 0.4 > share(0.0)


def test_short_recordings_are_filled_with_silence(manifest):
    compute_features(read_manifest(manifest))
    config = AudioData(str(manifest), str(manifest.parent / "teacher"), 4, 10 * RATE, RATE)
    batch = audio_batches(config, 0).batch(0)
    assert (batch["audio"][:, 6 * RATE :] == 0).all()
    assert np.abs(batch["teacher"][:, 400:] - PhonemeTeacher()._vectors["silence"]).max() < 1e-3


def test_refusals(manifest, tmp_path):
    with pytest.raises(DataError, match="holds no complete teacher.json"):
        audio_batches(AudioData(str(manifest), str(tmp_path / "nowhere")), 0)
    compute_features(read_manifest(manifest))
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(DataError, match="belong to another manifest"):
        audio_batches(AudioData(str(manifest), str(manifest.parent / "teacher")), 0)
    with pytest.raises(DataError, match="teacher 'wavlm' is not known"):
        compute_features(read_manifest(manifest), kind="wavlm")
    with pytest.raises(ConfigError, match="gain_db"):
        AudioData(str(manifest), gain_db=(3.0, 0.0))


def test_items_without_phonemes_are_named(manifest):
    write_item(manifest.parent, "c1", SPANS, tones(SPANS, 3.0))
    _, report = compute_features(read_manifest(manifest))
    assert report.usable == 4 and report.rejected[0][0] == "c1" and '"phonemes"' in report.rejected[0][1]
    config = AudioData(str(manifest), str(manifest.parent / "teacher"))
    assert audio_batches(config, 0).items == 4
