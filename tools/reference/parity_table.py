"""Run every parity fixture and write the largest errors to docs/parity.md.

python -m tools.reference.parity_table [--only PREFIX]

The tests of tests/parity demand the same; this shows how much room there is.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path("~/.cache/moshijax/test-compilation").expanduser()))

import jax
import numpy as np

from moshijax import codec, lm
from moshijax.lm.generation import step
from moshijax.tokens import UNGENERATED
from moshijax.weights import load_lm, load_mimi
from tests.parity import test_lm, test_mimi, test_omni, test_synthesis, test_translation, test_way_back
from tests.parity.weights_by_name import FIXTURES, clip, load_fixture, write_checkpoint

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
Row = list[str]
#: Fixtures that say which version of Transformers they are of.
_OF_TRANSFORMERS = {"transformers": "hf_mimi", "omni": "omni_llama"}
_INTRODUCTION = """Package `moshi` {moshi} on PyTorch {torch}, ours on jax {jax}; everything on the CPU.
`hf_*` are classes of Transformers {transformers}, `omni_*` parts of LLaMA-Omni against those of {omni}. This page is
written by `python -m tools.reference.parity_table` from the fixtures that `tests/parity/README.md` describes.

`mimi_full` and `mimi_full_long` have the published sizes. The long clip, the small codecs and the language
models run past the attention window (Transformers has none). `way_back` was exported by `moshijax weights export
--format kyutai` and loaded by the package's own loader; `tts_*` and `hibiki_end` are runs of its synthesis engine
and of its inference runner. The tests allow an error of 1e-4, and 5 % of the spread against maps that the package
computes in float16; all codes, masks and tokens must be equal."""


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
    if "adapter" in description:
        rows += adapter_rows(name, output)
    if "int8" in description:
        largest = masked(output.logits, output.mask, want["half_logits"])
        rows.append([name, "audio logits, against float16 products", largest, ""])
    if "generation" not in description:
        return rows

    @jax.jit
    def one(params, state, given, greedy, guided, force, active, reset):
        return step(config, params, lm.reset_generation(config, state, reset), given, greedy, guided, force, active)

    labels = {"sync": "in step", "masked": "rows frozen and reset", "forced": "forced tokens", "guided": "guidance"}
    for kind, run in description["generation"].items():
        given, out = want[f"{kind}_given"], want[f"{kind}_out"]
        calls, batch = given.shape[:2]
        active = want.get(f"{kind}_active", np.ones((calls, batch), bool))
        reset = want.get(f"{kind}_reset", np.zeros((calls, batch), bool))
        force = want.get(f"{kind}_force", np.full(out.shape, UNGENERATED))
        conditions = test_lm.conditions(description, want, "generation_conditions")
        guidance = test_lm.guidance(run)
        state = lm.init_generation(config, params, batch, conditions=conditions, guided=guidance is not None)
        greedy = lm.Sampling.greedy().rows(batch)
        guided = None if guidance is None else guidance.rows(batch)
        found, largest = [], 0.0
        for n in range(calls):
            state, output = one(params, state, given[n], greedy, guided, force[n], active[n], reset[n])
            found.append(output.out_BK)
            logits = want[f"{kind}_text_logits"][n]
            if active[n].any():
                largest = max(largest, error(output.text_logits_BV[active[n]], logits[active[n]]))
        rows.append([name, f"greedy generation, {labels[kind]}", f"{largest:.1e}", equal(np.stack(found), out)])
    return rows


def adapter_rows(name: str, merged: lm.LMOutput) -> list[Row]:
    """Return the rows of the adapter beside the weights, and without it."""
    description, want = load_fixture(name)
    conditions = test_lm.conditions(description, want)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_checkpoint(Path(scratch) / name, description, split=True)
        for way, prefix in (("adapter beside the weights", ""), ("without the adapter", "off_")):
            if prefix:
                stated = {key: value for key, value in description["config"].items() if not key.startswith("lora")}
                (folder / "config.json").write_text(json.dumps(stated))
            config, params = load_lm(folder, merge_adapter=False)
            output = jax.jit(functools.partial(lm.forward, config))(params, want["codes"], conditions)
            kept = np.asarray(merged.mask)[..., None]
            largest = error(np.asarray(output.logits) * kept, want[f"{prefix}logits"] * kept)
            rows.append([name, f"audio logits, {way}", f"{largest:.1e}", ""])
    return rows


def synthesis_rows(name: str, scratch: Path) -> list[Row]:
    """Compare the artifact with the package's engine, greedily."""
    frames, _ = test_synthesis.spoken(name, scratch / name)
    want, returned = test_synthesis.expected(name)
    same = equal(frames.swapaxes(1, 2)[returned], want.swapaxes(1, 2)[returned])
    return [[name, "artifact: greedy generation", "", same]]


def translation_rows(name: str, scratch: Path) -> list[Row]:
    """Compare the artifact with the package's runner, greedily, up to the call in which it stops."""
    found = test_translation.translated(scratch / name)
    kinds = {"early": "an end of text before that of the input", "together": "with it", "after": "after it"}
    return [
        [name, f"artifact: greedy generation, {kinds[kind]}", "", equal(columns, test_translation.expected(kind))]
        for kind, (columns, _) in found.items()
    ]


def transformers_rows(name: str, scratch: Path) -> list[Row]:
    """Compare with a class of Transformers, from the file that it saved."""
    description, want = load_fixture(name)
    folder = write_checkpoint(scratch / name, description)
    if description["kind"] == "mimi":
        config, params = load_mimi(folder)
        waveform = np.stack([clip(seeds, config.frame_size) for seeds in description["frame_seeds"]])
        decoded = error(codec.decode(config, params, want["codes"]), want["decoded"])
        codes = equal(codec.encode(config, params, waveform), want["codes"])
        return [[name, "whole file: codes", "", codes], [name, "whole file: waveform", f"{decoded:.1e}", ""]]
    config, params = load_lm(folder)
    output = lm.forward(config, params, want["codes"])
    rows = [[name, "text logits", f"{error(output.text_logits, want['text_logits']):.1e}", ""]]
    if config.depth is not None:
        kept = want["mask"][..., None]
        rows.append([name, "audio logits", f"{error(output.logits * kept, want['logits'] * kept):.1e}", ""])
    return rows


def omni_rows(name: str, scratch: Path) -> list[Row]:
    """Compare the parts of LLaMA-Omni with classes of Transformers."""
    rows = []
    for part, (ours, theirs) in test_omni.parts(name, scratch / name).items():
        whole = theirs.dtype.kind == "i"
        rows.append([name, part, "" if whole else f"{error(ours, theirs):.1e}", equal(ours, theirs) if whole else ""])
    return rows


def way_back_rows(name: str, scratch: Path) -> list[Row]:
    """Compare with the package's loader on our export."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        want = dict(file)
    tokens, codes, decoded = test_way_back.ours(test_way_back.exported(scratch), want)
    return [
        [name, "greedy generation", "", equal(tokens, want["out"])],
        [name, "codes", "", equal(codes, want["codes"])],
        [name, "waveform", f"{error(decoded, want['decoded']):.1e}", ""],
    ]


def makers(scratch: Path) -> dict[str, Callable[[], list[Row]]]:
    """Return the functions that make each fixture's rows, in the order of the page."""
    found: dict[str, Callable[[], list[Row]]] = {}
    for path in sorted(FIXTURES.glob("*.json"), key=lambda p: (not p.stem.startswith("mimi"), p.stem)):
        description = load_fixture(path.stem)[0]
        if path.stem.startswith("omni_"):
            found[path.stem] = functools.partial(omni_rows, path.stem, scratch)
        elif "class" in description:
            found[path.stem] = functools.partial(transformers_rows, path.stem, scratch)
        elif description["kind"] == "mimi":
            found[path.stem] = functools.partial(mimi_rows, path.stem, scratch)
        elif description["kind"] == "lm":
            found[path.stem] = functools.partial(lm_rows, path.stem)
        elif description["kind"] == "translation":
            found[path.stem] = functools.partial(translation_rows, path.stem, scratch)
        else:
            found[path.stem] = functools.partial(synthesis_rows, path.stem, scratch)
    found["way_back"] = functools.partial(way_back_rows, "way_back", scratch)
    return found


def present() -> dict[str, list[Row]]:
    """Return the present rows of the page by model."""
    rows: dict[str, list[Row]] = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 5 and cells[0] != "model":
            rows.setdefault(cells[0], []).append([cells[0], cells[1], *cells[3:]])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="models whose name begins so; the other rows stay as they are")
    only = parser.parse_args().only
    rows, old = [], present()
    with tempfile.TemporaryDirectory() as scratch:
        for name, make in makers(Path(scratch)).items():
            found = make() if name.startswith(only) else old.get(name, [])
            for row in found:
                print(
                    "  ".join(cell.ljust(width) for cell, width in zip(row, (16, 44, 10, 14), strict=True)), flush=True
                )
            rows += found
    reference = load_fixture("mimi_full")[0]["reference"]
    versions = {kind: load_fixture(name)[0]["transformers"] for kind, name in _OF_TRANSFORMERS.items()}
    lines = [
        "# Parity with the PyTorch reference",
        "",
        _INTRODUCTION.format(**reference, jax=jax.__version__, **versions),
        "",
        "| model | part | dtype | largest error | equal |",
        "|---|---|---|---|---|",
        *("| " + " | ".join((*row[:2], "float32", *row[2:])) + " |" for row in rows),
    ]
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
