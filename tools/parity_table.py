"""Runs every parity fixture and writes the largest errors to docs/parity.md.

python tools/parity_table.py

The tests of tests/parity demand the same; this shows how much room there is.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path("~/.cache/moshijax/test-compilation").expanduser()))
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from moshijax import codec, lm  # noqa: E402
from moshijax.lm.generation import step  # noqa: E402
from tests.parity import test_lm, test_mimi  # noqa: E402
from tests.parity.weights_by_name import FIXTURES, load_fixture  # noqa: E402

PAGE = ROOT / "docs" / "parity.md"
Row = list[str]


def error(got, want) -> float:
    return float(np.max(np.abs(np.asarray(got) - want)))


def equal(got, want) -> str:
    got = np.asarray(got)
    return f"{int(np.sum(got == want))} of {want.size}"


def mimi_rows(name: str, scratch: Path) -> list[Row]:
    case = test_mimi.Case(name, scratch)
    want, config, params = case.want, case.config, case.fast
    kept = want.get("kept_frames", np.arange(want["codes"].shape[2]))
    count = want["codes"].shape[1]
    waveform = case.waveform[:, : case.description.get("length", case.waveform.shape[1])]

    def latents(values):
        return np.asarray(values)[:, kept]

    def samples(values):
        values = np.asarray(values)
        return values.reshape(values.shape[0], -1, config.frame_size)[:, kept].reshape(values.shape[0], -1)

    def compare(part: str, prefix: str, latent, codes, pcm) -> list[Row]:
        return [
            [name, f"{part}: latent", f"{error(latents(latent), want[f'{prefix}latent']):.1e}", ""],
            [name, f"{part}: codes", "", equal(np.asarray(codes)[:, :count], want[f"{prefix}codes"])],
            [
                name,
                f"{part}: waveform",
                f"{error(samples(pcm), want[f'{prefix}decoded'].reshape(pcm.shape[0], -1)):.1e}",
                "",
            ],
        ]

    codes = codec.encode(config, params, waveform, num_codebooks=count)
    latent = codec.encode_latent(config, params, waveform)
    rows = compare("whole file", "", latent, codes, codec.decode(config, params, want["codes"]))
    rows += compare("streaming, capacity = window", "stream_", *case.stream("window", want["codes"]))
    rows += compare("streaming, exact, against whole file", "", *case.stream("exact", want["codes"]))
    return rows


def lm_rows(name: str) -> list[Row]:
    config, params, want, description = test_lm.load(name)
    conditions = test_lm.conditions(description, want)
    output = jax.jit(functools.partial(lm.forward, config))(params, want["codes"], conditions)

    def masked(got, mask, expected) -> str:
        kept = np.asarray(mask)[..., None]
        return f"{error(np.asarray(got) * kept, expected * kept):.1e}"

    rows = [[name, "text logits", masked(output.text_logits, output.text_mask, want["text_logits"]), ""]]
    rows.append([name, "text mask", "", equal(output.text_mask, want["text_mask"])])
    if config.depth is not None:
        rows.append([name, "audio logits", masked(output.logits, output.mask, want["logits"]), ""])
        rows.append([name, "audio mask", "", equal(output.mask, want["mask"])])
    if "generation" not in description:
        return rows

    @jax.jit
    def one(params, state, given, force, active, reset):
        return step(config, params, lm.reset_generation(config, state, reset), given, force, active)

    labels = {"sync": "in step", "masked": "rows frozen and reset", "forced": "forced tokens", "guided": "guidance"}
    for kind, run in description["generation"].items():
        given, out = want[f"{kind}_given"], want[f"{kind}_out"]
        calls, batch = given.shape[:2]
        active = want.get(f"{kind}_active", np.ones((calls, batch), bool))
        reset = want.get(f"{kind}_reset", np.zeros((calls, batch), bool))
        force = want.get(f"{kind}_force", np.full(out.shape, lm.tokens.UNGENERATED))
        conditions = test_lm.conditions(description, want, "generation_conditions")
        guidance = test_lm.guidance(run)
        state = lm.init_generation(
            config, params, batch, lm.Sampling.greedy(), conditions=conditions, guidance=guidance
        )
        found, largest = [], 0.0
        for n in range(calls):
            state, output = one(params, state, given[n], force[n], active[n], reset[n])
            found.append(output.out_BK)
            logits = want[f"{kind}_text_logits"][n]
            if active[n].any():
                largest = max(largest, error(output.text_logits_BV[active[n]], logits[active[n]]))
        rows.append([name, f"greedy generation, {labels[kind]}", f"{largest:.1e}", equal(np.stack(found), out)])
    return rows


def main() -> None:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for path in sorted(FIXTURES.glob("*.json"), key=lambda p: (not p.stem.startswith("mimi"), p.stem)):
            kind = load_fixture(path.stem)[0]["kind"]
            found = mimi_rows(path.stem, Path(scratch)) if kind == "mimi" else lm_rows(path.stem)
            for row in found:
                print(
                    "  ".join(cell.ljust(width) for cell, width in zip(row, (16, 44, 10, 14), strict=True)), flush=True
                )
            rows += found
    reference = load_fixture("mimi_full")[0]["reference"]
    lines = [
        "# Parity with the PyTorch reference",
        "",
        f"Package `moshi` {reference['moshi']} on PyTorch {reference['torch']}, ours on jax {jax.__version__}; CPU, "
        "float32.",
        "Made by `python tools/parity_table.py` from the fixtures that `tests/parity/README.md` describes. `mimi_full`",
        "and `mimi_full_long` have the published sizes; the long clip, the small codecs and the language models run",
        "past the attention window. Limits in the tests: 1e-4; all codes, masks and tokens equal.",
        "",
        "| model | part | largest error | equal |",
        "|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
