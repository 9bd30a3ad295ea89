"""Self-contained HTML pages: text, figures, tables and playable audio in one file that needs no network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moshijax import files
from moshijax.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.figure import Figure

_STYLE = """
:root{--ink:#1d2733;--soft:#5d6b7a;--line:#e3e8ee;
--paper:#fff;--wash:#f5f7fa;--good:#157f4b;--bad:#b3362b}
*{box-sizing:border-box}
body{margin:0;background:var(--wash);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1060px;margin:0 auto;padding:40px 24px 80px}
h1{font-size:32px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em}
h2{font-size:21px;margin:0 0 4px}
p{margin:6px 0;max-width:76ch}
.lead,.note,figcaption{color:var(--soft)}
.note,figcaption{font-size:14px}
article{margin-top:56px}
section{background:var(--paper);border:1px solid var(--line);border-radius:12px;padding:24px 28px;margin-top:22px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:14px;margin-top:24px}
.card{background:var(--paper);border:1px solid var(--line);border-radius:12px;padding:16px 18px}
.card b{display:block;font-size:25px;line-height:1.25;font-variant-numeric:tabular-nums}
.card.good b{color:var(--good)}.card.bad b{color:var(--bad)}
.card span{display:block;font-size:14px;color:var(--soft)}
figure{margin:18px 0 0}
figure img{display:block;width:100%;height:auto}
figcaption{margin-top:6px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;margin-top:14px;font-size:15px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:7px 12px 7px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--soft);font-size:14px}
tr.good td:first-child{box-shadow:inset 3px 0 var(--good);padding-left:12px}
tr.bad td:first-child{box-shadow:inset 3px 0 var(--bad);padding-left:12px}
tr.good td:first-child,tr.bad td:first-child{width:1%;white-space:nowrap}
.clips{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:14px;margin-top:16px}
.clip{border:1px solid var(--line);border-radius:10px;padding:12px 14px;font-size:14px}
.clip audio{width:100%;height:36px;margin-top:8px;display:block}
.clip div{color:var(--soft)}
pre{background:#17212c;color:#e8eef4;border-radius:10px;padding:14px 18px;overflow-x:auto;font-size:14px}
pre{line-height:1.7;margin:14px 0 0}
"""


_BEGIN, _END = "<main>", "</main>"


def escape(text: object) -> str:
    """Return text as HTML that shows it."""
    return html.escape(str(text))


def figure_uri(figure: Figure, width: int = 1000) -> str:
    """Return a figure as a PNG data address, `width` CSS pixels wide on a screen of double density."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * width / figure.get_figwidth())
    figure.clear()
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def audio_uri(pcm: Float[np.ndarray, "..."], sample_rate: int) -> str:
    """Return audio in [-1, 1], mono [N] or [N, channels], as a FLAC data address."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(pcm, -1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(buffer.getvalue()).decode()


class Page:
    """A page that collects blocks in order and writes them into one file; all text given to it is escaped."""

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self._head = f"<h1>{escape(title)}</h1>" + (f'<p class="lead">{escape(lead)}</p>' if lead else "")
        self._blocks: list[str] = []
        self._open = False

    def cards(self, cards: Iterable[tuple[str, str, str, bool | None]]) -> None:
        """Add figures that a reader should see first: (value, label, note, good or bad or None)."""
        self._close()
        cells = "".join(
            f'<div class="card{_verdict(good)}"><b>{escape(value)}</b>{escape(label)}<span>{escape(note)}</span></div>'
            for value, label, note, good in cards
        )
        self._blocks.append(f'<div class="cards">{cells}</div>')

    def section(self, title: str, text: str = "") -> None:
        """Begin a section; the blocks that follow belong to it."""
        self._close()
        self._open = True
        self._blocks.append(f"<section><h2>{escape(title)}</h2>" + (f"<p>{escape(text)}</p>" if text else ""))

    def text(self, text: str) -> None:
        """Add a note in small print."""
        self._blocks.append(f'<p class="note">{escape(text)}</p>')

    def figure(self, figure: Figure, caption: str) -> None:
        """Add a matplotlib figure; its caption is also what a screen reader reads."""
        self._blocks.append(
            f'<figure><img src="{figure_uri(figure)}" alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def table(self, header: Sequence[str], rows: Iterable[Sequence[object]], good: Sequence[bool | None] = ()) -> None:
        """Add rows of cells; `good` marks row i as right or wrong."""
        marks = list(good)
        body = "".join(
            f'<tr class="{_verdict(marks[index] if index < len(marks) else None).strip()}">'
            + "".join(f"<td>{escape(cell)}</td>" for cell in row)
            + "</tr>"
            for index, row in enumerate(rows)
        )
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        self._blocks.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def clips(self, clips: Iterable[tuple[str, str, np.ndarray]], sample_rate: int) -> None:
        """Add playable audio: (title, note, pcm [N] or [N, channels])."""
        cells = "".join(
            f'<div class="clip"><b>{escape(title)}</b><div>{escape(note)}</div>'
            f'<audio controls preload="none" src="{audio_uri(pcm, sample_rate)}"></audio></div>'
            for title, note, pcm in clips
        )
        self._blocks.append(f'<div class="clips">{cells}</div>')

    def commands(self, lines: Iterable[str]) -> None:
        """Add lines of code."""
        self._blocks.append(f"<pre>{escape(chr(10).join(lines))}</pre>")

    def include(self, path: str | Path) -> None:
        """Add what another page shows, with its title.

        Raises:
          DataError: it cannot be read, or this class did not write it.
        """
        text = files.read_text(Path(path), "page")
        start, end = text.find(_BEGIN), text.rfind(_END)
        if start < 0 or end < start:
            raise DataError(f"{path} is not a page of this package; run its evaluation again")
        self._close()
        self._blocks.append(f"<article>{text[start + len(_BEGIN) : end]}</article>")

    def _close(self) -> None:
        if self._open:
            self._blocks.append("</section>")
            self._open = False

    def render(self) -> str:
        """Return the page as HTML."""
        self._close()
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head><body>"
            f"{_BEGIN}{self._head}{''.join(self._blocks)}{_END}</body></html>\n"
        )

    def write(self, path: str | Path) -> None:
        """Write the page; it appears only when complete.

        Raises:
          MoshijaxError: the file cannot be written.
        """
        files.write(Path(path), self.render())


def _verdict(good: bool | None) -> str:
    return "" if good is None else " good" if good else " bad"
