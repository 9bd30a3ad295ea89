"""An artifact of LLaMA-Omni answers as the model does, in pieces, to several callers in turn, and as a command."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from moshijax import runtime
from moshijax.errors import ConfigError, DataError
from moshijax.export import answer as exporting
from moshijax.export import planning
from moshijax.export.answer import AnswerText
from moshijax.export.step import nested
from moshijax.nn.quantised import dequantise_kernels
from moshijax.omni import config as omni
from moshijax.omni import vocoder
from moshijax.omni.prompt import BEGIN, HEADER, HEADER_END, TURN_END
from moshijax.runtime import answers as answering
from moshijax.runtime import audio, manifest
from moshijax.runtime.answers import AnswerOptions, Answers
from moshijax.weights import omni as weights
from moshijax.weights.safetensors import TensorFile
from tests.omni.small import OMNI, VOCODER, params, vocoder_params
from tests.omni.test_answer import PROMPT, TOKENS, question, whole
from tests.programs import HAS_CUDA_COMPILER
from tests.weights.test_omni import OMNI as SOURCE
from tests.weights.test_omni import VOCODER as SOURCE_VOCODER
from tests.weights.test_omni import filled

STOP = 39  # which the tests' model does not come to
LETTERS = tuple("" if i == STOP else chr(97 + i % 26) for i in range(40))
TEXT = AnswerText(PROMPT, (STOP,), LETTERS)


def build(path, text=TEXT, model=OMNI, voice=VOCODER, **options):
    settings = dict(tokens=TOKENS, omega=7, prefill_lengths=(4, 16)) | options
    return exporting.build((model, params()), (voice, vocoder_params()), text, path, **settings)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return build(tmp_path_factory.mktemp("answers") / "artifact")


@pytest.fixture(scope="module")
def artifact(path):
    return answering.load(path)


@pytest.fixture(scope="module")
def caller(artifact):
    return Answers(artifact)


def joined(pieces):
    pieces = list(pieces)
    units = [unit for piece in pieces for unit in piece.units]
    return [piece.token for piece in pieces], units, np.concatenate([piece.pcm for piece in pieces])


@pytest.mark.parametrize("omega", [1, 7, 10_000])
def test_the_runtime_answers_as_the_whole_model(caller, omega):
    pcm = question()[0]
    pieces = list(caller.answer(pcm, AnswerOptions(omega=omega)))
    tokens, units, sound = joined(pieces)
    want_tokens, want_units, want_sound, _ = whole(params(), pcm[None], tokens)
    assert tokens == want_tokens and units == want_units
    np.testing.assert_allclose(sound, want_sound, atol=1e-5)
    assert "".join(piece.text for piece in pieces) == "".join(LETTERS[token] for token in tokens)
    assert pieces[-1].last and not pieces[-1].complete and len(tokens) == TOKENS
    spoke = [number for number, piece in enumerate(pieces) if len(piece.pcm)]
    assert (spoke == [TOKENS - 1]) == (omega == 10_000) and spoke[-1] == TOKENS - 1


def test_an_answer_ends_where_the_model_ends_it(path, tmp_path, caller):
    tokens, units, _ = joined(caller.answer(question()[0]))
    stop = next(token for token in tokens[3:] if token not in tokens[:3])
    described = json.loads((path / manifest.MANIFEST).read_text())
    described["text"]["stop"] = [stop]
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in path.iterdir():
        (copy / file.name).symlink_to(file)
    (copy / manifest.MANIFEST).unlink()
    (copy / manifest.MANIFEST).write_text(json.dumps(described))
    pieces = list(Answers(answering.load(copy, verify=False)).answer(question()[0]))
    end = tokens.index(stop) + 1
    got, said, _ = joined(pieces)
    assert got == tokens[:end] and said == units[: len(said)] and pieces[-1].complete


def test_chance_is_the_seeds(caller):
    warm = {"text_temperature": 1.5, "text_top_k": 20}
    one, again, other = (joined(caller.answer(question()[0], AnswerOptions(seed, warm)))[0] for seed in (1, 1, 2))
    assert one == again != other


def test_an_answer_that_is_left_and_the_next_one(caller):
    want = joined(caller.answer(question(5)[0]))
    for number, _ in enumerate(caller.answer(question(6)[0])):
        if number == 4:
            break
    got = joined(caller.answer(question(5)[0]))
    assert got[:2] == want[:2]
    np.testing.assert_array_equal(got[2], want[2])


def test_callers_take_turns_with_caches_of_their_own(artifact, caller):
    pcm = [question(seed)[0] for seed in (5, 6)]
    want = [joined(caller.answer(each))[:2] for each in pcm]
    answers = [Answers(artifact).answer(each) for each in pcm]
    pieces = [[], []]
    for number in [0, 0, 1] * TOKENS + [1] * TOKENS:
        pieces[number] += [piece for piece in [next(answers[number], None)] if piece is not None]
    assert [joined(each)[:2] for each in pieces] == want


@pytest.mark.parametrize(
    ("pcm", "error", "message"),
    [
        (np.zeros(9000), DataError, "silent"),
        (np.ones(16001), DataError, "1.00 s: must be 0.1 to 1 s long"),
        (np.ones(100), DataError, "0.01 s"),
        (np.full(9000, np.nan), DataError, "NaN"),
        (np.ones((2, 9000)), ConfigError, r"must be \[N\]"),
    ],
)
def test_questions_that_cannot_be_answered(caller, pcm, error, message):
    with pytest.raises(error, match=message):
        caller.answer(pcm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (AnswerOptions(omega=0), "omega=0: must be 1 or more"),
        (AnswerOptions(sampling={"temperature": 1.0}), "unknown sampling field"),
        (AnswerOptions(sampling={"text_top_k": 41}), "text_top_k=41"),
        (AnswerOptions(seed=-1), "seed -1"),
    ],
)
def test_options_that_cannot_be(caller, options, message):
    with pytest.raises(ConfigError, match=message):
        caller.answer(question()[0], options)


def test_the_command(path, caller, cli, tmp_path):
    pcm = question()[0]
    audio.write(tmp_path / "question.wav", pcm, 16000)
    heard, _ = audio.read(tmp_path / "question.wav")
    want = joined(caller.answer(heard[:, 0]))
    user, out, text = (tmp_path / name for name in ("question.wav", "reply.wav", "reply.json"))
    code, printed, err = cli("run", path, "--user", user, "--out", out, "--text-out", text, "--omega", "3")
    assert code == 0, err
    assert "time to first audio: " in printed and " at omega 3" in printed
    rows = [line.split()[0] for line in printed.splitlines() if line.strip() and line.split()[0].isdigit()]
    assert {"10", "20", "40", "60", "80", "100"} <= set(rows) and "\nwhole " in printed
    reply, rate = audio.read(out)
    assert rate == 16000 and reply.shape[1] == 1
    np.testing.assert_allclose(reply[:, 0], want[2], atol=1e-4)
    said = json.loads(text.read_text())
    assert said["tokens"] == want[0] and said["units"] == want[1] and len(said["latency"]) == 8
    first, *_, last = said["latency"]
    assert first["omega"] == 3 and first["units"] < last["units"] == len(want[1])
    assert first["sound_ms"] < last["sound_ms"] == pytest.approx(len(want[2]) / 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--text", "Hello."), "takes no text; omit --text"),
        (("--voice-prompt", "a.wav"), "omit --voice-prompt"),
        (("--tail", "3"), "omit --tail"),
        ((), "give --user"),
    ],
)
def test_options_of_calls_are_refused(path, cli, options, message):
    code, _, err = cli("run", path, *options)
    assert code == 2 and message in err


def test_an_artifact_leads_to_another(path, caller, cli, tmp_path):
    code, _, err = cli("export", path, tmp_path / "again", "--codec", path)
    assert code == 2 and "--codec is for calls" in err
    code, _, err = cli("export", path, tmp_path / "again", "--weights-dtype", "bfloat16", "--platforms", "cpu,cuda")
    assert code == 0, err
    was, found = manifest.read(path), manifest.read(tmp_path / "again")
    assert found["platforms"] == ["cpu", "cuda"]
    shapes = [{name: spec["shape"] for name, spec in made["state"].items()} for made in (was, found)]
    assert shapes[0] == shapes[1]
    for name in ("config", "prompt", "text", "answer", "voice", "sampling", "lengths"):
        assert found[name] == was[name], name
    tensors = found["weights"]["tensors"]
    assert tensors["omni/text/table"]["dtype"] == "bfloat16" and tensors["vocoder/table"]["dtype"] == "float32"
    assert found["weights"]["program_dtypes"]["cuda"] == {"bfloat16": "bfloat16", "float32": "float32"}
    assert (tmp_path / "again" / "decode_units.cuda.b1.jaxexp").is_file()


def test_int8_weights_answer_as_what_they_stand_for(path, cli, tmp_path):
    small, again = tmp_path / "small", tmp_path / "again"
    code, _, err = cli("export", path, small, "--weights-dtype", "int8", "--platforms", "cpu")
    assert code == 0, err
    tensors = manifest.read(small)["weights"]["tensors"]
    kernels = {name.removesuffix("/integers") for name, spec in tensors.items() if spec["dtype"] == "int8"}
    assert {"omni/text/head", "omni/adapter/linear1/kernel", "omni/decoder/output_proj/kernel"} <= kernels
    assert any(name.startswith("omni/encoder/stack/") for name in kernels)
    assert tensors["omni/encoder/conv1/kernel"]["dtype"] == tensors["vocoder/table"]["dtype"] == "float32"
    assert tensors["omni/text/table"]["dtype"] == "bfloat16"

    stored = dequantise_kernels(nested(dict(TensorFile(small / manifest.WEIGHTS)))["omni"])
    stands_for = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), stored)
    pcm = question()[0]
    tokens, units, _ = joined(Answers(answering.load(small)).answer(pcm))
    assert (tokens, units) == whole(stands_for, pcm[None], tokens)[:2]

    exporting.rebuild(small, again)
    assert manifest.read(again)["weights"]["tensors"] == tensors
    assert (again / manifest.WEIGHTS).read_bytes() == (small / manifest.WEIGHTS).read_bytes()


def test_int8_needs_finite_weights(tmp_path):
    bad = params() | {"adapter": {**params()["adapter"], "linear2": {**params()["adapter"]["linear2"]}}}
    kernel = bad["adapter"]["linear2"]["kernel"].copy()
    kernel[0, 0] = np.nan
    bad["adapter"]["linear2"]["kernel"] = kernel
    with pytest.raises(DataError, match="omni/adapter/linear2/kernel has values that are not finite"):
        exporting.build(
            (OMNI, bad), (VOCODER, vocoder_params()), TEXT, tmp_path / "artifact", weights_dtype="int8", tokens=TOKENS
        )


def test_it_takes_no_calls(path):
    with pytest.raises(ConfigError, match="answers questions one by one"):
        runtime.load(path)


def test_the_plan_of_callers_in_turn(path):
    described = manifest.read(path)
    plan = planning.answering(path, described, jax.devices()[0])
    text = "\n".join(plan.lines)
    size = {name: np.prod(spec["shape"]) * 4 for name, spec in described["weights"]["tensors"].items()}
    caches = answering.load(path).init_state()
    taken = sum(array.nbytes for array in caches.values())
    assert f"weights      {sum(size.values()) / 1e6:.2f} MB, once" in plan.lines
    assert f"caches       {taken / 1e6:.2f} MB for every caller" in plan.lines
    assert "callers " not in text and plan.verdict is None  # (nothing is known of a CPU's memory)
    titles = ("encode_speech", "prefill, 16 ids", "decode_token", "decode_units", "durations, 64 units")
    assert {*titles, "vocode_chunk, 256 frames"} < set(plan.lines)
    assert text.count("\nmemory ") == text.count("\ntraffic ") == 6


def test_how_many_callers_fit(path):
    described, device = manifest.read(path), jax.devices()[0]
    memory = planning.Memory(weights=1000, caches=300, running=50)
    assert [memory.callers(size) for size in (900, 1349, 1350, 1950)] == [0, 0, 1, 3]
    small = planning.answering(path, described, device, memory=1000)
    assert "store smaller weights" in small.verdict
    assert any(line.startswith("callers      0 of them fit") for line in small.lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--topology", "cuda:l40s", "--batch", 4), "answers its callers in turn; omit it"),
        (("--topology", "cuda:l40s"), "has no platform cuda, but cpu; export it again with --platforms cuda"),
        (("--topology", "v5p-8"), "has several devices"),
        ((), "no topology is given"),
        (("--topology", "cuda:l40s", "--devices", 2), "--devices is for recipes"),
    ],
)
def test_plans_that_cannot_be(path, cli, options, message):
    code, out, err = cli("plan", path, *options)
    assert code == 2 and message in err and not out


@pytest.mark.skipif(not HAS_CUDA_COMPILER, reason="needs the extra compile-cuda")
def test_a_plan_for_a_card(path, tmp_path):
    for_card = exporting.rebuild(path, tmp_path / "card", ("cuda",), "int8")
    command = [sys.executable, "-m", "moshijax.cli.main", "plan", str(for_card), "--topology", "cuda:l40s"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": ""})
    assert done.returncode == 0, done.stderr
    assert "of them fit the" in done.stdout and "ms at least, with its units of speech" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": AnswerText(PROMPT, (STOP,), LETTERS * 2)}, "a tokenizer of 80 ids does not fit the text model"),
        ({"text": AnswerText(PROMPT, (), LETTERS)}, "no answer would end"),
        ({"voice": dataclasses.replace(VOCODER, units=13)}, "the vocoder has 13 units, the speech decoder 12"),
        ({"voice": dataclasses.replace(VOCODER, sample_rate=24000)}, "24000 Hz: must be 16000"),
        ({"weights_dtype": "int4"}, "must be one of float32, bfloat16, int8"),
        ({"tokens": 0}, "tokens=0"),
        ({"model": dataclasses.replace(OMNI, text=dataclasses.replace(OMNI.text, vocab=50))}, "parameters do not fit"),
    ],
)
def test_parts_that_do_not_fit(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        build(tmp_path / "artifact", **change)
    assert not (tmp_path / "artifact").exists()


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens([BEGIN, HEADER, HEADER_END, TURN_END])
    return made


def test_text_of_byte_level_tokens(tokenizer):
    """Every id's bytes, special ones without any, and characters that are cut between tokens."""
    kept = exporting.answer_text(tokenizer)
    text = "Grüße, 世界!\n"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(kept.pieces[i].encode("latin-1") for i in ids).decode() == text
    assert kept.stop == (tokenizer.token_to_id(TURN_END),) and kept.pieces[kept.stop[0]] == ""
    assert kept.prompt.before[:2] == (tokenizer.token_to_id(BEGIN),) * 2


def test_published_files_become_an_artifact(tokenizer, cli, tmp_path):
    text = dataclasses.replace(SOURCE.text, vocab=260)
    model = dataclasses.replace(SOURCE, text=text)
    weights.save_llama_omni(model, filled(omni.abstract(model, False)), tmp_path / "model")
    voice = dataclasses.replace(SOURCE_VOCODER, units=SOURCE.decoder.units)
    weights.save_vocoder(voice, filled(vocoder.abstract(voice)), tmp_path / "vocoder")
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    arguments = ("export", tmp_path / "model", tmp_path / "artifact", "--vocoder", tmp_path / "vocoder")
    code, _, err = cli(*arguments, "--batch", "2")
    assert code == 2 and "--batch" in err
    code, out, err = cli(*arguments)
    assert code == 0 and "wrote" in out, err
    described = manifest.read(tmp_path / "artifact")
    assert described["answer"]["tokens"] == exporting.TOKENS and described["prompt"]["before"][0] == 256
