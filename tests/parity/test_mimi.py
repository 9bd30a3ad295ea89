"""The codec against numbers of the PyTorch package: latents and samples within 1e-4, codes equal."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax import codec
from moshijax.weights import load_mimi
from tests.parity.weights_by_name import clip, load_fixture, write_checkpoint

TOLERANCE = 1e-4


class Case:
    """A fixture, its model read from the published file form, and its input."""

    def __init__(self, name: str, directory):
        self.description, self.want = load_fixture(name)
        self.config, self.params = load_mimi(write_checkpoint(directory / name, self.description))
        self.fast = codec.inference_layout(self.config, self.params)
        rows = [clip(seeds, self.config.frame_size) for seeds in self.description["frame_seeds"]]
        self.waveform = np.stack(rows)
        if "length" in self.description:
            self.waveform[:, self.description["length"] :] = 0

    def stream(self, ring, codes=None, active=None, reset=None, waveform=None):
        """Frame by frame: latents, codes and samples (of the given codes)."""
        config = replace(self.config, ring=ring)
        size = config.frame_size
        waveform = self.waveform if waveform is None else waveform
        batch = waveform.shape[0]
        state = codec.init_encoder_state(config, batch) | codec.init_decoder_state(config, batch)
        mimi = codec.Mimi(config)

        @jax.jit
        def frame(params, state, pcm, codes, active, reset):
            state = codec.reset_state(config, state, reset)
            encoder, latent = mimi.apply(params, state["encoder"], pcm, active, method="encode_latent_step")
            found = mimi.apply(params, latent, method="quantize")
            decoder, out = mimi.apply(params, state["decoder"], codes, active, method="decode_step")
            return {"encoder": encoder, "decoder": decoder}, latent, found, out

        outs = []
        for t in range(waveform.shape[1] // size):
            on = np.ones(batch, bool) if active is None else active[t]
            off = np.zeros(batch, bool) if reset is None else reset[t]
            pcm = waveform[:, t * size : (t + 1) * size]
            state, *out = frame(self.fast, state, pcm, codes[:, :, t : t + 1], on, off)
            outs.append(out)
        latent, found, pcm = zip(*outs, strict=True)
        return np.concatenate(latent, 1), np.concatenate(found, 2), np.concatenate(pcm, 1)


@pytest.fixture(scope="module", params=["mimi_small", "mimi_variant"])
def small(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp("weights"))


def close(got, want, tolerance=TOLERANCE):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("layout", ["params", "fast"])
def test_whole_file(small, layout):
    params = getattr(small, layout)
    close(codec.encode_latent(small.config, params, small.waveform), small.want["latent"])
    codes = codec.encode(small.config, params, small.waveform)
    np.testing.assert_array_equal(codes, small.want["codes"])
    close(codec.decode(small.config, params, codes), small.want["decoded"])
    close(codec.decode(small.config, params, codes[:, :1]), small.want["decoded_semantic_only"])


def test_any_length(small):
    for i, length in enumerate(small.description["lengths"]):
        short = small.waveform[:1, :length]
        np.testing.assert_array_equal(codec.encode(small.config, small.params, short), small.want[f"codes_length_{i}"])
        close(codec.encode_latent(small.config, small.params, short), small.want[f"latent_length_{i}"])


def test_streaming_with_the_reference_ring(small):
    latent, codes, pcm = small.stream("window", small.want["codes"])
    close(latent, small.want["stream_latent"])
    np.testing.assert_array_equal(codes, small.want["stream_codes"])
    close(pcm, small.want["stream_decoded"])
    # Beyond the window the reference's streaming path differs from its own whole-file path; so does ours in this mode.
    assert np.abs(small.want["stream_latent"] - small.want["latent"]).max() > 10 * TOLERANCE
    assert np.abs(latent - small.want["latent"]).max() > 10 * TOLERANCE


def test_streaming_with_the_exact_ring_equals_whole_file(small):
    latent, codes, pcm = small.stream("exact", small.want["codes"])
    close(latent, small.want["latent"])
    np.testing.assert_array_equal(codes, small.want["codes"])
    close(pcm, small.want["decoded"])


def test_frozen_and_reset_rows(small):
    active, reset = small.want["active"], small.want["reset"]
    rows = [0, 1, 0]
    latent, codes, pcm = small.stream("window", small.want["codes"][rows], active, reset, small.waveform[rows])
    frames = active.T[:, :, None]  # outputs of frozen rows mean nothing
    close(latent * frames, small.want["masked_latent"] * frames)
    np.testing.assert_array_equal(codes * active.T[:, None], small.want["masked_codes"] * active.T[:, None])
    samples = np.repeat(active.T, small.config.frame_size, axis=1)
    close(pcm * samples, small.want["masked_decoded"] * samples)


@pytest.fixture(scope="module", params=["mimi_full", "mimi_full_long"])
def full(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp("weights"))


def test_published_sizes(full):
    """The full-size codec, whole-file and streaming; the long clip passes the attention window."""
    want, kept = full.want, full.want["kept_frames"]
    waveform = full.waveform[:, : full.description["length"]]
    count = want["codes"].shape[1]

    def by_frame(pcm):
        return np.asarray(pcm).reshape(pcm.shape[0], -1, full.config.frame_size)[:, kept]

    close(np.asarray(codec.encode_latent(full.config, full.fast, waveform))[:, kept], want["latent"])
    codes = codec.encode(full.config, full.fast, waveform, num_codebooks=count)
    np.testing.assert_array_equal(codes, want["codes"])
    close(by_frame(codec.decode(full.config, full.fast, codes)), want["decoded"])
    if "decoded_8" in want:
        close(by_frame(codec.decode(full.config, full.fast, codes[:, :8])), want["decoded_8"])

    latent, codes, pcm = full.stream("window", want["codes"])
    close(latent[:, kept], want["stream_latent"])
    np.testing.assert_array_equal(codes[:, :count], want["stream_codes"])
    close(by_frame(pcm), want["stream_decoded"])
    if latent.shape[1] > 125:
        latent, codes, pcm = full.stream("exact", want["codes"])
        close(latent[:, kept], want["latent"])
        np.testing.assert_array_equal(codes[:, :count], want["codes"])
        close(by_frame(pcm), want["decoded"])


def test_published_file_size(tmp_path):
    """318 tensors, 384 644 900 bytes: the names, shapes and types are those of the released file."""
    description, _ = load_fixture("mimi_full")
    path = write_checkpoint(tmp_path / "full", description) / "model.safetensors"
    assert len(description["tensors"]) == 318
    assert path.stat().st_size == 384_644_900
    assert sum(int(np.prod(shape)) for shape in description["tensors"].values()) == 96_151_393
    shapes = jax.eval_shape(lambda key: codec.init(codec.configs.MIMI, key), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 79_308_609
    assert jnp.float32 == shapes["params"]["decoder"]["seanet"]["parts_0"]["kernel"].dtype
