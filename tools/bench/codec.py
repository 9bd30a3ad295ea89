"""Time the codec against PyTorch and the Rust codec, and write docs/benchmarks.md.

python -m tools.bench.codec --reference-python reference/bin/python
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tools.bench import support

CODEBOOKS = 8
SECONDS = 10
TRAIN_ROWS, TRAIN_FRAMES = 8, 24
ADVERSARIAL = "codec/small_adversarial.gin"


def small_config(config) -> dict:
    """Return the published JSON form of a small codec's config."""
    seanet = {
        **{
            "channels": 1,
            "causal": True,
            "norm": "none",
            "pad_mode": "constant",
            "true_skip": True,
            "dilation_base": 2,
        },
        **{name: getattr(config.seanet, name) for name in ("dimension", "n_filters", "n_residual_layers", "compress")},
        **{name: getattr(config.seanet, name) for name in ("kernel_size", "residual_kernel_size", "last_kernel_size")},
        "ratios": list(config.seanet.ratios),
    }
    stack, width = config.transformer, config.seanet.dimension
    transformer = {
        **{"d_model": stack.dim, "num_heads": stack.num_heads, "num_layers": stack.num_layers, "causal": True},
        **{"layer_scale": stack.layer_scale, "context": stack.context, "max_period": stack.max_period},
        **{"conv_layout": True, "gating": "none", "norm": "layer_norm", "positional_embedding": "rope"},
        **{"dim_feedforward": stack.hidden_dim, "input_dimension": width, "output_dimensions": [width]},
    }
    q = config.quantizer
    quantizer = {"dimension": q.dim, "n_q": q.num_codebooks, "bins": q.bins}
    quantizer |= {"input_dimension": width, "output_dimension": width}
    rates = {"sample_rate": config.sample_rate, "channels": 1, "frame_rate": config.frame_rate}
    return {**rates, "seanet": seanet, "quantizer": quantizer, "transformer": transformer}


def contestants(config, params, samples: int, frames: int, clock: Callable[[], float]):
    """Return our `(stream, whole_file)`, functions that return seconds."""
    import jax
    import numpy as np

    from moshijax import codec

    noise = (0.2 * np.random.default_rng(0).standard_normal((1, samples))).astype(np.float32)
    donate = partial(jax.jit, donate_argnums=1)
    encode_step = donate(lambda p, s, x: codec.encode_step(config, p, s, x, num_codebooks=CODEBOOKS))
    decode_step = donate(lambda p, s, c: codec.decode_step(config, p, s, c))
    size = config.frame_size

    def stream():
        seconds = {"encode": [], "decode": []}
        encoder, decoder = codec.init_encoder_state(config, 1), codec.init_decoder_state(config, 1)
        for t in range(frames + 3):  # three to warm up
            chunk = noise[:, (t % 100) * size : (t % 100 + 1) * size]
            started = clock()
            encoder, codes = encode_step(params, encoder, chunk)
            codes = np.asarray(codes)
            middle = clock()
            decoder, pcm = decode_step(params, decoder, codes)
            np.asarray(pcm)
            seconds["encode"].append(middle - started)
            seconds["decode"].append(clock() - middle)
        return {name: values[3:] for name, values in seconds.items()}

    def whole_file():
        started = clock()
        codes = np.asarray(codec.encode(config, params, noise, num_codebooks=CODEBOOKS))
        middle = clock()
        np.asarray(codec.decode(config, params, codes))
        return {"encode": [middle - started], "decode": [clock() - middle]}

    return stream, whole_file


def training_step(config, params, clock: Callable[[], float]):
    """Return a step of the small codec, like `codec_train` there: L1 and commitment losses, AdamW, moving codebooks."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from moshijax.codec import training
    from moshijax.codec.quantizer_training import QuantizerTraining

    settings = QuantizerTraining(dropout=False, quantization_rate=1.0)
    optimizer = optax.adamw(1e-4, b1=0.5, b2=0.9, weight_decay=0.05)
    waveform = jnp.asarray(
        0.2 * np.random.default_rng(0).standard_normal((TRAIN_ROWS, TRAIN_FRAMES * config.frame_size)), jnp.float32
    )

    @partial(jax.jit, donate_argnums=0)
    def step(state, waveform):
        learnt, codebooks, moments, count = state
        key = jax.random.fold_in(jax.random.key(0), count)

        def loss(learnt):
            out = training.forward(config, settings, {"params": learnt, "codebooks": codebooks}, waveform, key)
            distance = jnp.abs(out.reconstruction - waveform).mean()
            return distance + 0.25 * out.bottleneck.commitment.mean(), out.bottleneck.statistics

        (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(learnt)
        updates, moments = optimizer.update(gradients, moments, learnt)
        codebooks, _ = training.update_codebooks(settings, codebooks, statistics, key, count)
        return (optax.apply_updates(learnt, updates), codebooks, moments, count + 1), value

    learnt = jax.tree.map(jnp.array, params["params"])
    held = [(learnt, jax.tree.map(jnp.array, params["codebooks"]), optimizer.init(learnt), jnp.zeros((), jnp.int32))]

    def run():
        seconds = []
        for _ in range(2):
            started = clock()
            held[0], value = step(held[0], waveform)
            float(value)
            seconds.append(clock() - started)
        return {"step": seconds}

    return run


def adversarial_step(recipe: str, codec_directory: Path, tensors: Path, clock: Callable[[], float]):
    """Return the trainer's own step of an adversarial recipe, without randomness, on one batch of noise.

    Returns:
      A function that takes two steps and returns seconds; the losses of every step so far, by name; and the settings
      of the discriminators. Weights that a published codec has not, and the batch, are written to `tensors`.
    """
    import dataclasses

    import jax
    import numpy as np
    from flax.traverse_util import flatten_dict
    from safetensors.numpy import save_file

    from moshijax import config
    from moshijax.train import sharding
    from moshijax.train.run.init_from import starting_point
    from moshijax.train.state import plan_state
    from moshijax.train.steps import compile_step

    experiment = config.load(recipe)
    quantizer = dataclasses.replace(experiment.task.quantizer, dropout=False, quantization_rate=1.0)
    experiment = dataclasses.replace(
        experiment,
        task=dataclasses.replace(experiment.task, quantizer=quantizer),
        optimizer=dataclasses.replace(experiment.optimizer, warmup_steps=0, decay="constant"),
        init_from=str(codec_directory),
    )
    task, (kind,) = experiment.task, experiment.step_kinds
    rows, samples = kind.data.batch_size, kind.data.num_samples
    shapes = task.batch_shapes(kind, kind.data)
    rng = np.random.default_rng(0)
    batch = {name: (0.2 * rng.standard_normal(shape.shape)).astype(np.float32) for name, shape in shapes.items()}
    mesh = sharding.make_mesh(experiment.mesh)
    with sharding.context(mesh):
        plan = plan_state(task, experiment, mesh)
        state = starting_point(experiment, task, plan, mesh)(plan.create(experiment.seed))
        program = compile_step(task, experiment, plan, kind, batch, mesh)
    others = flatten_dict({"discriminators": state.params["discriminators"]}, sep="/")
    others["teacher_projection"] = state.params["teacher_projection"]["kernel"]
    save_file({**jax.device_get(others), "waveform": batch["audio"], "teacher": batch["teacher"]}, tensors)
    held, losses = [state], []

    def run():
        seconds = []
        for _ in range(2):
            started = clock()
            held[0], packed = program.run(held[0], batch)
            found = packed.unpack()
            seconds.append(clock() - started)
            losses.append({name: a / b for name, (a, b) in found.items() if name.endswith("/loss")})
        return {"step": seconds}

    return run, losses, task.discriminators, f"{rows} x {samples / task.model.sample_rate:.2f} s"


def largest_difference(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    """Compare the losses of the first two steps; later ones differ in the vectors that replace dead codes.

    Not relative: the adversarial loss is a mean of logits of both signs and starts near 0.
    """
    steps = zip(ours, theirs, strict=True)
    return max(abs(one[f"{name}/loss"] - value) for one, two in steps for name, value in two.items())


def speed(options: argparse.Namespace, reference: support.Reference, scratch: Path) -> None:
    """Time frames, whole files and a training step without discriminators."""
    from moshijax import codec, weights
    from tests.parity import weights_by_name

    ms, clock = support.fastest_ms, support.CLOCKS[options.clock]
    description, _ = weights_by_name.load_fixture("mimi_full_long")
    directory = weights_by_name.write_checkpoint(scratch / "full", description)
    config, params = weights.load_mimi(directory)
    params = codec.inference_layout(config, params)
    samples = SECONDS * config.sample_rate
    reference("load_mimi", directory=str(directory), codebooks=CODEBOOKS)
    reference("load_rust", directory=str(directory), codebooks=CODEBOOKS)
    stream, whole_file = contestants(config, params, samples, options.frames, clock)
    in_turn = partial(support.in_turn, options.rounds)
    streams = in_turn(
        {
            "ours": stream,
            "PyTorch": lambda: reference("mimi_stream", frames=options.frames),
            "Rust": lambda: reference("rust_stream", frames=min(options.frames, 10)),
        }
    )
    files = in_turn({"ours": whole_file, "PyTorch": lambda: reference("mimi_file", samples=samples)})
    files |= support.in_turn(1, {"Rust": lambda: reference("rust_file", samples=samples)})
    published = small_config(codec.configs.TINY)
    directory = support.write_model(reference, scratch / "small", "mimi", published)
    tiny, tiny_params = weights.load_mimi(directory)
    reference("load_mimi", directory=str(directory), codebooks=tiny.num_codebooks)
    train = in_turn(
        {
            "ours": training_step(tiny, tiny_params, clock),
            "PyTorch": lambda: reference(
                "codec_train", rows=TRAIN_ROWS, samples=TRAIN_FRAMES * tiny.frame_size, steps=2
            ),
        }
    )
    table = [["", "ours", "PyTorch", "ratio", "Rust", "ratio"]]

    def row(name: str, times, quantities: tuple[str, ...]) -> None:
        total = {who: sum(ms(found[quantity]) for quantity in quantities) for who, found in times.items()}
        rust = [f"{total['Rust']:.0f} ms", f"{total['Rust'] / total['ours']:.2f}"] if "Rust" in total else ["", ""]
        ratio = f"{total['PyTorch'] / total['ours']:.2f}"
        table.append([name, f"{total['ours']:.1f} ms", f"{total['PyTorch']:.1f} ms", ratio, *rust])

    row("one 80 ms frame, encode", streams, ("encode",))
    row("one 80 ms frame, decode", streams, ("decode",))
    row("one 80 ms frame, both", streams, ("encode", "decode"))
    row(f"{SECONDS} s whole file, encode", files, ("encode",))
    row(f"{SECONDS} s whole file, decode", files, ("decode",))
    row(f"training step, small codec, {TRAIN_ROWS} x {TRAIN_FRAMES * 0.08:.2f} s", train, ("step",))
    support.write_section(
        "Codec",
        support.command(options),
        [
            support.environment(reference.version, options),
            f"Full-size Mimi, {CODEBOOKS} codebooks, batch 1, float32. Training: `codec.configs.TINY`, L1 and "
            "commitment losses, codebook averages, AdamW. Ratios say how many times faster ours is.",
        ],
        table,
    )


def adversarial(options: argparse.Namespace, reference: support.Reference, scratch: Path) -> None:
    """Time a step of discriminators and codec: the small adversarial recipe against the same networks there."""
    from moshijax import config

    clock = support.CLOCKS[options.clock]
    published = small_config(config.load(ADVERSARIAL).task.model)
    directory = support.write_model(reference, scratch / "adversarial", "mimi", published)
    tensors = scratch / "adversarial.safetensors"
    ours, losses, judges, amount = adversarial_step(ADVERSARIAL, directory, tensors, clock)
    reference("load_mimi", directory=str(directory), codebooks=published["quantizer"]["n_q"])
    reference("load_adversarial", tensors=str(tensors), windows=list(judges.windows), filters=judges.filters)
    their_losses: list[dict[str, float]] = []

    def theirs():
        found = reference("adversarial_train", steps=2)
        their_losses.extend(found["losses"])
        return {"step": found["step"]}

    times = support.in_turn(options.rounds, {"ours": ours, "PyTorch": theirs})
    difference = largest_difference(losses[:2], their_losses[:2])
    largest = max(max(step.values()) for step in their_losses[:2])
    here, there = (support.fastest_ms(times[who]["step"]) for who in ("ours", "PyTorch"))
    support.write_section(
        "Codec: a step of discriminators and codec",
        support.command(options),
        [
            support.environment(reference.version, options),
            f"Networks and losses of `{ADVERSARIAL}` without its randomness: one step of the discriminators, then one "
            "of the codec with adversarial, feature, commitment and distillation losses, balancer, codebooks, averages "
            "of parameters. Ours is the trainer's own compiled step with all its metrics. On the first two steps, from "
            f"the same weights, the losses of the two, which reach {largest:.1f}, differ by at most {difference:.0e}.",
        ],
        [["", "ours", "PyTorch", "times faster"], [amount, f"{here:.0f} ms", f"{there:.0f} ms", f"{there / here:.2f}"]],
    )


PARTS = {"speed": speed, "adversarial": adversarial}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    support.add_options(parser)
    parser.add_argument("--frames", type=int, default=25, help="streaming frames per round")
    parser.add_argument("--only", choices=tuple(PARTS), help="one section of the page; both without")
    options = parser.parse_args()
    support.limit_threads(options.threads)
    reference = support.Reference(options)
    for name, part in PARTS.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as scratch:
                part(options, reference, Path(scratch))
    reference.close()


if __name__ == "__main__":
    main()
