"""Reference numbers of the parts of LLaMA-Omni, from Transformers.

Three parts are in no package that can be installed, and are put together here: the adapter of two linear maps; the
speech decoder of a `LlamaModel`, whose final norm is the identity, between two linear maps; the unit vocoder of a
table, a `SpeechT5HifiGan`, which is the same generator under other names, and a duration predictor of PyTorch's layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn

from tests.parity import weights_by_name
from tools.reference.models import save
from tools.reference.transformers import build

_SCALED = {
    "rope_type": "llama3",
    **{"rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 8192,
}
_SIZES = {
    **{"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "intermediate_size": 48},
}
LLAMA = {
    **_SIZES,
    **{"rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "tie_word_embeddings": False},
    "rope_parameters": _SCALED,
}
QWEN2 = {
    **_SIZES,
    **{"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "tie_word_embeddings": True},
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
WHISPER = {
    **{"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "num_mel_bins": 128},
    **{"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "vocab_size": 61, "pad_token_id": 0},
    **{"bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1, "activation_function": "gelu"},
}
VOCODER = {
    **{"num_embeddings": 50, "embedding_dim": 16, "model_in_dim": 16, "upsample_rates": [5, 4, 4, 2, 2]},
    **{"upsample_kernel_sizes": [11, 8, 8, 4, 4], "upsample_initial_channel": 32, "resblock": "1"},
    **{"resblock_kernel_sizes": [3, 7, 11], "resblock_dilation_sizes": [[1, 3, 5]] * 3},
    **{"sampling_rate": 16000, "code_hop_size": 320},
    "dur_predictor_params": {
        **{"encoder_embed_dim": 16, "var_pred_hidden_dim": 16, "var_pred_kernel_size": 3, "var_pred_dropout": 0.5}
    },
}
#: Positions of the text model's long input, and how many of its ends are kept.
LONG, KEPT = 8400, 8


@torch.no_grad()
def make_text_model(out: Path, name: str, kind: type, config, seed: int, length: int) -> None:
    """Record states and logits of two rows, or of the ends of a long one."""
    config._attn_implementation = "sdpa"
    model, description = build(kind, config, seed)
    rows = 1 if length == LONG else 2
    ids = torch.from_numpy(weights_by_name.tokens(seed, (rows, length), config.vocab_size))
    output = model(ids, output_hidden_states=True)
    kept = slice(None) if length != LONG else np.r_[:KEPT, length - KEPT : length]
    arrays = {"hidden": output.hidden_states[-1][:, kept].numpy(), "logits": output.logits[:, kept].numpy()}
    assert torch.equal(output.hidden_states[-1], model.model(ids).last_hidden_state)
    print(f"  logits {arrays['logits'].std():.2f}")
    save(out, name, {**description, "kind": "text", "length": length, "ids_seed": seed}, arrays)


def clips() -> list[np.ndarray]:
    """Return a clip that is cut, one with silence behind it, and silence alone."""
    silence = np.zeros(16000, np.float32)
    noise = weights_by_name.clip(range(40), 16000)
    return [noise, np.concatenate([noise[: 4 * 16000], silence, silence]), silence]


@torch.no_grad()
def make_whisper(out: Path, name: str) -> None:
    """Record log-mel frames, as the extractor computes them in float64, and the features of the clips."""
    model, description = build(transformers.WhisperForConditionalGeneration, transformers.WhisperConfig(**WHISPER), 310)
    arrays = {}
    for bands in (80, 128):
        extractor = transformers.WhisperFeatureExtractor(feature_size=bands)
        padded = [np.pad(clip[:480000], (0, max(0, 480000 - len(clip)))) for clip in clips()]
        exact = [extractor._np_extract_fbank_features(clip[None].astype(np.float64), "cpu") for clip in padded]
        mel = np.concatenate(exact)
        other = extractor(clips(), sampling_rate=16000, return_tensors="np").input_features
        print(f"  {bands} bands: the extractor's two ways differ by {np.abs(mel - other).max():.2g}")
        frames = np.r_[0:20, 380:420, 590:610, 2980:3000]
        arrays[f"mel_{bands}"] = mel.transpose(0, 2, 1)[:, frames].astype(np.float32)
    features = model.model.encoder(torch.from_numpy(mel.astype(np.float32))).last_hidden_state
    arrays |= {"frames": frames, "features": features[:, ::25].numpy()}
    print(f"  features {features.std():.2f}")
    save(out, name, {**description, "kind": "whisper"}, arrays)


class Adapter(nn.Module):
    """Five features at a time through two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(5 * 24, 40), nn.Linear(40, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, : x.shape[1] // 5 * 5].contiguous().view(x.shape[0], -1, 5 * x.shape[2])
        return self.linear2(torch.relu(self.linear1(x)))


class SpeechDecoder(nn.Module):
    """Every state 25 times, then the layers of a Llama without its final norm."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {**_SIZES, "num_key_value_heads": 4, "vocab_size": 1}
        llama = transformers.LlamaModel(transformers.LlamaConfig(**{**LLAMA, **sizes}))
        self.input_proj, self.output_proj = nn.Linear(32, 32), nn.Linear(32, 51)
        self.layers = llama.layers
        llama.norm = nn.Identity()
        self.llama = [llama]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.input_proj(x.repeat_interleave(25, dim=1))
        return self.output_proj(self.llama[0](inputs_embeds=x).last_hidden_state)


def filled(module: nn.Module, prefix: str, seed: int) -> dict[str, list[int]]:
    """Fill a module's parameters by their names, and return names and shapes."""
    shapes = {prefix + name: list(value.shape) for name, value in module.state_dict().items()}
    values = weights_by_name.fill(shapes, seed)
    module.load_state_dict({name.removeprefix(prefix): torch.from_numpy(value) for name, value in values.items()})
    module.eval()
    return shapes


@torch.no_grad()
def make_speech(out: Path, name: str) -> None:
    """Record what adapter and speech decoder make of random inputs."""
    seed = 320
    adapter, decoder = Adapter(), SpeechDecoder()
    shapes = filled(adapter, "model.speech_projector.", seed) | filled(decoder, "speech_generator.", seed)
    features = weights_by_name.uniform(np.random.RandomState(seed), (2, 33, 24))
    states = weights_by_name.uniform(np.random.RandomState(seed + 1), (2, 9, 32))
    arrays = {
        **{"features": features, "embeddings": adapter(torch.from_numpy(features)).numpy()},
        **{"states": states, "logits": decoder(torch.from_numpy(states)).numpy()},
    }
    best = torch.from_numpy(arrays["logits"]).topk(2, dim=-1).values
    description = {"seed": seed, "tensors": shapes, "kind": "speech", "transformers": transformers.__version__}
    save(out, name, {**description, "margin": float((best[..., 0] - best[..., 1]).min())}, arrays)


def make_ctc(out: Path, name: str) -> None:
    """Record the loss of the published training code and its gradient, of answers of several lengths.

    The last answer has more units than 5 per state, so that its alignment is longer; the one before has none. All rows
    of an alignment are spread over the states by a ratio in float32, as `speech_generator.py` does it.
    """
    seed, upsample, classes = 340, 5, 12
    states, counts = [9, 3, 6, 4, 2], [20, 7, 30, 0, 23]
    random = np.random.RandomState(seed)
    logits = torch.from_numpy(weights_by_name.uniform(random, (5, max(states), classes)) * 3).requires_grad_()
    units = np.full((5, max(counts)), -100, np.int64)
    for row, count in enumerate(counts):
        drawn = random.randint(0, classes - 1, 1)
        for _ in range(count - 1):  # no two neighbours are equal
            drawn = np.append(drawn, (drawn[-1] + random.randint(1, classes - 1)) % (classes - 1))
        units[row, :count] = drawn[:count]
    lengths = torch.maximum(torch.tensor(states) * upsample, torch.tensor(counts))
    ratio = lengths.float() / torch.tensor(states).float()
    source = torch.floor(torch.arange(int(lengths.max())).float()[None] / ratio[:, None]).long()
    source = source.clamp(max=max(states) - 1)
    spread = torch.gather(logits, 1, source[..., None].expand(-1, -1, classes))
    found = nn.functional.ctc_loss(
        spread.log_softmax(-1).transpose(0, 1),
        torch.from_numpy(np.concatenate([row[:count] for row, count in zip(units, counts, strict=True)])),
        *(lengths, torch.tensor(counts)),
        blank=classes - 1, reduction="none", zero_infinity=True,
    )  # fmt: skip
    (found.sum() / sum(counts)).backward()
    arrays = {
        **{"logits": logits.detach().numpy(), "states": np.int32(states), "counts": np.int32(counts)},
        **{"units": units.astype(np.int32), "lengths": lengths.numpy().astype(np.int32)},
        **{"loss": found.detach().numpy(), "gradient": logits.grad.numpy()},
    }
    save(out, name, {"seed": seed, "upsample": upsample, "kind": "ctc", "torch": torch.__version__}, arrays)


class DurationPredictor(nn.Module):
    """Convolution, rectifier and layer norm, twice; then one number."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Sequential(nn.Conv1d(dim, dim, 3, padding=1), nn.ReLU()) for _ in range(2))
        self.ln1, self.ln2, self.proj = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.Linear(dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.ln1(self.conv1(x.transpose(1, 2)).transpose(1, 2))
        x = self.ln2(self.conv2(x.transpose(1, 2)).transpose(1, 2))
        return torch.clamp(torch.round(torch.exp(self.proj(x)[..., 0]) - 1), min=1).long()


def published_name(name: str) -> str:
    """Return fairseq's name of a tensor of the generator, with the older names of weight norm."""
    for theirs, fairseq in (
        ("upsampler.", "ups."),
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    ):
        name = name.replace(theirs, fairseq)
    return name


@torch.no_grad()
def make_vocoder(out: Path, name: str) -> None:
    """Record durations and waveforms of units; the weights are drawn under the names of weight norm."""
    seed = 330
    c = VOCODER
    generator = transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(
            **{"model_in_dim": c["model_in_dim"], "sampling_rate": c["sampling_rate"], "normalize_before": False},
            **{key: c[key] for key in c if key.startswith(("upsample", "resblock_"))},
            leaky_relu_slope=0.1,
        )
    )
    generator.apply_weight_norm()
    table, predictor = nn.Embedding(c["num_embeddings"], c["embedding_dim"]), DurationPredictor(c["embedding_dim"])
    published = {name: published_name(name) for name in generator.state_dict() if name not in ("mean", "scale")}
    shapes = {published[name]: list(value.shape) for name, value in generator.state_dict().items() if name in published}
    values = weights_by_name.fill(shapes, seed)
    loaded = {name: torch.from_numpy(values[other]) for name, other in published.items()}
    generator.load_state_dict(loaded, strict=False)
    shapes |= filled(table, "dict.", seed) | filled(predictor, "dur_predictor.", seed)
    units = weights_by_name.tokens(seed, (1, 12), c["num_embeddings"])
    embedded = table(torch.from_numpy(units))
    frames = predictor(embedded)
    wave = generator(torch.repeat_interleave(embedded[0], frames[0], dim=0))
    print(f"  durations {frames.tolist()}, waveform {wave.std():.3f}")
    arrays = {"units": units.astype(np.int32), "durations": frames.numpy().astype(np.int32), "waveform": wave.numpy()}
    description = {"seed": seed, "tensors": shapes, "kind": "vocoder", "config": c}
    save(out, name, {**description, "transformers": transformers.__version__}, arrays)


def makers(out: Path) -> dict[str, Callable[[], None]]:
    """Return the makers of fixtures by name."""
    llama = (transformers.LlamaForCausalLM, transformers.LlamaConfig(**LLAMA))
    qwen2 = (transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**QWEN2))
    return {
        "omni_llama": partial(make_text_model, out, "omni_llama", *llama, 311, LONG),
        "omni_qwen2": partial(make_text_model, out, "omni_qwen2", *qwen2, 312, 24),
        "omni_whisper": partial(make_whisper, out, "omni_whisper"),
        "omni_speech": partial(make_speech, out, "omni_speech"),
        "omni_vocoder": partial(make_vocoder, out, "omni_vocoder"),
        "omni_ctc": partial(make_ctc, out, "omni_ctc"),
    }
