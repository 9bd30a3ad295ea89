"""Features of a speech model: against Transformers where it is installed, and what it stored everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from moshijax.codec import losses
from moshijax.data.isolation import Isolated
from moshijax.data.manifest import read_recordings
from moshijax.data.speech_teacher import CONTEXT, HOP, PIECE, SpeechTeacher, pieces
from moshijax.data.teacher import TeacherFeatures, compute_features, make_teacher
from moshijax.data.windows import AudioData, audio_batches
from moshijax.errors import ConfigError

STORED = Path(__file__).parent / "wavlm_random.npz"  # written by the test that is marked `reference`


def speech(seconds: float = 1.7, rate: int = 24_000) -> np.ndarray:
    """Sound with a changing spectrum, the same everywhere."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.2 * np.sin(2 * np.pi * (200 + 300 * time) * time) * (1 + np.sin(9 * time))).astype(np.float32)


@pytest.mark.reference
def test_features_are_those_of_transformers(tmp_path):
    """A small WavLM with random weights; what comes out is kept for machines without PyTorch."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.WavLMConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, do_stable_layer_norm=True,
        feat_extract_norm="layer", num_buckets=32, max_bucket_distance=80,
    )  # fmt: skip
    model = transformers.WavLMModel(config).eval()
    model.save_pretrained(tmp_path / "wavlm")
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "wavlm")
    folder = tmp_path / "speech"
    folder.mkdir()
    stereo = np.stack([speech(), speech()[::-1]], 1)
    soundfile.write(folder / "a.wav", stereo, 24_000, subtype="FLOAT")
    for layer in (-1, 2):
        out = tmp_path / f"layer{layer}"
        compute_features(read_recordings(folder), out, SpeechTeacher(str(tmp_path / "wavlm"), layer))
        ours = TeacherFeatures(out).read("a")
        assert ours.shape == (2, 85, 16)
        for channel in range(2):
            # Resampled, normalised and padded by 40 samples for a first window that is centred on the first 20 ms.
            signal = soxr.resample(stereo[:, channel], 24_000, 16_000, quality="HQ")
            signal = (signal - signal.mean()) / np.sqrt(signal.var() + 1e-7)
            with torch.no_grad():
                states = model(torch.tensor(np.pad(signal, 40))[None].float(), output_hidden_states=True)
            theirs = states.hidden_states[layer][0]
            assert theirs.shape == (85, 16)
            np.testing.assert_allclose(ours[channel].astype(np.float32), theirs, atol=4e-3)
    pooled = torch.nn.functional.avg_pool1d(theirs.T[None], 8, 4, 2, count_include_pad=False)[0].T
    now = {"features": theirs.numpy(), "pooled": pooled.numpy()[:21]}
    if not STORED.exists():
        np.savez_compressed(STORED, **now)
    for name, stored in np.load(STORED).items():
        np.testing.assert_allclose(now[name], stored, atol=1e-4)


def test_targets_are_the_pooled_features_of_transformers():
    stored = np.load(STORED)
    ours = losses.pool_teacher(stored["features"][None], 21)[0]
    np.testing.assert_allclose(ours, stored["pooled"], atol=1e-5)


class Levels(SpeechTeacher):
    """The framing of the teacher with a model that can be checked: the mean power of every 20 ms."""

    kind, dim = "levels", 1

    def __init__(self):
        self.seen, self._isolated = [], Isolated()

    def hidden(self, signal):
        self.seen.append(len(signal) // HOP)
        return np.square(signal).reshape(-1, HOP).mean(1, keepdims=True)


def test_long_recordings_go_through_in_pieces():
    frames = 3 * PIECE + 77
    signal = np.repeat(np.arange(frames) / frames, HOP).astype(np.float32)
    teacher = Levels()
    np.testing.assert_allclose(teacher.of_signal(signal, frames)[:, 0], (np.arange(frames) / frames) ** 2, atol=1e-5)
    assert len(teacher.seen) == 4 and max(teacher.seen) == PIECE + 2 * CONTEXT
    assert pieces(PIECE + 2 * CONTEXT) == [(0, PIECE + 2 * CONTEXT, 0, PIECE + 2 * CONTEXT)]
    assert teacher.of_signal(signal[:500], 3).shape == (3, 1)  # completed with silence


def test_features_of_any_folder_train_a_codec(tmp_path):
    """Mono at 44.1 kHz and three channels at 8 kHz, no transcripts; a broken file is rejected by name."""
    time = np.arange(44_100) / 44_100
    soundfile.write(tmp_path / "mono.wav", np.where(time < 0.5, 0.0, 0.3 * np.sin(3000 * time)), 44_100)
    many = np.zeros((8_000, 3), np.float32)
    many[4_000:, 2] = 0.3 * np.sin(np.arange(4_000))
    soundfile.write(tmp_path / "many.wav", many, 8_000)
    (tmp_path / "bad.wav").write_text("this is no audio, however long it may be made to look by more words")
    index, report, _ = compute_features(read_recordings(tmp_path), tmp_path / "teacher", Levels())
    ids = [name for shard in index["shards"] for name in shard["ids"]]
    assert (index["kind"], ids) == ("levels", ["many", "mono"]) and report.rejected[0][0] == "bad"
    assert TeacherFeatures(tmp_path / "teacher").read("many").shape == (3, 50, 1)
    batch = audio_batches(AudioData(str(tmp_path), str(tmp_path / "teacher"), 16, 9_600, speech_share=1.0), 0).batch(0)
    assert batch["teacher"].shape == (16, 20, 1)
    loud = np.square(batch["audio"].reshape(16, 20, 480)).mean(-1) > 0.01
    features = batch["teacher"][..., 0] > 0.01
    assert (loud == features).mean() > 0.95 and loud.any() and not loud.all()


def test_refusals():
    with pytest.raises(ConfigError, match="teacher 'phonemes' with model 'x'"):
        make_teacher("phonemes", "x")
