"""Raw text to clean text: every rule, counted; the same whether interrupted or not; near duplicates over all files."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from moshijax.data import records
from moshijax.data.documents import prepare_text
from moshijax.data.job import finish, run_job
from moshijax.data.raw_text import classifier, contamination, lines, near_duplicates
from moshijax.data.raw_text.collect import FilterPlan, collect, read_files
from moshijax.data.raw_text.rules import Judge, TextRules
from moshijax.data.shards import make_shard, shards_of
from moshijax.data.text import train_tokenizer
from moshijax.errors import ConfigError, DataError, MoshijaxError
from tests.data.raw_text import made

FRENCH = "Bonjour tout le monde, il fait très beau aujourd'hui dans la ville et nous allons à la plage avec des amis."


def texts(found) -> list[str]:
    return [line for path in found.files for line in path.read_text(encoding="utf-8").splitlines()]


def bytes_of(folder) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "sources.json")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Three files with one document of every fate."""
    folder = tmp_path_factory.mktemp("raw")
    good = [made.english(n) for n in range(8)]
    footer = "Copyright, all rights reserved."
    made.jsonl(
        folder / "a.jsonl",
        [good[0], f"{good[1]}\n{footer}", f"{good[2]}\n{footer}", good[0], FRENCH, "Too short to keep.", "", 3],
    )
    near = f"{good[1]} And so it ends."
    made.jsonl(folder / "b.jsonl", [near, good[3], good[4] + "\n" + made.english(99, 1), f"{good[5]}\0"])
    made.jsonl(folder / "exam.jsonl", [made.english(99, 1), "Who?"], "question")
    (folder / "c.wet").write_bytes(made.wet({"http://x/1": good[6].encode(), "http://x/2": good[7].encode()}))
    return folder, good


@pytest.fixture(scope="module")
def rules(raw):
    return TextRules(evaluations=contamination.read([raw[0] / "exam.jsonl"], "question"))


def test_every_document_is_kept_or_counted_by_reason(tmp_path, raw, rules):
    folder, good = raw
    found = collect([folder / "[abc].*"], tmp_path / "out", rules)
    assert texts(found) == [
        *map(flat, (good[0], f"{good[1]}\nCopyright, all rights reserved.", good[2], good[3], good[6], good[7]))
    ]
    report = found.report
    assert report.kinds == {
        "duplicate": 1, "other_language": 1, "gopher_short_doc": 1, "empty": 1, "no_text": 1, "near_duplicate": 1,
        "contaminated": 1, "encoding": 1,
    }  # fmt: skip
    assert report.items == report.usable + report.kinds.total() == 14 and report.words == sum(
        len(text.split()) for text in texts(found)
    )
    assert found.lines_removed == 1 and report.flags == {"duplicate_lines": 1}
    reasons = dict(report.rejected)
    assert f"{folder}/a.jsonl, line 5: its language is fr" in reasons[f"{folder}/a.jsonl, line 5"]
    assert reasons["b.jsonl, line 1"].endswith("it is nearly the same as a.jsonl, line 2")
    assert "of exam.jsonl" in reasons[f"{folder}/b.jsonl, line 3"]
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["report"]["kinds"] == report.kinds and set(written["files"]) == {path.name for path in found.files}


def test_any_number_of_workers_gives_the_same_bytes(tmp_path, raw, rules):
    folder, _ = raw
    for workers in (1, 2, 5):
        found = collect([folder / "[abc].*"], tmp_path / str(workers), rules, workers=workers)
        assert found.written == 3 and found.report.items == 14
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "2") == bytes_of(tmp_path / "5")


@dataclass(frozen=True)
class _Ending(FilterPlan):
    """A plan whose process ends at one file, once another shard is there, as when memory runs out."""

    other: Path = Path()

    def make(self, items):
        items = tuple(items)
        if any(item.id == "b.jsonl" for item in items):
            while not self.other.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().make(items)


def test_a_worker_that_is_killed_is_told_and_the_other_shards_are_kept(tmp_path, raw, rules):
    folder, _ = raw
    found, out = read_files([folder / "[abc].*"]), tmp_path / "out"
    with pytest.raises(MoshijaxError, match="shard-00001.*ended its process .*tried 2 times: use fewer workers"):
        run_job(found, out, _Ending(1, False, rules, other=out / "shard-00000-of-00003.report.json"), workers=2)
    assert (out / "shard-00000-of-00003.arrayrecord").exists() and not (out / records.FILTERED).exists()
    run_job(found, out, FilterPlan(1, False, rules), workers=2)
    run_job(found, tmp_path / "whole", FilterPlan(1, False, rules))
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


def test_prepare_reads_what_comes_out(tmp_path, raw, rules):
    folder, good = raw
    found = collect([folder / "[abc].*"], tmp_path / "out", rules)
    tokenizer = train_tokenizer(good, 400)
    index, report, _ = prepare_text([tmp_path / "out" / "*.txt"], tmp_path / "packed", tokenizer)
    assert report.usable == report.items - report.kinds["empty"] == 6 == len(texts(found)) and index["kind"] == "text"


def test_a_job_that_was_interrupted_or_taken_by_another_runner_gives_the_same_bytes(tmp_path, raw, rules):
    folder, _ = raw
    collect([folder / "[abc].*"], tmp_path / "once", rules)

    class Killed(Exception):
        pass

    def stop(done, total, report):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        collect([folder / "[abc].*"], tmp_path / "twice", rules, progress=stop)
    assert not list((tmp_path / "twice").glob("*.txt"))
    again = collect([folder / "[abc].*"], tmp_path / "twice", rules)
    assert again.written == 2 and bytes_of(tmp_path / "twice") == bytes_of(tmp_path / "once")
    kept = collect([folder / "[abc].*"], tmp_path / "twice", rules)
    assert kept.written == 0 and kept.report == again.report and kept.lines_removed == again.lines_removed

    raw_files, plan = read_files([folder / "[abc].*"]), pickle.loads(pickle.dumps(FilterPlan(1, False, rules)))
    other = tmp_path / "other"
    other.mkdir()
    made_in_reverse = [make_shard(plan, items, other / name) for name, items in reversed(shards_of(raw_files, plan))]
    index, _ = finish(raw_files, other, plan, made_in_reverse[::-1])
    assert json.loads(json.dumps(index)) == json.loads((tmp_path / "once/filtered/filtered.json").read_text())


def test_other_settings_or_files_are_refused_and_a_changed_file_is_filtered_again(tmp_path, raw):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes((raw[0] / name).read_bytes())
    out, paths = tmp_path / "out", [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    first = collect(paths, out, TextRules())
    with pytest.raises(DataError, match=r"was made with min_language = '0.85', now it is '0.5'"):
        collect(paths, out, TextRules(min_language=0.5))
    with pytest.raises(DataError, match=r"made of other texts: 1 \(b.jsonl\) removed"):
        collect(paths[:1], out, TextRules())
    made.jsonl(paths[1], [made.english(50)])
    second = collect(paths, out, TextRules())
    assert second.written == 1 and texts(second) == [*texts(first)[:3], flat(made.english(50))]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"full holds other files, such as mine.txt"):
        collect(paths, tmp_path / "full", TextRules())


def test_lines_are_kept_once_in_a_shard_and_documents_once_in_all(tmp_path):
    made.jsonl(tmp_path / "a.jsonl", [f"{made.english(1)}\nThe menu of this site"])
    made.jsonl(tmp_path / "b.jsonl", [f"The menu of this site\n{made.english(2)}", made.english(1)])
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    apart = collect(paths, tmp_path / "apart", TextRules())
    assert apart.lines_removed == 0 and apart.report.kinds == {"near_duplicate": 1}
    together = collect(paths, tmp_path / "together", TextRules(), shard_files=2)
    assert together.lines_removed == 1 and together.report.kinds == {"duplicate": 1}
    assert texts(together) == [texts(apart)[0], flat(made.english(2))]


def test_nothing_usable_says_why(tmp_path):
    made.jsonl(tmp_path / "a.jsonl", [FRENCH])
    with pytest.raises(DataError, match=r"none of the 1 items of .*a.jsonl is usable; the first: .*language is fr"):
        collect([tmp_path / "a.jsonl"], tmp_path / "out", TextRules())
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="empty.txt has no documents"):
        collect([tmp_path / "empty.txt"], tmp_path / "none", TextRules())
    with pytest.raises(DataError, match="cannot be read: not there"):
        collect([tmp_path / "gone.jsonl"], tmp_path / "none", TextRules())


def test_language_by_the_paper():
    """Above 0.85, whatever the model says of shorter or mixed texts; any language where none is asked for."""
    judge = Judge(TextRules(heuristics=False))
    assert judge.fault(made.english(3)) is None
    kind, reason = judge.fault("hello there 123")
    assert kind in ("unsure_language", "other_language") and "(" in reason or "below 0.85" in reason
    assert Judge(TextRules(heuristics=False, min_language=0.0)).fault("hello there, my friend") is None
    assert Judge(TextRules("fr", heuristics=False)).fault(FRENCH) is None
    assert Judge(TextRules(None, heuristics=False)).fault(FRENCH) is None


def test_quality_is_the_mean_over_lines_by_their_lengths():
    """With a model that knows languages: French stands for the web."""
    model = classifier.shipped_identifier()
    rules = TextRules(None, heuristics=False, quality_model=model, web_label="fr", min_quality=0.5)
    english, short = made.english(4, 1), "Bonjour, ça va bien?"
    assert len(english) > 2 * len(short)
    assert Judge(rules).fault(f"{english}\n{short}") is None
    kind, reason = Judge(rules).fault(f"{english}\n{short}\n{FRENCH}\n{FRENCH}")
    assert kind == "low_quality" and "below 0.5" in reason
    share = classifier.load(model).probability("fr", short) * len(short)
    share += classifier.load(model).probability("fr", english) * len(english)
    exact = 1 - share / (len(short) + len(english))
    assert Judge(TextRules(None, heuristics=False, quality_model=model, web_label="fr", min_quality=exact)).fault(
        f"{english}\n{short}"
    ) is None  # fmt: skip


def test_runs_of_three_lines_that_a_model_calls_duplicates_go():
    assert lines.without_runs(list("abXcXXdXXXeXX"), str.isupper) == list("abXcXXdeXX")
    assert lines.without_runs(list("XXX"), str.isupper) == [] and lines.without_runs([], str.isupper) == []
    rules = TextRules(duplicate_model=classifier.shipped_identifier(), duplicate_label="fr")
    found = ["An English line of the text.", FRENCH, FRENCH + " Oui.", FRENCH + " Non.", "Another line of English."]
    assert Judge(rules).without_duplicates(found) == [found[0], found[-1]]
    assert Judge(rules).without_duplicates(found[:3]) == found[:3]


def test_models_are_checked_before_any_work(tmp_path):
    (tmp_path / "no.bin").write_bytes(b"no model")
    for rules, message in (
        (TextRules(language_model=tmp_path / "gone.bin"), "gone.bin cannot be read"),
        (TextRules(quality_model=tmp_path / "no.bin"), "no.bin is no fastText model"),
        (TextRules("xyz"), "has no label 'xyz', but "),
        (TextRules(quality_model=classifier.shipped_identifier()), "has no label 'web'"),
    ):
        with pytest.raises(DataError, match=message):
            rules.check()
    with pytest.raises(ConfigError, match="min_quality is 2"):
        TextRules(min_quality=2)


def test_evaluations_are_found_by_twelve_words_or_all_of_a_short_one(tmp_path):
    long = "What did the old king say to the messenger who came from the far northern mountains in winter?"
    short = "How many legs does a common garden spider have?"
    made.jsonl(tmp_path / "exam.jsonl", [long, short, "Who?"])
    found = contamination.read([tmp_path / "exam.jsonl"])
    assert (found.texts, found.short, found.lengths) == (3, 1, (9, 12))
    words = long.split()
    assert found.find("Before. " + " ".join(words[2:14]).upper() + ", after")[0] == "exam.jsonl"
    assert found.find(" ".join(words[2:13])) is None
    assert found.find(f"I ask: {short} Eight.") is not None
    assert found.find("How many legs does a common garden ant have?") is None
    made.jsonl(tmp_path / "short.jsonl", ["Who?"])
    with pytest.raises(DataError, match="short.jsonl has no text of 8 words or more"):
        contamination.read([tmp_path / "short.jsonl"])


def test_signatures_agree_as_documents_do():
    """Of pairs that share most of their words nearly all are found, of others none."""
    first = [made.english(n, 12) for n in range(40)]
    near = [text.replace("\n", "\n- ").replace("the", "a", 1) for text in first]
    signatures = np.stack([near_duplicates.signature(text) for text in [*first, *near]])
    found = near_duplicates.first_of_each(signatures)
    assert (found[:40] == np.arange(40)).all() and (found[40:] == np.arange(40)).all()
    assert (near_duplicates.signature("Yes!") == near_duplicates.signature("yes")).all()
    assert (near_duplicates.signature("Yes!") != near_duplicates.signature("no")).all()


def test_groups_reach_through_others_and_the_first_stays():
    a, b, c, d = np.arange(4 * near_duplicates.BUCKETS, dtype=np.uint64).reshape(4, -1)
    b[3] = a[3]
    c[5] = b[5]
    assert near_duplicates.first_of_each(np.stack([d, c, a, b])).tolist() == [0, 1, 1, 1]


def test_lines_beyond_one_bloom_filter_are_known(monkeypatch):
    monkeypatch.setattr(lines, "_LINES", 100)
    seen = lines.SeenLines()
    assert all(seen.add(f"line {n}") for n in range(450)) and len(seen._filters) == 5
    assert not any(seen.add(f"  line {n} ") for n in range(450))
