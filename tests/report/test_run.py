"""The page of a run, from the files of its directory."""

from __future__ import annotations

import json

from moshijax.report.run import panels_of, write_run_page
from moshijax.weights.run_files import CONFIG, METRICS, RECIPE


def test_a_page_is_made_from_the_files_of_a_run(tmp_path):
    """Also while the last line of the metrics is being written."""
    lines = [{"step": step, "train/loss": 3.0 - step / 10, "time/left": 60.0} for step in (5, 10)]
    lines[-1]["eval/loss"] = 2.5
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / METRICS).write_text(text + '{"step": 15, "train/lo')
    (tmp_path / CONFIG).write_text(json.dumps({"steps": 20}))
    (tmp_path / RECIPE).write_text("experiment.ExperimentConfig.steps = 20\n")
    page = write_run_page(tmp_path).read_text()
    assert "10 of 20 steps" in page and "2.5" in page and "0:01:00 h left" in page
    assert "experiment.ExperimentConfig.steps = 20" in page and page.count("data:image/png") == 1


def test_every_metric_stands_in_the_first_panel_it_fits():
    lines = [{"step": 1, "train/loss": 1.0, "train/codebook_3/usage_entropy": 0.9, "eval/8_codebooks/stoi": 0.7}]
    assert panels_of(lines) == {
        "Loss": {"train/loss": "train"},
        "Use of codebooks, as entropy": {"train/codebook_3/usage_entropy": "3"},
        "Held-out STOI": {"eval/8_codebooks/stoi": "8"},
    }
