"""Reference numbers of the classes of Hugging Face Transformers, loaded from files that they saved themselves."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import moshi.models.lm as reference_lm
import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.models.mimi.modeling_mimi import MimiEuclideanCodebook

from tests.parity import weights_by_name
from tools.reference.models import MARGIN, MARGINS, save

MIMI = {
    **{"hidden_size": 32, "num_filters": 4, "codebook_size": 64, "codebook_dim": 16, "num_quantizers": 8},
    **{"vector_quantization_hidden_dimension": 16, "num_hidden_layers": 2, "intermediate_size": 64},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": 20, "upsample_groups": 32},
    **{"layer_scale_initial_scale": 1.0, "head_dim": 16},
}
# The language models of this version do not apply the window that their config states: inputs stay inside it.
_STACK = {
    **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 352, "sliding_window": 32},
    **{"max_position_embeddings": 40, "head_dim": 16},
}
MOSHI = {
    **_STACK,
    **{"vocab_size": 48, "num_codebooks": 3, "audio_vocab_size": 40},
    "audio_encoder_config": {"model_type": "mimi", **MIMI},
    "depth_decoder_config": {
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 176, "head_dim": 16},
        **{"max_position_embeddings": 4, "sliding_window": 3},
    },
}
SPEECH_TO_TEXT = {
    **_STACK,
    **{"vocab_size": 51, "codebook_vocab_size": 65, "num_codebooks": 8, "audio_bos_token_id": 64},
    **{"audio_pad_token_id": 51 + 8 * 65, "pad_token_id": 3, "bos_token_id": 50},
    "num_key_value_heads": 2,
    "codec_config": {"model_type": "mimi", **MIMI},
}
#: Tensors whose last row stands for no token.
ZERO_ROWS = ("model.embed_tokens.embed_tokens.weight", "lm_head.weight")


def watch_codebooks() -> None:
    original = MimiEuclideanCodebook.quantize

    def quantize(self, x):
        distances = torch.cdist(x[None].double(), self.embed[None].double(), p=2)[0]
        best = distances.topk(2, dim=-1, largest=False).values
        MARGINS.add(best[:, 1] - best[:, 0])
        return original(self, x)

    MimiEuclideanCodebook.quantize = quantize


def build(kind: type, config, seed: int) -> tuple[torch.nn.Module, dict]:
    """Return the class with weights by name, and the description of its file."""
    with tempfile.TemporaryDirectory() as scratch:
        kind(config).save_pretrained(scratch)
        file = Path(scratch) / "model.safetensors"
        with safe_open(file, "pt") as tensors:
            shapes = {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
        zero_rows = [name for name in ZERO_ROWS if name in shapes]
        filled = weights_by_name.fill(shapes, seed, zero_rows)
        save_file({name: torch.from_numpy(value) for name, value in filled.items()}, file, {"format": "pt"})
        fields = json.loads((Path(scratch) / "config.json").read_text())
        model = kind.from_pretrained(scratch, dtype=torch.float32).eval()
    description = {"config": fields, "seed": seed, "tensors": shapes, "zero_rows": zero_rows}
    return model, {**description, "class": kind.__name__, "transformers": transformers.__version__}


@torch.no_grad()
def make_mimi(out: Path, name: str) -> None:
    model, description = build(transformers.MimiModel, transformers.MimiConfig(**MIMI), 300)
    size, frames = model.config.frame_size, 12
    # Whole frames: a last, incomplete one is padded layer by layer there, and comes out differently.
    for attempt in range(1000):
        seeds = [[9000 + 1000 * attempt + 100 * row + t for t in range(frames)] for row in range(2)]
        clips = [weights_by_name.clip(row, size) for row in seeds]
        MARGINS.start()
        codes = model.encode(torch.from_numpy(np.stack(clips))[:, None], num_quantizers=8).audio_codes
        if MARGINS.smallest > MARGIN:
            break
    else:
        raise SystemExit(f"{name}: no clip with margins above {MARGIN}")
    decoded = model.decode(codes).audio_values[:, 0].numpy()
    print(f"  attempt {attempt}, scale of the waveform {decoded.std():.3f}, codes {tuple(codes.shape)}")
    description |= {"kind": "mimi", "frame_size": size, "frame_seeds": seeds}
    description["margin"] = MARGINS.smallest
    save(out, name, description, {"codes": codes.numpy().astype(np.int32), "decoded": decoded})


def sequence(codes: torch.Tensor, delays: list[int], text_card: int, card: int) -> torch.Tensor:
    """Return the initial column followed by the delayed codes."""
    first = torch.full((codes.shape[0], codes.shape[1], 1), card)
    first[:, 0] = text_card
    return torch.cat([first, reference_lm._delay_sequence(delays, codes, first)], dim=2)


@torch.no_grad()
def make_moshi(out: Path, name: str) -> None:
    model, description = build(transformers.MoshiForConditionalGeneration, transformers.MoshiConfig(**MOSHI), 301)
    steps, books, text_card, card = 24, 3, 48, 40
    delays = [0, *([0] + [1] * (books - 1)) * 2]
    text = weights_by_name.tokens(301, (2, 1, steps), text_card)
    audio = weights_by_name.tokens(302, (2, 2 * books, steps), card)
    codes = torch.from_numpy(np.concatenate([text, audio], 1))
    inputs = sequence(codes, delays, text_card, card)
    before, after = inputs[:, :, :-1], inputs[:, :, 1:]
    output = model(
        input_ids=before[:, 0], moshi_audio_codes=before[:, 1 : 1 + books], user_audio_codes=before[:, 1 + books :]
    )
    z = output.last_hidden_state.reshape(-1, 1, 64)
    tokens = after[:, :books].transpose(1, 2).reshape(-1, books)
    depth = model.depth_decoder(input_ids=tokens, last_hidden_state=z.expand(-1, books, -1)).logits
    depth = depth.reshape(2, steps, books, card).transpose(1, 2)
    logits, mask = reference_lm._undelay_sequence(delays[1 : 1 + books], depth, fill_value=0.0)
    arrays = {
        "codes": codes.numpy().astype(np.int32),
        "text_logits": output.logits[:, None].numpy(),
        "logits": logits.numpy(),
        "mask": mask.expand(2, -1, -1).numpy(),
    }
    print(f"  text logits {arrays['text_logits'].std():.2f}, audio logits {arrays['logits'].std():.2f}")
    save(out, name, {**description, "kind": "moshi"}, arrays)


@torch.no_grad()
def make_speech_to_text(out: Path, name: str) -> None:
    kind = transformers.KyutaiSpeechToTextForConditionalGeneration
    model, description = build(kind, transformers.KyutaiSpeechToTextConfig(**SPEECH_TO_TEXT), 303)
    steps, books, text_card, card = 24, 8, 50, 64
    text = weights_by_name.tokens(303, (2, 1, steps), text_card)
    audio = weights_by_name.tokens(304, (2, books, steps), card)
    codes = torch.from_numpy(np.concatenate([text, audio], 1))
    inputs = sequence(codes, [0] * (1 + books), text_card, card)[:, :, :-1]
    logits = model(input_ids=inputs.transpose(1, 2)).logits[..., :text_card]
    arrays = {"codes": codes.numpy().astype(np.int32), "text_logits": logits[:, None].numpy()}
    print(f"  text logits {arrays['text_logits'].std():.2f}")
    save(out, name, {**description, "kind": "speech_to_text"}, arrays)


def makers(out: Path) -> dict[str, Callable[[], None]]:
    """Return the makers of fixtures by name."""
    watch_codebooks()
    return {
        "hf_mimi": partial(make_mimi, out, "hf_mimi"),
        "hf_moshi": partial(make_moshi, out, "hf_moshi"),
        "hf_speech_to_text": partial(make_speech_to_text, out, "hf_speech_to_text"),
    }
