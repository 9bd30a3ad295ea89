"""Time the language model against PyTorch, and write docs/benchmarks.md.

python -m tools.bench.lm --reference-python reference/bin/python
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tools.bench import support

_SHARED = {
    **{"hidden_scale": 4.125, "norm": "rms_norm_f32", "gating": "silu", "positional_embedding": "rope", "causal": True},
    **{"max_period": 10000, "n_q": 16, "dep_q": 8, "card": 2048, "delays": [0, *[0, *[1] * 7] * 2]},
    **{"depformer_gating": "silu", "depformer_pos_emb": "none", "depformer_multi_linear": True},
    **{"depformer_weights_per_step": True},
}
#: 250 M parameters: one step of a call.
STEP = {
    **_SHARED,
    **{"dim": 768, "num_heads": 12, "num_layers": 12, "text_card": 8000, "context": 250},
    **{"depformer_dim": 512, "depformer_num_heads": 8, "depformer_num_layers": 4, "depformer_dim_feedforward": 2112},
}
#: 82 M parameters: one training step.
TRAIN = {
    **_SHARED,
    **{"dim": 512, "num_heads": 8, "num_layers": 8, "text_card": 4000, "context": 250},
    **{"depformer_dim": 256, "depformer_num_heads": 4, "depformer_num_layers": 4, "depformer_dim_feedforward": 1056},
}
ROWS, FRAMES = 4, 125


def ours_step(directory: Path, steps: int, clock: Callable[[], float]):
    """Time a generated frame, and one product of all weights that it reads with a vector, the fastest way to read them.

    Returns:
      Functions that return seconds of either, and how many weights a frame reads.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from moshijax import lm, weights
    from moshijax.nn.layout import unstack_layers

    config, params = weights.load_lm(directory)
    params = jax.device_put(unstack_layers(params))
    step = jax.jit(partial(lm.generate_step, config), donate_argnums=1)
    given = jnp.zeros((1, config.layout.n_q - config.layout.dep_q), jnp.int32)
    sampling = lm.Sampling(temperature=0.8, text_temperature=0.7, top_k=250, text_top_k=25).rows(1)

    def run():
        state = lm.init_generation(config, params, 1)
        seconds = []
        for _ in range(steps + 4):
            started = clock()
            state, out = step(params, state, given, sampling)
            np.asarray(out)
            seconds.append(clock() - started)
        return {"step": seconds[4:]}

    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    read = [leaf for path, leaf in paths if leaf.ndim >= 2 and "embedding" not in jax.tree_util.keystr(path)]
    count, width = sum(leaf.size for leaf in read), 4096
    matrix = jnp.concatenate([leaf.reshape(-1) for leaf in read])[: count // width * width].reshape(-1, width)
    vector, multiply = jnp.ones((width,)), jax.jit(jnp.dot)

    def floor():
        seconds = []
        for _ in range(steps):
            started = clock()
            multiply(matrix, vector).block_until_ready()
            seconds.append(clock() - started)
        return {"step": seconds}

    return run, floor, count


def ours_train(directory: Path, clock: Callable[[], float]):
    """Return a function that times one step of the trainer's own program."""
    import jax
    import numpy as np

    from moshijax import data, weights
    from moshijax.lm.losses import LossConfig
    from moshijax.train import sharding
    from moshijax.train.experiment import ExperimentConfig, MeshConfig
    from moshijax.train.optimizer import OptimizerConfig
    from moshijax.train.state import plan_state
    from moshijax.train.steps import compile_step
    from moshijax.train.tasks.lm import AudioSteps, LMTask

    config, _ = weights.load_lm(directory)
    config = dataclasses.replace(config, scan_layers=False)
    steps = AudioSteps(data.GridData(("none",), batch_size=ROWS, num_frames=FRAMES))
    task = LMTask(config, tokenizer="", audio=steps, loss=LossConfig("finetune"))
    experiment = ExperimentConfig(task=task, optimizer=OptimizerConfig(learning_rate=1e-4), steps=100)
    random = np.random.default_rng(0)
    text = random.integers(0, config.text_card, (ROWS, 1, FRAMES))
    audio = random.integers(0, config.card, (ROWS, config.layout.n_q, FRAMES))
    batch = {"codes": np.concatenate([text, audio], 1).astype(np.int32)}
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    with sharding.context(mesh):
        plan = plan_state(task, experiment, mesh)
        program = compile_step(task, experiment, plan, *task.step_kinds(), batch, mesh)
        held = [plan.create(0)]

    def run():
        seconds = []
        with sharding.context(mesh):
            for _ in range(2):
                started = clock()
                held[0], packed = program.run(held[0], batch)
                packed.unpack()
                seconds.append(clock() - started)
        return {"step": seconds}

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    support.add_options(parser)
    parser.add_argument("--steps", type=int, default=15, help="generated frames per round")
    parser.add_argument("--only", choices=("step", "train"))
    options = parser.parse_args()
    support.limit_threads(options.threads)
    reference = support.Reference(options)
    clock = support.CLOCKS[options.clock]
    in_turn = partial(support.in_turn, options.rounds)
    about = [support.environment(reference.version, options)]
    command = support.command(options)

    def milliseconds(times) -> list[float]:
        return [support.fastest_ms(found["step"]) for found in times.values()]

    with tempfile.TemporaryDirectory() as scratch:
        if options.only != "train":
            directory = support.write_model(reference, Path(scratch) / "step", "lm", STEP)
            parameters = reference("load_lm", directory=str(directory), train=False)["parameters"]
            run, floor, read = ours_step(directory, options.steps, clock)
            peer = lambda: reference("lm_step", steps=options.steps)  # noqa: E731
            ours, torch, reading = milliseconds(in_turn({"ours": run, "PyTorch": peer, "floor": floor}))
            about.append(
                f"{parameters / 1e6:.0f} M parameters, float32, batch 1, sampling with top-k. A frame reads "
                f"{read / 1e6:.0f} M of them (all but the embedding tables)."
            )
            table = [["", "ours", "PyTorch", "times faster", "reading the weights once", "ours / reading"]]
            cells = [f"{ours:.1f} ms", f"{torch:.1f} ms", f"{torch / ours:.2f}", f"{reading:.1f} ms"]
            table.append(["one frame", *cells, f"{ours / reading:.2f}"])
            support.write_section("Language model: one frame of a call", command, about, table)
        if options.only != "step":
            directory = support.write_model(reference, Path(scratch) / "train", "lm", TRAIN)
            parameters = reference("load_lm", directory=str(directory), train=True)["parameters"]
            peer = lambda: reference("lm_train", rows=ROWS, frames=FRAMES, steps=2)  # noqa: E731
            ours, torch = milliseconds(in_turn({"ours": ours_train(directory, clock), "PyTorch": peer}))
            about[1:] = [
                f"{parameters / 1e6:.0f} M parameters, float32. Ours is the trainer's own compiled step, without "
                "a scan over layers: loss, metrics per stream, clipping, AdamW."
            ]
            table = [["", "ours", "PyTorch", "times faster"]]
            table.append([f"{ROWS} x {FRAMES} frames", f"{ours:.0f} ms", f"{torch:.0f} ms", f"{torch / ours:.2f}"])
            support.write_section("Language model: training step", command, about, table)
    reference.close()


if __name__ == "__main__":
    main()
