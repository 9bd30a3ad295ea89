"""Time the steps of a spoken answer against PyTorch, and write docs/benchmarks.md.

python -m tools.bench.omni --reference-python reference/bin/python
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from tools.bench import support

PROMPT, TOKENS, FRAMES, REPEATS = 350, 200, 64, 3
UPSAMPLE = 25
#: (width, layers, heads, heads of keys, hidden width) of the text model, and of the speech decoder.
TEXT, DECODER = (768, 12, 12, 4, 2048), (768, 2, 12, 12, 2048)
VOCAB = 32000


def ours(clock: Callable[[], float]) -> tuple[Callable[[], dict[str, list[float]]], dict[str, Any]]:
    """Return a function that times every step, and the vocoder's config."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from moshijax.omni import answer, vocoder, whisper
    from moshijax.omni import config as omni
    from moshijax.omni.adapter import AdapterConfig
    from moshijax.omni.config import OmniConfig, llama_stack
    from moshijax.omni.speech_decoder import SpeechDecoderConfig
    from moshijax.omni.text_model import TextConfig
    from moshijax.omni.vocoder import VocoderConfig

    config = OmniConfig(
        whisper.TINY,
        AdapterConfig(whisper.TINY.stack.dim, TEXT[0]),
        TextConfig(VOCAB, llama_stack(*TEXT, context=PROMPT + TOKENS)),
        SpeechDecoderConfig(TEXT[0], 1000, llama_stack(*DECODER, context=TOKENS * UPSAMPLE), UPSAMPLE),
    )
    random, voice = np.random.RandomState(0), VocoderConfig()

    def drawn(specs: Any) -> Any:
        return jax.tree.map(lambda spec: jnp.asarray(0.02 * random.randn(*spec.shape), spec.dtype), specs)

    params, voice_params = drawn(omni.abstract(config, stacked=False)), drawn(vocoder.abstract(voice))
    donate = partial(jax.jit, donate_argnums=1)

    @donate
    def token(params, state, token):
        state, logits = answer.decode_token(config, params, state, token)
        return state, jnp.argmax(logits, axis=-1)

    units = donate(lambda params, state: answer.decode_units(config, params, state))
    encode = jax.jit(lambda params, mel: whisper.encode(config.encoder, params, mel))
    mel = np.random.RandomState(0).randn(1, 3000, config.encoder.mels).astype(np.float32)
    ids = np.random.RandomState(1).randint(0, 1000, (1, PROMPT)).astype(np.int32)
    window = np.random.RandomState(2).randint(0, 1000, (1, FRAMES + 2 * voice.receptive_frames)).astype(np.int32)
    prefill = jax.jit(lambda params, state: answer.prefill(config, params, state, ids, np.array([PROMPT])))

    def timed(run: Callable[[], Any]) -> tuple[float, Any]:
        began = clock()
        value = jax.block_until_ready(run())
        return clock() - began, value

    def one() -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {name: [] for name in ("encoder", "token", "units", "vocoder")}
        state, _ = prefill(params, answer.init_state(config, 1))
        for _ in range(TOKENS - REPEATS):
            state, _ = units(params, state)
        for _ in range(REPEATS):
            seconds["encoder"].append(timed(lambda: encode(params["encoder"], mel))[0])
            spent, (state, _) = timed(partial(units, params, state))
            seconds["units"].append(spent)
            spent, (state, _) = timed(partial(token, params, state, np.zeros(1, np.int32)))
            seconds["token"].append(spent)
            seconds["vocoder"].append(timed(lambda: vocoder.vocode_chunk(voice, voice_params, window))[0])
        return seconds

    hifigan = {
        **{"model_in_dim": voice.dim, "sampling_rate": voice.sample_rate},
        **{"upsample_rates": voice.rates, "upsample_kernel_sizes": voice.kernels},
        **{"upsample_initial_channel": voice.channels, "resblock_kernel_sizes": voice.residual_kernels},
        "resblock_dilation_sizes": voice.dilations,
    }
    return one, {"vocoder": hifigan, "bands": config.encoder.mels, "frames": window.shape[1]}


def _sizes(sizes: tuple[int, ...]) -> dict[str, int]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    return {**dict(zip(names, sizes, strict=True)), "vocab_size": VOCAB}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    support.add_options(parser)
    options = parser.parse_args()
    support.limit_threads(options.threads)
    reference = support.Reference(options)
    one, said = ours(support.CLOCKS[options.clock])
    encoder = {
        **{"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536},
        **{"num_mel_bins": said["bands"], "decoder_layers": 1, "decoder_ffn_dim": 8},
    }
    found = reference(
        "load_omni",
        **{"text": _sizes(TEXT), "decoder": _sizes(DECODER), "encoder": encoder, "vocoder": said["vocoder"]},
        upsample=UPSAMPLE,
    )
    sizes = {"bands": said["bands"], "prompt": PROMPT, "tokens": TOKENS, "frames": said["frames"]}
    times = support.in_turn(
        options.rounds,
        {"ours": one, "theirs": lambda: reference("omni_round", **sizes, repeats=REPEATS)},
    )
    reference.close()
    ms = {side: {name: support.fastest_ms(seconds) for name, seconds in parts.items()} for side, parts in times.items()}
    rows = [
        ("encoder of Whisper tiny, 30 s", "encoder", "encoder"),
        (f"token of the text model, {PROMPT} positions before it", "token", "token"),
        (f"units of token {TOKENS}, against the whole prefix again, as published", "units", "units"),
        (f"units of token {TOKENS}, against a cache", "units", "units cached"),
        (f"vocoder, {FRAMES} frames in a window of {said['frames']}", "vocoder", "vocoder"),
    ]
    table = [["", "ours", "PyTorch", "times faster"]]
    for name, mine, theirs in rows:
        a, b = ms["ours"][mine], ms["theirs"][theirs]
        table.append([name, f"{a:.1f} ms", f"{b:.1f} ms", f"{b / a:.2f}"])
    shape = "width {}, {} layers, {} heads, {} of keys and values, hidden width {}"
    notes = [
        f"{support.environment(reference.version, options)} Transformers {found['transformers']}. Measured beside "
        "other work on the machine.",
        f"Float32, batch 1, random weights on both sides. Text model: {shape.format(*TEXT)}, {VOCAB} ids; speech "
        f"decoder: {shape.format(*DECODER)}; vocoder: the published size.",
    ]
    support.write_section("LLaMA-Omni: steps of an answer", support.command(options), notes, table)


if __name__ == "__main__":
    main()
