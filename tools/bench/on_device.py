"""One part of `tools.bench.device`, in a process of its own.

python -m tools.bench.on_device PART PLATFORM SIZE REFERENCE_PYTHON FILE

Started by `tools.bench.device` with its time limit; not a command for people. The result is written to FILE as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

#: Steps that are timed, after those that warm up; training steps likewise.
STEPS, WARM = 30, 5
TRAIN_STEPS = 3
#: Frames in which device and CPU are compared, in two rows: greedy and sampled.
FRAMES = 12
#: Largest difference to the CPU in float32, as a share of the standard deviation of what is compared.
TOLERANCE = 1e-3


def device_of(platform: str) -> Any:
    import jax

    return jax.devices(platform)[0]


def models_of(name: str) -> tuple[Any, Any]:
    """Return the configs (codec, language model) of "tiny", "medium" (250 M parameters) or "MOSHI_7B"."""
    from moshijax import codec, lm
    from moshijax.testing import tiny
    from moshijax.weights.formats.lm_config import lm_config
    from tools.bench.lm import STEP

    if name == "tiny":
        return tiny.CODEC, tiny.LM
    return codec.configs.MIMI, lm_config(STEP) if name == "medium" else lm.configs.MOSHI_7B


def fill(specs: dict[str, Any], device: Any) -> dict[str, Any]:
    """Fill weights with random numbers, wide enough that inputs matter: a million of them, over and over."""
    import jax
    import numpy as np

    pool = np.random.RandomState(0).standard_normal(2**20 - 3).astype(np.float32)
    weights = {}
    for number, (name, spec) in enumerate(specs.items()):
        last = name.rsplit("/", 1)[-1]
        if spec.dtype == bool or last in ("scale", "cluster_usage"):
            value = np.ones(spec.shape, spec.dtype)
        else:
            table = len(spec.shape) < 2 or last in ("embedding_sum", "table")
            std = 0.3 if last == "bias" else 1.0 if table else spec.shape[-1] ** -0.5
            value = np.resize((std * np.roll(pool, 977 * number)).astype(spec.dtype), spec.shape)
        weights[name] = jax.device_put(value, device)
    return weights


def step_inputs(step: Any, program: str, batch: int) -> dict[str, Any]:
    """Return inputs of a step in which all rows take part; even rows are greedy."""
    import numpy as np

    from moshijax import lm
    from moshijax.export.step import Signature
    from moshijax.tokens import UNGENERATED

    inputs = {n: np.zeros(s.shape, s.dtype) for n, s in step.input_specs(Signature(program, batch)).items()}
    inputs["active"][:] = True
    for name in ("force_text", "force_codes", "given"):
        if name in inputs:
            inputs[name][:] = UNGENERATED
    top_k = min(step.top_k_limit, 25)
    warm = np.arange(batch) % 2
    sampling = lm.Sampling(0.8 * warm, 0.7 * warm, step.top_k_limit, top_k).rows(batch, step.top_k_limit)
    return inputs | {name: np.asarray(value) for name, value in sampling.items()}


# Correctness --------------------------------------------------------------------------------------------------------


def outputs(name: str, device: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """Run a model in float32 on a device over noise: logits and codes of `step_tokens`, codes and audio of `step`."""
    import jax
    import numpy as np

    from moshijax.export.step import CallStep

    codec_config, config = models_of(name)
    step = CallStep(codec_config, config.with_dtype("float32", "float32"), min(250, config.card))
    weights = jax.device_put(weights, device)
    random = np.random.RandomState(0)
    given = random.randint(0, config.card, (FRAMES, 2, len(step.given_rows))).astype(np.int32)
    pcm = (0.2 * random.standard_normal((FRAMES, 2, codec_config.frame_size))).astype(np.float32)
    found: dict[str, list[Any]] = {}
    with jax.default_device(device):
        for program, heard in (("step_tokens", {"given": given}), ("step", {"pcm": pcm})):
            run = jax.jit(getattr(step, program), donate_argnums=1)
            state, inputs = jax.device_put(step.init_state(2), device), step_inputs(step, program, 2)
            for frame in range(FRAMES):
                state, out = run(weights, state, inputs | {key: value[frame] for key, value in heard.items()})
                for key in ("text_logits", "logits", "codes", "pcm"):
                    if key in out:
                        found.setdefault(f"{program}/{key}", []).append(np.asarray(out[key]))
    return {key: np.stack(values) for key, values in found.items()}


def compare(ours: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """Compare outputs up to the first frame whose codes differ; codes are equal token for token where `ok`."""
    import numpy as np

    found: dict[str, Any] = {"frames": FRAMES}
    for program in ("step_tokens", "step"):
        same = (ours[f"{program}/codes"] == reference[f"{program}/codes"]).all(axis=(1, 2))
        found[f"{program} equal codes"] = equal = int(np.argmin(same)) if not same.all() else FRAMES
        for key, value in reference.items():
            if key.startswith(f"{program}/") and not key.endswith("codes"):
                worst = np.abs(ours[key] - value)[: equal + 1].max() / value.std()
                found[f"{key} difference"] = float(worst) if np.isfinite(worst) else None
    differences = [value for key, value in found.items() if key.endswith("difference")]
    close = all(value is not None and value <= TOLERANCE for value in differences)
    found["ok"] = close and all(found[f"{program} equal codes"] == FRAMES for program in ("step_tokens", "step"))
    return found


def correct(platform: str, name: str) -> dict[str, Any]:
    """Compare a device with the CPU, both in float32 from the same weights."""
    import jax

    from moshijax import codec, lm
    from moshijax.export.step import flatten

    codec_config, config = models_of(name)
    laid = jax.eval_shape(lambda: codec.inference_layout(codec_config, codec.init(codec_config, jax.random.key(0))))
    config = config.with_dtype("float32", "float32")
    specs = {**flatten(laid, "codec"), **flatten(lm.abstract(config, stacked=False), "lm")}
    cpu = jax.devices("cpu")[0]
    weights = fill(specs, cpu)
    return compare(outputs(name, device_of(platform), weights), outputs(name, cpu, weights))


# Speed --------------------------------------------------------------------------------------------------------------


def milliseconds(seconds: list[float]) -> dict[str, float]:
    return {"fastest": 1e3 * min(seconds), "median": 1e3 * statistics.median(seconds)}


def call_step(platform: str, name: str, batch: int) -> dict[str, Any]:
    """Time the step of calls: awaited, as a server does; one after the other; and the reading of its weights."""
    import jax
    import jax.numpy as jnp

    from moshijax.compiled import report
    from moshijax.compiled.program import Program
    from tools.bench.compiled import step_of

    device = device_of(platform)
    step, specs = step_of(name, "bfloat16")
    weights = fill(specs, device)
    with jax.default_device(device):
        state = jax.device_put(step.init_state(batch), device)
        inputs = step_inputs(step, "step", batch)
        started = time.perf_counter()
        lowered = jax.jit(step.step, donate_argnums=1).lower(weights, state, inputs)
        compiled = lowered.compile()
        seconds = time.perf_counter() - started
        found = report.examine(compiled, device, Program(lowered.as_text("hlo")).flops())

        def run(state: Any) -> tuple[Any, Any]:
            return compiled(weights, state, inputs)

        awaited = []
        for _ in range(WARM + STEPS):
            begin = time.perf_counter()
            state, out = run(state)
            jax.device_get(out)
            awaited.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        for _ in range(STEPS):
            state, out = run(state)
        jax.block_until_ready((state, out))
        in_a_row = (time.perf_counter() - begin) / STEPS

        read = [x.reshape(-1, x.shape[-1]) for x in weights.values() if x.ndim >= 2]
        add_up = jax.jit(lambda leaves: sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in leaves))
        reading = []
        for _ in range(WARM + 5):
            begin = time.perf_counter()
            float(add_up(read))
            reading.append(time.perf_counter() - begin)
    size = sum(x.nbytes for x in read)
    return {
        "batch": batch,
        "compile seconds": seconds,
        "awaited ms": milliseconds(awaited[WARM:]),
        "in a row ms": 1e3 * in_a_row,
        "floor bytes": found.floor,
        "moved bytes": found.moved,
        "peak bytes": found.peak,
        "flops": found.flops,
        "kernels": found.kernels,
        "measured bandwidth": size / min(reading[WARM:]),
    }


#: A model of the size of `tiny.LM` in the published form, for the reference on a CPU; a device gets Moshi 7B.
SMALL = {"dim": 64, "num_heads": 2, "num_layers": 2, "text_card": 64, "context": 32, "card": 64}
SMALL |= {"depformer_dim": 32, "depformer_num_heads": 2, "depformer_num_layers": 1, "depformer_dim_feedforward": 128}


def reference_step(platform: str, name: str, batch: int, python: str) -> dict[str, Any]:
    """Time the same step of the PyTorch package, on the same device."""
    from tools.bench import support
    from tools.bench.lm import STEP

    options = SimpleNamespace(reference_python=python, threads=4, clock="wall")
    reference = support.Reference(options)  # type: ignore[arg-type]
    config = {**STEP, **SMALL} if name == "tiny" else None
    device = "cpu" if platform == "cpu" else "cuda"
    found = reference("call_step", config=config, batch=batch, steps=STEPS, warm=WARM, device=device)
    reference.close()
    return {"batch": batch, "version": reference.version, "awaited ms": milliseconds(found["step"])}


def training_steps(platform: str, recipe: str) -> Iterator[dict[str, Any]]:
    """Time steps of every kind of a recipe on random batches and parameters; what does not fit is said, not tried."""
    import jax
    import numpy as np

    from moshijax import config
    from moshijax.compiled import chips
    from moshijax.train import sharding
    from moshijax.train.plan.flops import peak_flops
    from moshijax.train.plan.footprint import bytes_per_device
    from moshijax.train.state import plan_state
    from moshijax.train.steps import compile_step

    experiment = config.load(recipe)
    task = experiment.task
    devices = jax.devices(platform)
    mesh = sharding.make_mesh(experiment.mesh, devices)
    chip, random = chips.find(devices[0].device_kind), np.random.default_rng(0)

    def batch_of(kind: Any) -> dict[str, Any]:
        shapes = task.batch_shapes(kind, kind.data)
        if task.kind == "lm":
            card = min(task.model.card or task.model.text_card, task.model.text_card)
            return {n: random.integers(0, card, s.shape).astype(s.dtype) for n, s in shapes.items()}
        return {n: (0.2 * random.standard_normal(s.shape)).astype(s.dtype) for n, s in shapes.items()}

    with sharding.context(mesh):
        plan = plan_state(task, experiment, mesh)
        size = bytes_per_device(plan.abstract)
        if chip is not None and size > chip.memory:
            yield {"recipe": recipe, "too large": f"its state takes {size / 1e9:.0f} GB of {chip.memory / 1e9:.0f} GB"}
            return
        state = plan.create(experiment.seed)
        for kind in experiment.step_kinds:
            batch = batch_of(kind)
            started = time.perf_counter()
            program = compile_step(task, experiment, plan, kind, batch, mesh)
            compiled, seconds = time.perf_counter() - started, []
            for _ in range(1 + TRAIN_STEPS):
                begin = time.perf_counter()
                state, packed = program.run(state, batch)
                found = packed.unpack()
                seconds.append(time.perf_counter() - begin)
            losses = {name: a / b for name, (a, b) in found.items() if name.endswith("loss")}
            flops = sum(program.flops.values())
            yield {
                "recipe": recipe,
                "kind": kind.name,
                "compile seconds": compiled,
                "step ms": milliseconds(seconds[1:]),
                "flops": flops,
                "mfu": flops / min(seconds[1:]) / peak_flops(devices),
                "amounts": task.amounts(kind, batch),
                "finite": all(np.isfinite(value) for value in losses.values()),
            }


def about(platform: str) -> dict[str, Any]:
    import jax

    from moshijax.compiled import chips

    device = device_of(platform)
    chip = chips.find(device.device_kind)
    return {
        "device": device.device_kind,
        "count": len(jax.devices(platform)),
        "jax": jax.__version__,
        "bandwidth": None if chip is None else chip.bandwidth,
    }


def main() -> None:
    part, platform, size, reference_python, file = sys.argv[1:]
    kind, _, what = part.partition(":")
    name = "tiny" if size == "tiny" else "MOSHI_7B"
    if kind == "correct":
        result: Any = correct(platform, what)
    elif kind == "step":
        result = call_step(platform, name, int(what))
    elif kind == "reference":
        result = reference_step(platform, name, int(what), reference_python)
    else:
        result = list(training_steps(platform, what))
    Path(file).write_text(json.dumps({"about": about(platform), "result": result}), encoding="utf-8")


if __name__ == "__main__":
    main()
