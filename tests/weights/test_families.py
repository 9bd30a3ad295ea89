"""Families of models: a third one is one entry in the table, and everything that opens or writes models knows it."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moshijax import weights
from moshijax.errors import ConfigError, DataError
from moshijax.weights import families, writer
from moshijax.weights.compare import compare_numbers
from moshijax.weights.families.family import Family
from moshijax.weights.model import Provenance
from moshijax.weights.opening import open_model
from moshijax.weights.table import plain
from moshijax.weights.transfer import export_weights, import_weights
from moshijax.weights.verify import verify
from tests.weights.test_lm import PUBLISHED, published_tensors, write


@dataclasses.dataclass(frozen=True)
class GainConfig:
    channels: int = 3


class GainFamily(Family):
    """One vector, which published files call `gain`."""

    kind, title, config_class = "gain", "a gain", GainConfig
    record_kind, record_arrays = "gain", ("wave", "louder")

    def abstract(self, config, stacked=False):
        return {"scale": {"kernel": jax.ShapeDtypeStruct((config.channels,), np.float32)}}

    def table(self, config):
        return {"gain": plain((config.channels,), "scale/kernel")}

    def claims(self, published):
        return "gain_channels" in published.fields

    def open_published(self, published, config=None):
        fields = published.fields
        config = GainConfig(fields["gain_channels"])
        return self.opened(config, published.tensors(), Provenance("kyutai", fields), published.file)

    def write_published(self, model, folder, format, max_bytes, progress):
        writer.write(folder / "model.safetensors", model.tensors, max_bytes, progress=progress)
        (folder / "config.json").write_text(json.dumps(dict(model.provenance.config)))

    def compare(self, config, params, arrays):
        return [compare_numbers("louder", arrays["wave"] * params["scale"]["kernel"], arrays["louder"])]


@pytest.fixture
def given(tmp_path, monkeypatch):
    # Where an entry of the table belongs: before the language models, which claim every other config.
    table = {"gain": GainFamily(), **families.FAMILIES}
    for kind in families.FAMILIES.copy():
        monkeypatch.delitem(families.FAMILIES, kind)
    for kind, family in table.items():
        monkeypatch.setitem(families.FAMILIES, kind, family)
    folder = tmp_path / "given"
    folder.mkdir()
    save_file({"gain": np.arange(3, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"gain_channels": 3}')
    return folder


def test_a_third_family_goes_in_and_out(given, tmp_path):
    ours = import_weights(given, tmp_path / "ours")
    assert (ours.family.kind, ours.config) == ("gain", GainConfig(3))
    np.testing.assert_array_equal(ours.load()[1]["scale"]["kernel"], np.arange(3))
    export_weights(open_model(tmp_path / "ours"), tmp_path / "back", "kyutai")
    np.testing.assert_array_equal(load_file(tmp_path / "back" / "model.safetensors")["gain"], np.arange(3))
    (given / "reference.json").write_text('{"kind": "gain"}')
    wave = np.ones(3, np.float32)
    np.savez(given / "reference.npz", wave=wave, louder=np.asarray([0, 1, 3], np.float32))
    (part,) = verify(given)
    assert (part.name, part.error, part.where) == ("louder", 1.0, (2,))


def test_what_a_family_does_not_have_is_refused(given, tmp_path):
    ours = open_model(given, "gain")
    with pytest.raises(ConfigError, match="is a gain, which takes no adapter"):
        ours.family.with_adapter(ours, tmp_path / "lora.safetensors")
    with pytest.raises(ConfigError, match="is a gain, which has no other released form"):
        ours.family.released(ours)
    assert ours.family.unmerged(ours) is ours


def test_a_codec_takes_no_adapter(tmp_path, cli):
    from tests.parity.weights_by_name import load_fixture, write_checkpoint

    description, _ = load_fixture("mimi_small")
    codec = write_checkpoint(tmp_path / "codec", description)
    code, _, err = cli("weights", "import", codec, tmp_path / "ours", "--adapter", tmp_path / "lora.safetensors")
    assert code == 2 and "is a codec, which takes no adapter" in err
    for option, message in (("--release", "no other released form"), ("--codec", "needs no other codec")):
        value = [codec] if option == "--codec" else []
        code, _, err = cli("weights", "export", codec, tmp_path / "out", "--format", "kyutai", option, *value)
        assert code == 2 and message in err


def test_a_kind_that_is_not_known(tmp_path):
    import_weights(write(tmp_path / "given", PUBLISHED, published_tensors(PUBLISHED)), tmp_path / "ours")
    description = json.loads((tmp_path / "ours" / "model.json").read_text())
    (tmp_path / "ours" / "model.json").write_text(json.dumps({**description, "kind": "video"}))
    with pytest.raises(DataError, match="model.json names the kind 'video'; this version knows omni, lm, codec"):
        weights.load_lm(tmp_path / "ours")
