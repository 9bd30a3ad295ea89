"""Measure the host overhead of the training loop: a step of a second in the loop against the compiled step alone.

A pause inside the compiled step stands in for the device: like an accelerator, it takes no processor time. Everything
else is the trainer's own: batches of prepared data, transfers, metrics, TensorBoard and log lines.

    python -m tools.bench.loop
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.bench import support

TITLE = "Host overhead of the training loop"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds of a step in which the device is busy")
    parser.add_argument("--note", default="", help="a sentence about the machine, such as other work on it")
    options = parser.parse_args()
    support.limit_threads(2)

    import jax
    import numpy as np

    from moshijax.train import sharding
    from moshijax.train.feed import put
    from moshijax.train.loop import train
    from moshijax.train.state import plan_state
    from moshijax.train.steps import batch_shardings, compile_step
    from moshijax.train.tasks.lm import LMTask
    from moshijax.weights.run_files import read_metrics
    from tests.train.support.models import LM, lm_experiment, write_lm_data

    class Busy(LMTask):
        """The language model, with a device that is busy for a while in every step."""

        def loss_parts(self, *arguments: Any) -> Any:
            def pause() -> np.ndarray:
                time.sleep(options.pause)
                return np.zeros((), np.float32)

            parts = super().loss_parts(*arguments)
            waited = jax.pure_callback(pause, jax.ShapeDtypeStruct((), np.float32))
            return parts._replace(loss=parts.loss + waited)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_lm_data(path)
        model = dataclasses.replace(LM, scan_layers=False, temporal=dataclasses.replace(LM.temporal, num_layers=32))
        experiment = lm_experiment(path, text=None, steps=options.steps, log_every=5)
        (kind,) = experiment.step_kinds
        task = Busy(model, str(path / "tokenizer.model"), audio=experiment.task.audio)
        experiment = dataclasses.replace(experiment, task=task)
        experiment = dataclasses.replace(experiment, checkpoint_every=10**6)
        mesh = sharding.make_mesh(experiment.mesh)
        batch = task.batches(kind, kind.data, experiment.seed).batch(0)
        with sharding.context(mesh):
            plan = plan_state(task, experiment, mesh)
            program = compile_step(task, experiment, plan, kind, batch, mesh)
            state, here = plan.create(0), put(batch, batch_shardings(batch, mesh, 1))
            leaves = len(jax.tree.leaves(state))
            alone = []
            for _ in range(options.steps):
                begin = time.perf_counter()
                state, packed = program.run(state, here)
                jax.block_until_ready((state, packed))
                alone.append(time.perf_counter() - begin)
        begin = time.process_time()
        train(experiment, path / "run")
        host = time.process_time() - begin
        lines = [line for line in read_metrics(path / "run" / "metrics.jsonl") if "time/step" in line]
    device, step = statistics.median(alone[1:]), statistics.median(line["time/step"] for line in lines)
    support.write_section(
        TITLE,
        "python -m tools.bench.loop",
        [
            f"{support.machine()}. {leaves} arrays in the state, {len(packed.names)} metrics per step, a log line "
            f"every 5 steps. {options.note}".strip(),
            f"The whole run, including compilation and {options.steps} steps of this small model, took {host:.0f} s of "
            "processor time.",
        ],
        [
            ["step of the compiled program alone", "step in the loop", "overhead"],
            [f"{device:.4f} s", f"{step:.4f} s", f"{100 * (step / device - 1):.2f} %"],
        ],
    )


if __name__ == "__main__":
    main()
