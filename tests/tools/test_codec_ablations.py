"""The variants of tools/studies/codec_ablations.py are experiments that can be run, and differ as their names say."""

from __future__ import annotations

import pytest

from moshijax import config
from tools.studies.codec_ablations import VARIANTS


@pytest.fixture(scope="module")
def variants():
    return {
        name: config.load(recipe, [word.removeprefix("--gin.").format(runs="runs") for word in more])
        for name, (recipe, *more) in VARIANTS.items()
    }


def test_one_thing_at_a_time_differs(variants):
    full = variants["full"]
    for name in ("no teacher", "no dropout", "first level taught"):
        other = variants[name]
        assert (other.steps, other.optimizer) == (full.steps, full.optimizer)
        assert other.task.audio == full.task.audio
        assert other.task != full.task
    assert not (variants["no teacher"].task.loss.distillation or variants["no teacher"].task.loss.latent_distillation)
    assert full.task.quantizer.dropout and not variants["no dropout"].task.quantizer.dropout
    taught = variants["first level taught"].task
    assert taught.quantizer == variants["no dropout"].task.quantizer and taught.model.quantizer.semantic == 7


def test_both_published_variants_have_discriminators_and_the_continued_one_has_none(variants):
    adversarial, both, plain = (variants[x] for x in ("adversarial", "with reconstruction", "continued"))
    assert adversarial.task.discriminators == both.task.discriminators is not None
    assert not adversarial.task.loss.mel and both.task.loss.mel and both.task.loss.waveform
    assert plain.task.discriminators is None
    assert {run.init_from for run in (adversarial, both, plain)} == {"runs/full"}
    for setting in ("steps", "seed"):
        assert getattr(plain, setting) == getattr(adversarial, setting)
    assert plain.task.audio.data == adversarial.task.audio.data
