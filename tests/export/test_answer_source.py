"""A run of our own training becomes an artifact that is asked as the run was trained, and answers as its model does."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from moshijax import errors
from moshijax.cli.main import run
from moshijax.export import answer_source
from moshijax.omni import answer, configs, vocoder
from moshijax.omni.prompt import SPEECH, load_tokenizer, make_prompt
from moshijax.omni.vocoder import VocoderConfig
from moshijax.runtime import answers as answering
from moshijax.train.loop import train
from moshijax.weights.omni import save_vocoder
from tests.train.support.exchanges import omni_experiment, write_data

VOICE = VocoderConfig(units=20, dim=8, channels=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    write_data(path)
    whole = omni_experiment(path, steps=2)
    data = dataclasses.replace(whole.task.exchanges.data, trim=True)
    steps = dataclasses.replace(whole.task.exchanges, data=data)
    train(dataclasses.replace(whole, task=dataclasses.replace(whole.task, exchanges=steps)), path / "joint")
    train(omni_experiment(path, steps=1, stage="text"), path / "text")
    save_vocoder(VOICE, vocoder.init(VOICE, jax.random.key(0)), path / "voice")
    return path


def test_an_artifact_of_a_run_answers_as_its_model(folder):
    assert run(["export", str(folder / "joint"), str(folder / "artifact"), "--vocoder", str(folder / "voice")]) == 0
    artifact = answering.load(folder / "artifact")
    prompt = make_prompt(load_tokenizer(folder / "joint", 512), "Answer.", "Now.")
    said = artifact.manifest["prompt"]
    assert (said["before"], said["after"], said["trim"]) == (list(prompt.before), list(prompt.after), True)

    pcm = np.random.default_rng(0).uniform(-0.5, 0.5, 16000).astype(np.float32)
    pieces = list(answering.Answers(artifact).answer(pcm))
    model = answer_source.load(folder / "joint").model
    config = configs.NANO
    assert model[0] == config
    state = answer.encode_speech(config, model[1], answer.init_state(config, 1), pcm[None])
    ids = np.array([[*prompt.before, *[SPEECH] * (len(pcm) // said["row_samples"]), *prompt.after]])
    state, logits = answer.prefill(config, model[1], state, ids, np.array([ids.shape[1]]))
    assert pieces[0].token == int(logits[0].argmax())


def test_what_is_missing_is_said_before_the_model_is_read(folder, capfd):
    """In one line each: Orbax says nothing of the items of a checkpoint that are not read."""
    for options, code, message in (
        ((), 3, "is a LLaMA-Omni, a language model is needed; name one, or export this one with --vocoder"),
        (("--vocoder", str(folder / "nowhere")), 3, "nowhere is no directory"),
    ):
        assert run(["export", str(folder / "joint"), str(folder / "new"), *options]) == code
        err = capfd.readouterr().err
        assert message in err and err.count("\n") == 1, err
    assert not (folder / "new").exists()


def test_a_run_without_speech_is_refused(folder):
    with pytest.raises(errors.ConfigError, match="train stage 2 from it"):
        answer_source.load(folder / "text")
