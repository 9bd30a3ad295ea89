"""Dialogues by a language model: prompts by family, a real HTTP server that answers, what is kept of the answers."""

from __future__ import annotations

import json
import random
import re
from collections import Counter

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from moshijax.cli.main import cli
from moshijax.data.endpoint import Endpoint
from moshijax.data.scripts import ChatEndpoint, Family, LocalModel, load_families, write_scripts
from moshijax.data.scripts.validation import ScriptRules, judge
from moshijax.data.spoken import UNSPEAKABLE
from moshijax.data.synthesis import texts
from moshijax.errors import ConfigError, DataError, MoshijaxError
from moshijax.shipped import folder
from tests.data.server import Answer, serving

PROMPTS = folder("data/prompts")
ANY = Family("any", "write", "about {topic}", (2, 6), "", {"topic": ["tea", "rain"]})
GOOD = "user: What is 2 + 2?\nmodel: It is 4.\nuser @0.5: right.\nuser +0.5: And 3 km?\nmodel !0.5: Far."
FEW = settings(max_examples=80, deadline=None, derandomize=True, database=None)


def chat(text: str, reason: str = "stop") -> Answer:
    return Answer(body=json.dumps({"choices": [{"message": {"content": text}, "finish_reason": reason}]}).encode())


def test_the_families_of_the_paper_ship_and_every_place_of_theirs_can_be_filled(tmp_path):
    given = {name: tmp_path / name for name in ("paragraph", "fact")}
    for path in given.values():
        path.write_text("The moon is far away.\n")
    families = {family.name: family for family in load_families(PROMPTS, given=given)}
    assert families.keys() == {
        "knowledge", "persona", "voice_instruction", "role_play", "misspelling", "false_facts", "facts", "safety",
        "interruptions",
    }  # fmt: skip
    assert families["interruptions"].needs == "interruption"
    for family in families.values():
        prompts = {family.fill(random.Random(n)) for n in range(30)}
        assert not any("{" in prompt or "}" in prompt for prompt in prompts) and "user:" in family.system
        assert family.fill(random.Random(3)) == family.fill(random.Random(3))
        assert len(prompts) > 5 or family.name in ("knowledge", "persona")
    assert "The moon is far away." in families["knowledge"].fill(random.Random(0))
    lists = {path.stem for path in (PROMPTS / "lists").glob("*.txt")}
    assert lists == {place for family in families.values() for place in family.entries} - {"paragraph", "fact"}
    # Without paragraphs, the families that need none are left.
    assert {family.name for family in load_families(PROMPTS)} == families.keys() - {"knowledge", "persona"}


def test_what_is_wrong_with_prompts_is_said(tmp_path):
    for names, lists, message in (
        (["poems"], {}, "family 'poems' is not in .*choose of facts, false_facts"),
        (["knowledge"], {}, "family knowledge needs a list of paragraph: add --given paragraph=FILE"),
        (["facts"], {"topic": tmp_path / "a"}, r"--given topic: no family here has the place \{topic\}"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_families(PROMPTS, names, lists)
    (tmp_path / "format.txt").write_text("write")
    for text in (
        "write about {x}",
        "turns: 2\n\nwrite",
        "turns: 2 4\nneeds: peace\n\nwrite",
        "turns: 4 2\n\nx",
        "turns: 1 2\n\n",
    ):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(DataError, match="bad.txt is no family of prompts: begin it with 'turns: LEAST MOST'"):
            load_families(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"), ("# only a remark", "empty"), ("Sure! Here it is.\nuser: Hi.\nmodel: Hi.", "form"),
        ("user: Hi.\nmodel @1.5: Hi.", "form"), ("user: Hi.\nmodel +60: Hi.", "form"), ("user: Hi.", "turns"),
        ("user: Hi.\n" * 4 + "model: Hi.\n" * 4, "turns"), ("user: Hi.\nuser: You.", "one_speaker"),
        ("user @0.5: Hi.\nmodel: Hi.", "begins"), ("user: Hi.\nmodel: " + "so " * 81, "long"),
        ("user: Hi.\nmodel: ...!", "silent"), ("user: Hi.\nmodel: `x`", "code"), ("user: Hi.\nmodel: a.com", "url"),
    ],
)  # fmt: skip
def test_scripts_that_cannot_be_spoken_are_rejected_by_reason(text, reason):
    assert judge(text, ANY, ScriptRules()) == reason


def test_a_script_is_kept_in_its_spoken_form():
    found = judge(f"# two sentences\n```text\n{GOOD}\n```\n", ANY, ScriptRules())
    assert [str(line) for line in found] == [
        "user: What is two plus two?", "model: It is four.", "user @0.5: right.", "user +0.5: And three kilometers?",
        "model !0.5: Far.",
    ]  # fmt: skip
    assert [str(line) for line in judge("**User:** Hi.\nMODEL: Hi.", ANY, ScriptRules())] == ["user: Hi.", "model: Hi."]
    needy = Family("i", "", "x", (2, 9), "interruption", {})
    assert judge("user: Hi.\nmodel: Hi.", needy, ScriptRules()) == "needs" and judge(GOOD, needy, ScriptRules())[4]


@FEW
@given(st.lists(st.sampled_from(["user: Hi.", "model: yes", "user @0.5: 3", "model !.5: 🙂", "user -9:", "```", "# x"])
                | st.text(max_size=12), max_size=7))  # fmt: skip
def test_whatever_a_model_writes_is_a_script_or_has_a_reason(lines):
    found = judge("\n".join(lines), ANY, ScriptRules())
    if isinstance(found, str):
        reasons = ("empty", "form", "turns", "one_speaker", "begins", "long", "silent")
        assert found in (*reasons, *UNSPEAKABLE)
    else:
        (dialogue,) = texts.parse("== a\n" + "\n".join(map(str, found)))
        assert len(dialogue.utterances) == len(found)


def test_a_server_is_asked_once_per_prompt_and_every_answer_is_counted(tmp_path):
    def answer(path, body, headers):
        number = body["seed"] % 4
        if number == 0:
            return Answer(400, b'{"message": "refused"}')
        text = (f"user: Is {body['seed']} a number?\nmodel: Yes.", "user: Hi.\nmodel: Hello.", "No.")[number - 1]
        return chat(text, "length" if body["seed"] % 8 == 1 else "stop")

    with serving(answer) as server:
        generator = ChatEndpoint(Endpoint(f"{server.url}/v1", retries=0), "m", temperature=0.5)
        report = write_scripts([ANY], generator, tmp_path, 40, seed=1, workers=3)
        assert len(server.requests) == 40
        path, body = server.requests[0]
        assert path == "/v1/chat/completions" and body["temperature"] == 0.5 and body["max_tokens"] == 1024
        assert body["messages"][0] == {"role": "system", "content": "write"} and body["model"] == "m"
        seeds = [body["seed"] for _, body in server.requests]
        kinds = Counter(("refused", "cut" if seed % 8 == 1 else "", "same", "form")[seed % 4] for seed in seeds)
        assert report.rejected == {
            "refused": kinds["refused"], "cut": kinds["cut"], "form": kinds["form"], "duplicate": kinds["same"] - 1,
        }  # fmt: skip
        assert report.kept.total() + report.rejected.total() == 40 == report.asked
        script, told = (tmp_path / "dialogues.txt").read_text(), (tmp_path / "dialogues.report.json").read_text()
        # Again, one at a time: only those that were refused are asked for, and the result is the same.
        write_scripts([ANY], generator, tmp_path, 40, seed=1)
        assert len(server.requests) == 40 + kinds["refused"]
        assert (tmp_path / "dialogues.txt").read_text() == script
        assert (tmp_path / "dialogues.report.json").read_text() == told
        # More of them: the first ones are the same.
        write_scripts([ANY], generator, tmp_path, 44, seed=1)
        assert (tmp_path / "dialogues.txt").read_text().startswith(script)
    assert len(texts.parse(script)) == report.kept.total()


def test_what_is_no_chat_stops_and_goes_on_later(tmp_path):
    answers = iter(
        [chat(GOOD), Answer(body=b'{"choices": []}'), chat("user: A.\nmodel: B."), chat("user: C.\nmodel: D.")]
    )
    with serving(lambda *_: next(answers)) as server:
        generator = ChatEndpoint(Endpoint(server.url), "m")
        with pytest.raises(MoshijaxError, match="answered .*choices.*it must be an end-point for chats"):
            write_scripts([ANY], generator, tmp_path, 3)
        assert not (tmp_path / "dialogues.txt").exists()
        assert write_scripts([ANY], generator, tmp_path, 3).kept == {"any": 3} and len(server.requests) == 4
    with serving(lambda *_: chat("I cannot.")) as server:
        with pytest.raises(
            DataError, match=r"none of 2 answers becomes a dialogue \(\{'form': 2\}\): look at .*answers"
        ):
            write_scripts([ANY], ChatEndpoint(Endpoint(server.url), "m"), tmp_path / "none", 2)


def test_the_command_writes_a_script_that_synthesize_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("KEY", "k")

    def answer(path, body, headers):
        assert headers["Authorization"] == "Bearer k"
        return chat(f"user: Number {body['seed']}?\nmodel: No.")

    def invoke(*arguments):
        return CliRunner().invoke(cli, ["data", "dialogues", str(tmp_path / "out"), *map(str, arguments)])

    (tmp_path / "wiki.txt").write_text("Tea is a drink.\n")
    with serving(answer) as server:
        where = ("--generator", server.url, "--model", "m", "--key", "KEY", "--count", 4)
        done = invoke(*where, "--family", "facts", "--family", "knowledge", "--given", f"paragraph={tmp_path}/wiki.txt")
        assert done.exit_code == 0 and "2 dialogues of 4 answers" in done.output, done.output
        assert "facts: 2 of 2\n  knowledge: 0 of 2\n  rejected turns: 2 answers" in done.output
        assert "Tea is a drink." in str(server.requests)
    assert len(texts.load(tmp_path / "out" / "dialogues.txt")) == 2
    for arguments, message in (
        (("--generator", "http://a"), "asked for a model by its name: add --model"),
        (("--generator", "models/a", "--model", "m"), "--model and --key are for end-points"),
        (("--generator", "http://a", "--model", "m", "--given", "topic"), "write PLACE=FILE"),
    ):
        failed = invoke(*arguments).exception
        assert isinstance(failed, ConfigError) and re.search(message, str(failed))


def test_a_local_model_writes_what_its_seed_draws(tmp_path):
    """A small random model: its words mean nothing, but they follow from the seed, and the prompt is not among them."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<s>", "</s>", *"user model hi there :".split()]
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, "<s>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="has no chat template"):
        LocalModel(str(tmp_path / "model")).write("s", "p", 0)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path / "model")
    model = LocalModel(str(tmp_path / "model"), max_tokens=30)
    one, same, other = (model.write("hi", "there", seed) for seed in (1, 1, 2))
    assert one == same != other and set(one.text.split()) <= set(words)
    with pytest.raises(ConfigError, match="is no language model of Transformers here"):
        LocalModel(str(tmp_path)).write("s", "p", 0)
