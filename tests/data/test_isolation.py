"""A decoder that crashes or hangs costs its item, after one more try; everything else goes on."""

from __future__ import annotations

import os
import signal
import time

import pytest

from moshijax.data.checks import CheckRules, check_item, validate
from moshijax.data.isolation import Isolated, Lost
from moshijax.data.manifest import read_manifest
from moshijax.data.transcript import UnknownSpeaker
from tests.data.sets import WORDS, write_item, write_manifest, write_set


def risky_check(item, rules):
    """`check_item` with a decoder that fails in the way that an item's name says."""
    if item.id == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item.id == "hang":
        time.sleep(3600)
    if item.id == "once":  # as a decoder that ran out of something
        mark = item.audio.with_suffix(".tried")
        if not mark.exists():
            mark.touch()
            os._exit(1)
    return check_item(item, rules)


@pytest.mark.slow  # 24 s of waiting
def test_crash_and_hang_reject_the_item_and_nothing_else(tmp_path):
    names = ("first", "segfault", "once", "hang", "last")
    items = read_manifest(write_manifest(tmp_path, [write_item(tmp_path, name) for name in names])).items
    with Isolated(risky_check, seconds=10.0) as check:
        report = validate(items, CheckRules(), check=check)
    assert report.items == 5 and report.usable == 3 and dict(report.kinds) == {"decoder": 2}
    reasons = dict(report.rejected)
    assert "segfault.wav ended its decoder (exit code -11), tried 2 times" in reasons["segfault"]
    assert "hang.wav was not decoded within 12 s, tried 2 times" in reasons["hang"]
    assert all("convert it to WAV" in reason for reason in reasons.values())


def test_findings_and_errors_are_those_of_the_function(tmp_path):
    items = read_manifest(write_set(tmp_path)).items
    with Isolated(check_item) as check:
        assert validate(items, CheckRules(), check=check).to_json() == validate(items, CheckRules()).to_json()
        line = write_item(tmp_path, "labels", [[WORDS[0][0], WORDS[0][1], "Bob"]])
        (stranger,) = read_manifest(write_manifest(tmp_path, [line])).items
        with pytest.raises(UnknownSpeaker, match="Bob"):
            check(stranger, CheckRules())
        assert check(items[0], CheckRules()).rejected is None  # and the process is there for the next one


def own_process(item):
    return os.getpid()


def test_one_process_serves_all_calls_and_none_is_left(tmp_path):
    item = read_manifest(write_set(tmp_path)).items[0]
    with Isolated(own_process) as ask:
        child = ask(item)
        assert child != os.getpid() and ask(item) == child
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_hang_is_not_waited_for(tmp_path):
    (item,) = read_manifest(write_manifest(tmp_path, [write_item(tmp_path, "hang")])).items
    with Isolated(risky_check, seconds=0.0) as check, pytest.raises(Lost, match="within 2 s, tried 2 times"):
        check(item, CheckRules())
