"""The parts of LLaMA-Omni against Transformers, and what is put together of it (`tools/reference/omni.py`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file

from moshijax.nn.rope import RopeScaling
from moshijax.omni import adapter, spectrogram, speech_decoder, text_model, training, vocoder, whisper
from moshijax.omni.adapter import AdapterConfig
from moshijax.omni.config import llama_stack
from moshijax.omni.speech_decoder import SpeechDecoderConfig
from moshijax.weights.formats import llama_omni
from moshijax.weights.names import Renamed
from moshijax.weights.omni import load_text_model, load_vocoder, load_whisper, save_whisper
from moshijax.weights.tensors import InMemory
from tests.parity.weights_by_name import clip, fill, load_fixture, tokens, write_checkpoint

#: Of the long text, both ends of so many positions are kept.
KEPT = 8
Parts = dict[str, tuple[np.ndarray, np.ndarray]]


def text_model_parts(name: str, folder: Path, length: int | None = None) -> Parts:
    """States and logits, ours and theirs, of the first `length` positions, or of all."""
    description, want = load_fixture(name)
    config, params = load_text_model(write_checkpoint(folder, description))
    shape = (len(want["logits"]), description["length"])
    ids = tokens(description["ids_seed"], shape, config.vocab)[:, :length]

    @jax.jit
    def run(params, ids):
        hidden = text_model.hidden(config, params, text_model.embed(config, params, ids))
        if ids.shape[1] > want["hidden"].shape[1]:
            hidden = jnp.concatenate([hidden[:, :KEPT], hidden[:, -KEPT:]], axis=1)
        return hidden, text_model.logits(config, params, hidden)

    hidden, logits = run(params, ids)
    kept = hidden.shape[1]
    return {"states": (hidden, want["hidden"][:, :kept]), "logits": (logits, want["logits"][:, :kept])}


@cache
def log_mel(bands: int) -> np.ndarray:
    """Frames of the maker's clips: one that is cut, one with silence behind it, and silence."""
    noise = clip(range(40), 16000)
    quiet = np.zeros(16000, np.float32)
    clips = [noise, np.concatenate([noise[: 4 * 16000], quiet, quiet]), quiet]
    function = jax.jit(spectrogram.log_mel, static_argnums=1)
    return np.concatenate([function(x[None], bands) for x in clips])


def whisper_parts(folder: Path) -> Parts:
    """Log-mel frames of both kinds, and features."""
    description, want = load_fixture("omni_whisper")
    config, params = load_whisper(write_checkpoint(folder, description))
    features = jax.jit(whisper.encode, static_argnums=0)(config, params, log_mel(config.mels))
    mel = {f"log-mel frames, {n} bands": (log_mel(n)[:, want["frames"]], want[f"mel_{n}"]) for n in (80, 128)}
    return {**mel, "features": (features[:, ::25], want["features"])}


def speech_parts() -> Parts:
    """Embeddings of the adapter and logits of the speech decoder, read by their published names."""
    description, want = load_fixture("omni_speech")
    stack = llama_stack(32, 2, 4, 4, 48, max_period=500000.0, rope_scaling=RopeScaling(), context=300)
    adapting, decoding = AdapterConfig(24, 32, 40), SpeechDecoderConfig(32, 50, stack)
    groups = llama_omni.adapter_groups(adapting) + llama_omni.decoder_groups(decoding)
    filled = InMemory(fill(description["tensors"], description["seed"]))
    params = unflatten_dict(dict(Renamed(filled, groups, reading=True)), sep="/")

    whole = jax.jit(speech_decoder.logits, static_argnums=0)(decoding, params["decoder"], want["states"])
    step = jax.jit(speech_decoder.step, static_argnums=0)
    state, steps = speech_decoder.init_state(decoding, 2), []
    for t in range(3):
        state, logits = step(decoding, params["decoder"], state, want["states"][:, t : t + 1])
        steps.append(logits)
    return {
        "adapter": (adapter.adapt(adapting, params["adapter"], want["features"]), want["embeddings"]),
        "speech decoder, whole sequence": (whole, want["logits"]),
        "speech decoder, step by step": (np.concatenate(steps, axis=1), want["logits"][:, : 3 * decoding.upsample]),
    }


def vocoder_parts(folder: Path) -> Parts:
    """Durations and the waveform."""
    description, want = load_fixture("omni_vocoder")
    config, params = load_vocoder(write_checkpoint(folder, description))
    durations = np.asarray(vocoder.durations(config, params, want["units"]))
    waveform = vocoder.vocode(config, params, want["units"][0])
    assert waveform.shape == (config.hop * durations.sum(),)
    return {"durations": (durations, want["durations"]), "waveform": (waveform, want["waveform"])}


def ctc_parts() -> Parts:
    """The loss of every answer, and the gradient of their sum over the number of units."""
    description, want = load_fixture("omni_ctc")
    logits, units = want["logits"], np.where(want["units"] < 0, training.NONE, want["units"])
    blank = logits.shape[2] - 1
    most = logits.shape[1], units.shape[1]
    source, lengths = training.stretched(want["states"], want["counts"], description["upsample"], *most)
    np.testing.assert_array_equal(lengths, want["lengths"])

    def loss(logits):
        spread = jnp.take_along_axis(logits, source[..., None], axis=1)
        found = training.ctc(spread, lengths, units, blank)
        return found.sum() / want["counts"].sum(), found

    gradient, found = jax.jit(jax.grad(loss, has_aux=True))(logits)
    return {"CTC loss": (found, want["loss"]), "CTC gradient": (gradient, want["gradient"])}


def parts(name: str, folder: Path) -> Parts:
    """Everything of a fixture, as the page of parity shows it."""
    made = {"omni_whisper": whisper_parts, "omni_vocoder": vocoder_parts}
    if name in ("omni_speech", "omni_ctc"):
        return speech_parts() if name == "omni_speech" else ctc_parts()
    return made[name](folder) if name in made else text_model_parts(name, folder)


def check(found: Parts, tolerance: float = 1e-4) -> None:
    for part, (ours, theirs) in found.items():
        np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance, err_msg=part)


@pytest.mark.parametrize(
    ("name", "length"),
    [("omni_llama", KEPT), pytest.param("omni_llama", None, marks=pytest.mark.slow), ("omni_qwen2", None)],
)
def test_text_models(name, length, tmp_path):
    """Llama untied with shared keys, and its scaled rotations at the end of 8400 positions; Qwen2 tied, with biases."""
    check(text_model_parts(name, tmp_path / name, length))


def test_whisper(tmp_path):
    found = whisper_parts(tmp_path / "saved")
    check(found)
    for bands in (80, 128):
        ours, theirs = found[f"log-mel frames, {bands} bands"]
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert log_mel(80).shape == (3, 3000, 80)


def test_the_encoder_under_the_names_of_openai(tmp_path):
    description, _ = load_fixture("omni_whisper")
    config, params = load_whisper(write_checkpoint(tmp_path / "saved", description))
    save_whisper(config, params, tmp_path / "openai", "openai")
    found, read = load_whisper(tmp_path / "openai")
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_the_loss_of_units_is_that_of_pytorch():
    """Mixed lengths, an answer without units, and one with more units than repetitions; blank is the last class."""
    check(ctc_parts())


def test_adapter_and_speech_decoder():
    check(speech_parts())


def test_the_vocoder(tmp_path):
    found = vocoder_parts(tmp_path / "normed")
    check(found)
    np.testing.assert_array_equal(*found["durations"])
    assert len(np.unique(found["durations"][0])) > 3


def test_weight_norm_under_its_newer_names(tmp_path):
    description, _ = load_fixture("omni_vocoder")
    folder = write_checkpoint(tmp_path / "normed", description)
    _, params = load_vocoder(folder)
    newer = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    renamed = {}
    for name, array in fill(description["tensors"], description["seed"]).items():
        stem, _, last = name.rpartition(".")
        renamed[f"{stem}.{newer.get(last, last)}"] = array
    save_file(renamed, str(folder / "model.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, load_vocoder(folder)[1], params)
