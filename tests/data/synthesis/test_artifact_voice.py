"""Our own models of speech synthesis as voices: words with the times at which the model began them."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import sentencepiece

from moshijax import lm
from moshijax.data.synthesis import ArtifactVoice
from moshijax.data.synthesis.artifact import ArtifactSynthesizer
from moshijax.errors import ConfigError
from moshijax.export import artifact
from moshijax.lm import policies
from moshijax.testing import tiny


def tokenizer() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abc bcd cde def efg fgh ghi"] * 20), model_writer=model, vocab_size=24, unk_id=0,
        bos_id=1, eos_id=2, pad_id=3, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


@pytest.mark.slow
def test_an_artifact_speaks_and_knows_when(tmp_path):
    config = dataclasses.replace(tiny.LM, layout=lm.layouts.single_stream(3, acoustic_delay=1))
    policy = policies.Synthesis(audio_delay=2, max_padding=3, final_padding=1, max_pieces=8)
    made = artifact.build(
        *tiny.tiny_models(lm_config=config), tmp_path / "speech", policy=policy, tokenizer=tokenizer(),
        prefill_lengths=(4,),
    )  # fmt: skip
    voice = ArtifactVoice(str(made))
    one, same, other = (ArtifactSynthesizer().sound("abc bcd\ncde", voice, seed) for seed in (1, 1, 2))
    assert [word for word, _, _ in one.words] == ["abc", "bcd", "cde"]
    assert np.array_equal(one.samples, same.samples) and not np.array_equal(one.samples, other.samples)
    times = [time for _, start, end in one.words for time in (start, end)]
    assert times == sorted(times) and 0 <= times[0] and times[-1] <= len(one.samples) / one.rate
    with pytest.raises(ConfigError, match="mood"):
        ArtifactSynthesizer().sound("abc", dataclasses.replace(voice, conditions=("mood=calm",)), 0)
