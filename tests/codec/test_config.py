from __future__ import annotations

import subprocess
import sys

import pytest

from moshijax.codec import MimiConfig, QuantizerConfig, SeanetConfig
from moshijax.codec.configs import MIMI, TINY
from moshijax.errors import ConfigError
from moshijax.nn.transformer import TransformerConfig


def test_named_configs():
    assert (MIMI.frame_size, MIMI.resample_stride, MIMI.num_codebooks, MIMI.bins) == (1920, 2, 32, 2048)
    assert (TINY.frame_size, TINY.sample_rate, TINY.frame_rate) == (1920, 24_000, 12.5)
    assert hash(MIMI) != hash(TINY)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SeanetConfig(ratios=()), "ratios"),
        (lambda: SeanetConfig(ratios=(4, 0)), "ratios"),
        (lambda: SeanetConfig(n_filters=5), "multiple of compress"),
        (lambda: QuantizerConfig(num_codebooks=1), "semantic 1 must be"),
        (lambda: MimiConfig(frame_rate=13.0), "frame of"),
        (lambda: MimiConfig(frame_rate=0), "frame_rate 0"),
        (lambda: MimiConfig(seanet=SeanetConfig(dimension=64)), "transformer dim 512 must equal seanet dimension 64"),
        (lambda: MimiConfig(ring="loose"), "ring"),
        (lambda: MimiConfig(transformer=TransformerConfig(512, 8, 8, 2048)), "context"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_import_is_light():
    code = (
        "import sys, moshijax.codec, moshijax.codec.training; "
        "heavy = {'grain', 'gin', 'soundfile', 'soxr', 'tensorflow', 'torch', 'optax', 'orbax', 'jaxtyping'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
