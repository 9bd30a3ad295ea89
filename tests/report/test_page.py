from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import soundfile

from moshijax.errors import MoshijaxError
from moshijax.report import plots
from moshijax.report.page import Page, audio_uri


def test_audio_comes_back_from_the_page():
    pcm = (0.5 * np.sin(np.arange(4800) * 0.05)).astype(np.float32)
    data = base64.b64decode(audio_uri(pcm, 24_000).split(",")[1])
    back, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == 24_000
    np.testing.assert_allclose(back, pcm, atol=1 / 32_000)


def test_page_is_one_file_that_needs_no_network(tmp_path):
    page = Page("A <run>", "lead")
    page.cards([("9 of 10", "answered", "clear voices", True)])
    page.section("Part", "text & more")
    page.figure(plots.timing_histogram(np.full(50, 0.004), 0.08), "timing")
    page.table(["asked", "said"], [["What <b>?", "rain"], ["x", ""]], good=[True, False])
    page.clips([("user", "note", np.zeros((100, 2)))], 24_000)
    page.section("Next")
    page.commands(["moshijax run a --user b"])
    path = tmp_path / "report.html"
    page.write(path)
    html = path.read_text()
    assert "A &lt;run&gt;" in html and "What &lt;b&gt;?" in html and "text &amp; more" in html
    assert html.count("<section>") == html.count("</section>") == 2
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert [child.name for child in tmp_path.iterdir()] == ["report.html"]


def test_unwritable_page_says_where(tmp_path):
    with pytest.raises(MoshijaxError, match="nowhere"):
        Page("x").write(tmp_path / "nowhere" / "report.html")
