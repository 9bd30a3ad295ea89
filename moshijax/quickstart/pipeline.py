"""What the stages do. Each is a thin call to the functions that the single commands use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moshijax.files import write, write_json
from moshijax.quickstart import world
from moshijax.quickstart.settings import BATCHES, PLATFORMS, Folder, Settings
from moshijax.quickstart.stages import Stage

if TYPE_CHECKING:
    from moshijax.data.synthesis import Dialogue, SynthesisResult
    from moshijax.data.text import Tokenizer
    from moshijax.eval.evaluation import ProgressFn
    from moshijax.train.experiment import ExperimentConfig

# Text is taken greedily, so that a call has one answer; the voice is sampled.
# A little less PAD than the model predicts, because it errs towards silence.
SAMPLING = {"text_temperature": 0.0, "temperature": 0.5, "top_k": 20, "pad_bonus": -0.5}
TEXT_PIECES = 120


def synthesize(settings: Settings, folder: Folder, tell: ProgressFn) -> Mapping[str, Any]:
    """Speak the codec's recordings, the training calls and the held-out calls."""
    from moshijax.data.synthesis import synthesize

    trained, heldout = world.load()
    calls = world.training_calls(trained, settings.answered, settings.unanswered, settings.silent, settings.seed)
    tests = world.heldout_calls(heldout, settings.heldout, settings.seed)
    speech = world.dense_speech(trained, settings.recordings, settings.seed)
    total = len(speech) + len(calls) + len(tests)

    finished = 0

    def make(dialogues: list[Dialogue], where: Path) -> SynthesisResult:
        nonlocal finished
        before, finished = finished, finished + len(dialogues)
        return synthesize(
            dialogues, where, settings.seed, settings.workers, lambda done, _: tell(before + done, total, "recordings")
        )

    dense, made, held = make(speech, folder.speech), make(calls, folder.training_calls), make(tests, folder.heldout)
    return {
        "speech_minutes": round(dense.seconds / 60, 1),
        "calls": made.items,
        "minutes": round(made.seconds / 60, 1),
        "heldout_calls": held.items,
        "rejected": [list(pair) for one in (dense, made, held) for pair in one.rejected],
        "voices": len(world.TRAINED),
    }


def tokenizer(settings: Settings, folder: Folder, tell: ProgressFn) -> Mapping[str, Any]:
    """Train the text pieces on the answers, and prepare the answers for text-only steps."""
    from moshijax.data.documents import prepare_text
    from moshijax.data.text import train_tokenizer

    answers = [answer for _, answer in world.load()[0].questions]
    # SentencePiece proposes only pieces that occur in two different words: with marks after them, whole words do.
    marked = [word + mark for answer in answers for word in answer.split() for mark in ".,"]
    made = train_tokenizer([*answers, *marked], TEXT_PIECES, byte_fallback=False)
    made.save(folder.tokenizer)
    written = folder.path / "texts.txt"
    write(written, "".join(f"{answer}\n" for answer in answers))
    prepare_text([written], folder.texts, made)
    return {"pieces": made.vocab_size}


def teacher(settings: Settings, folder: Folder, tell: ProgressFn) -> Mapping[str, Any]:
    """Compute the phonetic features that the codec's semantic level is distilled from."""
    from moshijax.data.manifest import read_manifest
    from moshijax.data.teacher import compute_features

    index, report, _ = compute_features(
        read_manifest(folder.speech),
        folder.speech / "teacher",
        progress=lambda done, total, _: tell(done, total, "recordings"),
    )
    return {"features": index["dim"], "recordings": report.usable}


def codec_experiment(settings: Settings, folder: Folder, recipe: str, *more: str) -> ExperimentConfig:
    """Return the experiment of a codec recipe on the data of this run; `more` are further overrides."""
    from moshijax import config

    here = (
        f"task.audio.data.manifest={str(folder.speech / 'manifest.jsonl')!r}",
        f"task.audio.data.teacher={str(folder.speech / 'teacher')!r}",
        f"seed={settings.seed}",
    )
    return config.load(recipe, (*here, *more, *settings.codec_overrides))


def lm_experiment(settings: Settings, folder: Folder) -> ExperimentConfig:
    """Return the experiment of the language model on the data of this run."""
    from moshijax import config

    here = (
        f"task.audio.data.paths=({str(folder.grids)!r},)",
        f"task.tokenizer={str(folder.tokenizer)!r}",
        f"task.text.data.paths=({str(folder.texts)!r},)",
        f"seed={settings.seed}",
    )
    return config.load(settings.lm_recipe, (*here, *settings.lm_overrides))


def _train(experiment: ExperimentConfig, run_dir: Path, tell: ProgressFn) -> Mapping[str, Any]:
    from moshijax import config
    from moshijax.train.loop import train
    from moshijax.weights.run_files import METRICS, read_metrics

    loss = ""

    def progress(done: int, steps: int, values: Mapping[str, float]) -> None:
        nonlocal loss
        if "train/loss" in values:
            loss = f"loss {values['train/loss']:.3f}"
        tell(done, steps, f"steps  {loss}")

    tell(0, experiment.steps, "steps  compiling")
    train(experiment, run_dir, recipe=config.dump(experiment), progress=progress)
    lines = read_metrics(run_dir / METRICS)
    return {"steps": experiment.steps, "last": lines[-1] if lines else {}}


def train_hearing(settings: Settings, folder: Folder, tell: ProgressFn) -> Mapping[str, Any]:
    """Train the codec's encoder alone."""
    return _train(codec_experiment(settings, folder, settings.hearing_recipe), folder.hearing, tell)


def train_codec(settings: Settings, folder: Folder, tell: ProgressFn) -> Mapping[str, Any]:
    """Train the codec, starting from its encoder."""
    experiment = codec_experiment(settings, folder, settings.codec_recipe, f"init_from={str(folder.hearing)!r}")
    return _train(experiment, folder.codec, tell)


def prepare(settings: Settings, folder: Folder, tell: ProgressFn) -> Mapping[str, Any]:
    """Encode the training calls into grids."""
    from moshijax.data.encoder import CodecEncoder
    from moshijax.data.manifest import read_manifest
    from moshijax.data.prepare import prepare

    encoder = CodecEncoder.load(folder.codec)
    _, report, _ = prepare(
        read_manifest(folder.training_calls),
        folder.grids,
        encoder,
        progress=lambda done, total, _: tell(done, total, "calls"),
    )
    return {"calls": report.usable}


def train_moshi(settings: Settings, folder: Folder, tell: ProgressFn) -> Mapping[str, Any]:
    """Train the language model."""
    return _train(lm_experiment(settings, folder), folder.moshi, tell)


def load_tokenizer(folder: Folder) -> Tokenizer:
    """Load the text pieces of this run."""
    from moshijax.data.text import Tokenizer

    return Tokenizer.load(folder.tokenizer)


def export(settings: Settings, folder: Folder, tell: ProgressFn) -> Mapping[str, Any]:
    """Export the artifact for every platform, and for comparison one of the same model before its training."""
    import jax

    from moshijax import lm, weights
    from moshijax.export import artifact

    codec_model = weights.load_mimi(folder.codec)
    lm_config, lm_params = weights.load_lm(folder.moshi)
    text = load_tokenizer(folder)
    files = 3 * (len(PLATFORMS) * len(BATCHES) + 1)
    written = 0

    def progress(name: str) -> None:
        nonlocal written
        written += name.endswith(".jaxexp")
        tell(min(written, files), files, name)

    artifact.build(
        codec_model, (lm_config, lm_params), text.pieces, folder.artifact, PLATFORMS, BATCHES,
        sampling=SAMPLING, tokenizer=text.model, overwrite=True, progress=progress,
    )  # fmt: skip
    folder.calls.mkdir(exist_ok=True)
    fresh = lm.init(lm_config, jax.random.key(settings.seed))
    artifact.build(
        codec_model, (lm_config, fresh), text.pieces, folder.untrained_artifact, ("cpu",), (max(BATCHES),),
        sampling=SAMPLING, tokenizer=text.model, overwrite=True, progress=progress,
    )  # fmt: skip
    size = sum(path.stat().st_size for path in folder.artifact.iterdir())
    count = sum(leaf.size for leaf in jax.tree.leaves(lm_params))
    return {"megabytes": round(size / 1e6, 1), "parameters": count}


def play_calls(settings: Settings, folder: Folder, tell: ProgressFn) -> Mapping[str, Any]:
    """Play the held-out calls; writes calls/calls.json, calls/recordings.npz, reply.wav and figures.json."""
    from moshijax.eval import spoken_qa

    untrained = str(folder.untrained_artifact)
    questions = spoken_qa.SpokenQA(str(folder.artifact), str(folder.heldout), untrained, platform="cpu")
    played = spoken_qa.play(questions, folder.reply, tell)
    played.save(folder.calls)
    write_json(folder.figures, played.figures)
    return played.figures


def hear(settings: Settings, folder: Folder, tell: ProgressFn) -> Mapping[str, Any]:
    """Let a recogniser hear the answers in clear voices; writes calls/heard.json and calls/heard.npz."""
    from moshijax.eval import heard

    calls = heard.WordsHeard(
        str(folder.heldout), str(folder.codec), str(folder.artifact), most=settings.heldout, platform="cpu"
    )
    found = heard.measure(calls, tell)
    found.save(folder.calls)
    return found.values


def report(settings: Settings, folder: Folder, tell: ProgressFn) -> Mapping[str, Any]:
    """Write the page."""
    from moshijax.quickstart import page

    page.write(settings, folder, {stage.name: stage.title for stage in STAGES})
    return {}


STAGES = (
    Stage("synthesize", "speak the calls", synthesize),
    Stage("tokenizer", "learn the text pieces", tokenizer),
    Stage("teacher", "phonetic features", teacher),
    Stage("hearing", "train the codec's ear", train_hearing),
    Stage("codec", "train the codec", train_codec),
    Stage("prepare", "calls to token grids", prepare),
    Stage("moshi", "train the language model", train_moshi),
    Stage("export", "export the streaming step", export),
    Stage("calls", "answer held-out calls", play_calls),
    Stage("heard", "listen to the answers", hear, optional=True),
    Stage("report", "write the report", report),
)
