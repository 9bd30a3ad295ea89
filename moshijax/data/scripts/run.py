"""Prompts to a script of dialogues: every answer is kept by content, so that nothing is asked twice."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moshijax import files, lock
from moshijax.data.scripts.families import Family
from moshijax.data.scripts.generators import Generator, Writing
from moshijax.data.scripts.validation import Line, ScriptRules, judge
from moshijax.errors import DataError

SCRIPT, REPORT, _ANSWERS = "dialogues.txt", "dialogues.report.json", "answers"
_SHOWN = 20  # rejected answers whose beginnings are in the report


@dataclass
class ScriptReport:
    """What became of answers.

    Attributes:
      asked: number of prompts.
      kept: dialogues, by family.
      rejected: answers, by reason: those of `validation.judge`, "cut" (no more room), "refused" (by the server) and
        "duplicate" (of an earlier dialogue).
      families: answers that were rejected, by family.
      shown: family, reason and beginning of the first ones.
    """

    asked: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    families: Counter[str] = field(default_factory=Counter)
    shown: list[tuple[str, str, str]] = field(default_factory=list)


def write_scripts(
    families: Sequence[Family],
    generator: Generator,
    out_dir: Path,
    count: int,
    seed: int = 0,
    rules: ScriptRules | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> ScriptReport:
    """Ask for dialogues, and write those that can be spoken to `dialogues.txt`, with a report beside it.

    Args:
      families: in turn; prompt n is one of family n modulo their number, and its draws follow from the seed and n.
      generator: that answers.
      out_dir: folder of the script; an earlier job's answers in it are used again where prompt and settings are equal.
      count: number of prompts.
      seed: of the prompts and the answers.
      rules: which answers are kept; default is `ScriptRules()`.
      workers: prompts that are asked at once.
      progress: called with (answers, prompts).

    Raises:
      DataError: no answer becomes a dialogue.
      MoshijaxError: the generator fails, or a file cannot be written; the same call then resumes from there.
    """
    (out_dir / _ANSWERS).mkdir(parents=True, exist_ok=True)
    rules, report, seen, texts = rules or ScriptRules(), ScriptReport(asked=count), set(), []
    with lock.inside(out_dir), ThreadPoolExecutor(workers, thread_name_prefix="scripts") as pool:

        def ask(number: int) -> tuple[Family, Writing | str]:
            family = families[number % len(families)]
            rng = random.Random(f"{seed} {number}")
            prompt, own = family.fill(rng), rng.getrandbits(31)
            return family, _answer(generator, family.system, prompt, own, out_dir / _ANSWERS)

        try:
            for number, (family, answer) in enumerate(pool.map(ask, range(count))):
                found = answer if isinstance(answer, str) else _judged(answer, family, rules, seen)
                if isinstance(found, str):
                    report.rejected[found] += 1
                    report.families[family.name] += 1
                    if len(report.shown) < _SHOWN:
                        report.shown.append((family.name, found, "" if isinstance(answer, str) else answer.text[:200]))
                else:
                    report.kept[family.name] += 1
                    texts.append("\n".join([f"== {family.name}-{number:06d}", *map(str, found)]) + "\n")
                if progress is not None:
                    progress(number + 1, count)
        finally:
            pool.shutdown(cancel_futures=True)
        if not texts:
            raise DataError(
                f"none of {count} answers becomes a dialogue ({dict(report.rejected)}): look at {out_dir / _ANSWERS}, "
                "and use another model or prompt"
            )
        about = {"settings": generator.settings, "seed": seed, "families": sorted({f.name for f in families})}
        files.write_json(out_dir / REPORT, {**about, "report": vars(report)})
        files.write(out_dir / SCRIPT, "\n".join(texts))
    return report


def _judged(answer: Writing, family: Family, rules: ScriptRules, seen: set[Any]) -> list[Line] | str:
    if not answer.complete:
        return "cut"
    found = judge(answer.text, family, rules)
    if isinstance(found, str):
        return found
    key = tuple(found)
    if key in seen:
        return "duplicate"
    seen.add(key)
    return found


def _answer(generator: Generator, system: str, prompt: str, seed: int, folder: Path) -> Writing | str:
    """Return an answer, that of an earlier job if there is one; "refused" if there is none to this prompt."""
    key = json.dumps([generator.settings, system, prompt, seed], sort_keys=True)
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if path.exists():
        kept = files.read_json(path, "answer")
        return Writing(kept["text"], kept["complete"])
    try:
        answer = generator.write(system, prompt, seed)
    except DataError:
        return "refused"
    files.write_json(path, {"prompt": prompt, "seed": seed, **answer._asdict()})
    return answer
