"""A package with the calls, shapes, level and padding of audiosr 0.0.7, which adds nothing."""

from __future__ import annotations

from pathlib import Path

_STAND_IN = """
import numpy, soundfile
print("Loading AudioSR")  # it talks

def build_model(ckpt_path=None, config=None, device=None, model_name="basic"):
    return device

def super_resolution(model, file, seed=42, ddim_steps=200, guidance_scale=3.5, latent_t_per_second=12.8, config=None):
    print("sampling")
    assert (model, seed, ddim_steps, guidance_scale) == ("cpu", 42, 50, 3.5)
    samples, rate = soundfile.read(file)
    if len(samples) < 100:
        raise AssertionError(f"Waveform is too short, {len(samples)}")
    padded = numpy.zeros(-(-len(samples) // 245760) * 245760)
    padded[: len(samples)] = 0.5 * samples / abs(samples).max()
    return padded[None, None]
"""


def write_audiosr(folder: Path) -> Path:
    """Write the package into a folder, for PYTHONPATH; return the path of its weights, which are not there yet."""
    package, about = folder / "audiosr", folder / "audiosr-0.0.7.dist-info"
    package.mkdir()
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: audiosr\nVersion: 0.0.7\n")
    (package / "__init__.py").write_text(_STAND_IN)
    weights = folder / "pytorch_model.bin"
    (package / "utils.py").write_text(f"def download_checkpoint(name):\n    return {str(weights)!r}\n")
    return weights
