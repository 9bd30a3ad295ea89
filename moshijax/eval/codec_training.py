"""How a codec sounds while it trains: an evaluator that a training run calls."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import jax
from jax.experimental.multihost_utils import process_allgather

from moshijax.codec.training import codec_variables
from moshijax.data.manifest import read_recordings
from moshijax.data.windows import audio_batches
from moshijax.eval import codec_report
from moshijax.eval.codec import codebook_counts, measure_distances
from moshijax.eval.evaluation import write_page
from moshijax.eval.phonemes import measure_abx, phonemes_of
from moshijax.optional import MissingPackage
from moshijax.train.evaluate import Snapshot
from moshijax.train.experiment import ExperimentConfig

log = logging.getLogger(__name__)

ABX_RECORDINGS = 16  # of the held-out ones


class CodecEvaluator:
    """Evaluator of a training run: the figures of `measure_distances` on the first held-out batch.

    ABX is measured on the first held-out recordings if they have phonemes. A page with audio clips,
    `evaluation.html` in the run directory, shows the newest evaluation.
    """

    def __init__(self, experiment: ExperimentConfig, run_dir: Path) -> None:
        held_out = experiment.task.audio.eval_data
        self._clips = audio_batches(held_out, experiment.seed).batch(0)["audio"]
        items = read_recordings(held_out.manifest).items[:ABX_RECORDINGS]
        self._spoken = [item for item in items if phonemes_of(item)]
        self._page = run_dir / "evaluation.html"

    def __call__(self, snapshot: Snapshot) -> Mapping[str, float]:
        # On one device, whatever the mesh: every process measures the same.
        params, model_state = process_allgather((snapshot.params, snapshot.model_state), tiled=True)
        variables = codec_variables({"params": params, "codebooks": model_state})
        config = snapshot.model_config
        measured = measure_distances(config, variables, self._clips, codebook_counts(config, ()))
        if self._spoken:
            measured.add_abx(measure_abx(config, variables, self._spoken))
        if jax.process_index() == 0:
            try:
                write_page(codec_report.results(f"Step {snapshot.step}", config, measured), self._page)
            except MissingPackage as error:
                log.warning("no %s: %s", self._page.name, error)
        return {f"eval/{name}": value for name, value in measured.values.items()}
