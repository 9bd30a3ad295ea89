"""The parts of LLaMA-Omni in PyTorch: modules of Transformers, of the sizes that `tools.bench.omni` names."""

from __future__ import annotations

from typing import Any

import torch

_loaded: dict[str, Any] = {}


@torch.no_grad()
def load_omni(text: dict, decoder: dict, encoder: dict, vocoder: dict, upsample: int) -> dict:
    """Build the parts with random weights, and the caches of a prompt and of an answer so far."""
    import transformers
    from torch import nn

    def llama(sizes: dict, kind: type = transformers.LlamaModel) -> Any:
        config = transformers.LlamaConfig(**sizes, max_position_embeddings=8192)
        config._attn_implementation = "sdpa"
        return kind(config).eval()

    layers = llama({**decoder, "vocab_size": 1})
    layers.norm = nn.Identity()
    width = decoder["hidden_size"]
    _loaded.update(
        encoder=transformers.WhisperModel(transformers.WhisperConfig(**encoder)).encoder.eval(),
        text=llama(text, transformers.LlamaForCausalLM),
        decoder=layers,
        maps=(nn.Linear(text["hidden_size"], width), nn.Linear(width, 1001)),
        vocoder=transformers.SpeechT5HifiGan(
            transformers.SpeechT5HifiGanConfig(**vocoder, normalize_before=False, leaky_relu_slope=0.1)
        ).eval(),
        upsample=upsample,
    )
    return {"transformers": transformers.__version__}


@torch.no_grad()
def omni_round(bands: int, prompt: int, tokens: int, frames: int, repeats: int, timed: Any) -> dict:
    """Return the seconds of every part.

    Args:
      bands: of the log-mel frames.
      prompt: positions before the token that is timed.
      tokens: of the answer before the one that is timed.
      frames: of the vocoder's window.
      repeats: of each measurement.
      timed: returns the seconds of a function, and its value.
    """
    import transformers

    seconds: dict[str, list[float]] = {name: [] for name in ("encoder", "token", "units", "units cached", "vocoder")}
    text, decoder, (into, out) = _loaded["text"], _loaded["decoder"], _loaded["maps"]
    mel, width = torch.randn(1, bands, 3000), text.config.hidden_size
    cache = transformers.DynamicCache()
    text(torch.randint(0, 1000, (1, prompt)), past_key_values=cache)

    def speak(states: torch.Tensor, past: Any = None) -> Any:
        x = into(states).repeat_interleave(_loaded["upsample"], dim=1)
        return out(decoder(inputs_embeds=x, past_key_values=past, use_cache=past is not None).last_hidden_state)

    states, spoken = torch.randn(1, tokens, width), transformers.DynamicCache()
    speak(states[:, :-1], spoken)
    window = torch.randn(1, frames, _loaded["vocoder"].config.model_in_dim)
    for _ in range(repeats):
        seconds["encoder"].append(timed(lambda: _loaded["encoder"](mel))[0])
        seconds["token"].append(
            timed(lambda: text(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache).logits.argmax())[0]
        )
        seconds["units"].append(timed(lambda: speak(states).argmax(-1))[0])
        seconds["units cached"].append(timed(lambda: speak(states[:, -1:], spoken).argmax(-1))[0])
        spoken.crop(-_loaded["upsample"])
        cache.crop(-1)
        seconds["vocoder"].append(timed(lambda: _loaded["vocoder"](window))[0])
    return seconds
