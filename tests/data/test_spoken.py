"""Spoken forms by rule, instructions to scripts, and that nothing raises or is lost without being counted."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from moshijax.cli.main import cli
from moshijax.data.instructions import SpokenReport, SpokenRules, exchanges
from moshijax.data.spoken import spoken
from moshijax.data.synthesis import texts
from moshijax.errors import ConfigError, DataError

FEW = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("I have 3 of 1,234 and -7.", "I have three of one thousand two hundred and thirty four and minus seven."),
        ("Pi is 3.14159.", "Pi is three point one four one five nine."),
        ("Call 0123.", "Call zero one two three."),
        ("It cost $12.50, €1, £0.01 or $3 million.", "It cost twelve dollars and fifty cents, one euro, one penny or "
         "three million dollars."),
        ("3 kg, 1 km, 6 ft, 80 km/h, 10 m², -4°C", "three kilograms, one kilometer, six feet, eighty kilometers per "
         "hour, ten square meters, minus four degrees Celsius"),
        ("On March 5, 2024 or 2024-03-05 or 07/04/1776.", "On March fifth, twenty twenty four or March fifth, twenty "
         "twenty four or July fourth, seventeen seventy six."),
        ("On the 4 July, in 1990-2005, the 1960s and '90s", "On the fourth of July, in nineteen ninety to two thousand "
         "and five, the nineteen sixties and nineties"),
        ("At 10:30 am, 9:00, 14:05 or 7 p.m.", "At ten thirty A M, nine o'clock, fourteen oh five or seven P M"),
        ("the 21st, 3rd", "the twenty first, third"),
        ("3 1/2 cups, ¾ done, 5/8", "three and one half cups, three quarters done, five eighths"),
        ("R&D is 50% @ home, 2^3 = 8", "R and D is fifty percent at home, two cubed equals eight"),
        ("The USA, NASA and CPUs", "The U S A, NASA and C P Us"),
        ("Dr. Who, e.g. the first, vs. Mr. X", "doctor Who, for example the first, versus mister X"),
        ("pages 5-10, twenty-one", "pages five to ten, twenty one"),
        ("Don’t — “stop”!", "Don't, stop!"),
        ("v2.0, 192.168.0.1, 1.50 and 2.0e-3", "version two point zero, one hundred and ninety two point one hundred "
         "and sixty eight point zero point one, one point five zero and two point zero times ten to the power of minus "
         "three"),
        ("Call (555) 123-4567 or 555-0199", "Call five five five, one two three, four five six seven or five five "
         "five, zero one nine nine"),
        ("25.12.2023, Jan. 5, the 2nd of May, Sept 3", "December twenty fifth, twenty twenty three, January fifth, the "
         "second of May, September third"),
        ("$1.5M, $5k, US$20, 20€, 5¢, $10-$20, £3-5, 7 USD", "one point five million dollars, five thousand dollars, "
         "twenty U S dollars, twenty euros, five cents, ten to twenty dollars, three to five pounds, seven U S "
         "dollars"),
        ("5'10\" tall, 10 ft x 12 ft, 9.8 m/s^2, 5 km/h, 60 fps", "five feet ten inches tall, ten feet by twelve feet, "
         "nine point eight meters per second squared, five kilometers per hour, sixty frames per second"),
        ("10:30-11:00, 9-11 am, 2:1", "ten thirty to eleven o'clock, nine to eleven A M, two to one"),
        ("10 - 3 = 7, 6 * 7, 8 / 2, 5%-10%", "ten minus three equals seven, six times seven, eight divided by two, "
         "five percent to ten percent"),
        ("Henry VIII in World War II, chapter 4", "Henry the eighth in World War two, chapter four"),
        ("COVID-19, GPT-4, C++, C#, #moon", "COVID nineteen, G P T four, C plus plus, C sharp, hashtag moon"),
        ("Prof. X, St. John, No. 5, pp. 3-4, he/she, and/or", "professor X, Saint John, number five, pages three to "
         "four, he or she, and or"),
        ("In the U.S. now. From the U.S.A.", "In the U S now. From the U S A."),
        ("Do NOT go. 24/7 & 50/50", "Do not go. twenty four seven and fifty fifty"),
        ("PLEASE READ ALL OF THIS", "please read all of this"),
        ("a &amp; b &lt; c", "a and b less than c"),
    ],
)  # fmt: skip
def test_what_is_said_for_what_is_written(written, said):
    assert spoken(written).text == said


@pytest.mark.parametrize(
    ("written", "said", "removed"),
    [
        ("- one\n* two\n\n1. three\n2) four", "one. two. three. four", {"list": 4}),
        ("# Head\n**bold** and _thin_ [word](http://x.y)<br/>", "Head. bold and thin word", {"markup": 7}),
        ("Run ```\nx = 1\n``` or `y`.", "Run or.", {"code": 2}),
        ("See https://a.b/c?d=1, www.x.org or me@x.org", "See or", {"url": 3}),
        ("~~old~~ text [1]\n---\n![a dog](dog.png)", "old text. a dog", {"markup": 5}),
        ("Fine.\n| a | b |\n|---|---|\n| 1 | 2 |", "Fine.", {"table": 3}),
        (r"It is $\frac{1}{2}$ or $$x^2$$.", "It is or.", {"formula": 2}),
        ("Yes 🙂 (really)", "Yes really", {"character": 1, "punctuation": 2}),
    ],
)
def test_what_cannot_be_said_goes_and_is_counted(written, said, removed):
    found = spoken(written)
    assert found.text == said and dict(found.removed) == removed


@FEW
@given(st.text(max_size=60) | st.text("0123456789.,:/-$€%°^²½'apmkgNASAst \n*`#<>[]()@", max_size=40))
def test_any_text_becomes_letters_spaces_and_marks(text):
    said = spoken(text).text
    assert all(char.isalpha() or char in " .,?!'" for char in said), said
    assert said == said.strip() and "  " not in said and not re.search(r"[.,?!]{2}", said)


@FEW
@given(
    st.lists(st.sampled_from(
        "$5 €1.20 3pm 10:30 1/2 5/8 2024 1990s '90s 21st 3-4 5% -7 #1 No. 12.5.2020 9.8 m/s^2 5'10\" 555-123-4567 "
        "v1.2.3 1e6 x II Henry 24/7 10 - * / = ( ) [1] | $ \\ ^2 k M USD °".split(" ")), max_size=8),
    st.sampled_from(["", " ", "\n"]),
)  # fmt: skip
def test_numbers_beside_each_other_never_raise_and_leave_no_digit(parts, between):
    said = spoken(between.join(parts)).text
    assert not any(char.isdigit() for char in said), said


@FEW
@given(
    st.lists(st.sampled_from("a rain Hello don't 12 3.5 50% 7km 🙂 ∫ ( ; `code` http://x.y 1/2 ok".split()), min_size=1)
)
def test_what_is_lost_is_counted(words):
    """Every word is said or counted: numbers and words by what stands for them, the others by kind."""
    found = spoken(" ".join(words))
    signs = {"🙂": "character", "∫": "character", "(": "punctuation", ";": "punctuation", "`code`": "code",
             "http://x.y": "url"}  # fmt: skip
    expected: dict[str, int] = {}
    for word in words:
        if word in signs:
            expected[signs[word]] = expected.get(signs[word], 0) + 1
    assert dict(found.removed) == expected
    heard = found.text.split()
    for word in ("rain", "Hello", "don't", "ok"):
        assert sum(part.strip(",") == word for part in heard) == words.count(word)
    assert sum(part.strip(",") == "percent" for part in heard) == words.count("50%")
    assert sum(part.strip(",") == "kilometers" for part in heard) == words.count("7km")


def entry(instruction="What is 2 + 2?", output="It is 4.", more=""):
    return {"instruction": instruction, "input": more, "output": output}


def made(*entries, **rules):
    report = SpokenReport()
    found = exchanges(entries, SpokenRules(**{"fillers": 0.0, **rules}), report)
    return [(e.id, e.question, e.answer) for e in found], report


def test_entries_become_dialogues_or_are_counted_by_reason():
    found, report = made(
        entry(), entry("Add", "3", more="1 and 2"), entry(), "text", {"instruction": "x"}, entry(output=3),
        entry("", "a"), entry("Print", "`print(1)`"), entry("Where?", "At www.a.org"), entry("one " * 41),
        entry("Why?", "so " * 61 + "."), entry("🙂", "a"), entry("Draw", "|a|\n|b|"), entry("Solve", "$$x$$"),
    )  # fmt: skip
    assert [turn[1:] for turn in found] == [("What is two plus two?", "It is four."), ("Add. one and two", "three")]
    assert [turn[0] for turn in found] == ["instruction-000000", "instruction-000001"]
    assert report.rejected == {
        "form": 3,
        "duplicate": 1,
        "empty": 2,
        "code": 1,
        "url": 1,
        "long": 2,
        "table": 1,
        "formula": 1,
    }
    assert report.entries == 14 == len(found) + report.rejected.total()


def test_conversations_give_their_first_question_and_answer():
    human, gpt, system = ({"from": name, "value": name} for name in ("human", "gpt", "system"))
    found, report = made(
        {"conversations": [system, human, gpt, human, gpt]},
        {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}]},
        {"id": "7", "data": ["How far?", "3 km.", "Thanks", "Bye"]},
        {"conversations": [gpt, human]}, {"conversations": [human]}, {"data": ["Only"]}, {"data": [1, 2]}, {},
    )  # fmt: skip
    assert [turn[1:] for turn in found] == [
        ("human", "gpt"), ("two plus two?", "four."), ("How far?", "three kilometers."),
    ]  # fmt: skip
    assert report.turns == 4 and report.rejected == {"form": 5}


def test_answers_are_cut_to_whole_sentences_and_counted():
    long = "One two three. Four five! Six seven eight nine. Ten."
    ((_, _, answer),), report = made(entry(output=long), answer_words=6)
    assert answer == "One two three. Four five!" and (report.shortened, report.sentences) == (1, 2)
    ((_, _, answer),), report = made(entry(output=long), answer_words=10)
    assert answer == long and report.shortened == 0


def test_fillers_are_drawn_by_seed_and_number():
    many = [entry(f"What is number {'x' * n}?") for n in range(1, 201)]
    one, other, third = (made(*many, fillers=0.3, seed=seed)[0] for seed in (1, 1, 2))
    assert one == other != third
    with_filler = [turn for turn in one if not turn[1].startswith("What")]
    assert 35 < len(with_filler) < 85 and len({turn[1].split()[0] for turn in with_filler}) == 5
    with pytest.raises(ConfigError, match="fillers is 2: it is a probability"):
        SpokenRules(fillers=2)


@FEW
@given(st.lists(st.none() | st.text(max_size=5) | st.fixed_dictionaries(
    {"instruction": st.text(max_size=20), "output": st.text(max_size=20) | st.integers()})
    | st.fixed_dictionaries({"data": st.lists(st.text(max_size=9) | st.none(), max_size=3)})
    | st.fixed_dictionaries({"conversations": st.lists(st.fixed_dictionaries(
        {"from": st.sampled_from(["human", "gpt", "x"]), "value": st.text(max_size=9) | st.none()}), max_size=3)}),
    max_size=4))  # fmt: skip
def test_every_entry_is_kept_or_counted_and_what_is_kept_can_be_spoken(entries):
    found, report = made(*entries)
    assert report.entries == len(entries) == len(found) + report.rejected.total()
    script = "".join(f"== {name}\nuser: {question}\nmodel: {answer}\n" for name, question, answer in found)
    assert len(texts.parse(script)) == len(found)


def test_the_command_writes_a_script_that_synthesize_reads(tmp_path):
    source, out = tmp_path / "alpaca.json", tmp_path / "alpaca.txt"
    source.write_text(json.dumps([entry(), entry("Name a list", "- red\n- blue"), None]))

    def invoke(*args):
        return CliRunner().invoke(cli, ["data", "spoken", *map(str, args)])

    done = invoke(source, out, "--fillers", "0")
    assert done.exit_code == 0 and "2 dialogues of 3 entries" in done.output
    assert "rejected form: 1 entries" in done.output and "removed list: 2" in done.output
    assert not texts.is_world(out.read_text())
    first, second = texts.load(out)
    assert [turn.text for turn in first.utterances] == ["What is two plus two?", "It is four."]
    assert [(turn.speaker, turn.text) for turn in second.utterances] == [
        ("user", "Name a list"),
        ("model", "red. blue"),
    ]
    lines = tmp_path / "chats.jsonl"
    lines.write_text('{"data": ["Why?", "Because."]}\n\n{"data": ["Why?"]}\n')
    assert "1 dialogues of 2 entries" in invoke(lines, tmp_path / "chats.txt").output
    for content, target, error, message in (
        ("{}", "a.txt", DataError, "holds a dict: give a list"),
        ("[", "a.txt", DataError, "is not JSON"),
        ("[1]", "a.txt", DataError, "none of the 1 entries .* becomes a dialogue"),
        ("[]", "a.json", ConfigError, "name it a.txt"),
    ):
        source.write_text(content)
        failed = invoke(source, tmp_path / target).exception
        assert isinstance(failed, error) and re.search(message, str(failed)) and not (tmp_path / target).exists()
