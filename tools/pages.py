"""Write tables and texts into a page of docs/."""

from __future__ import annotations

import re


def fill(page: str, tables: dict[str, str]) -> str:
    """Return the page with the text between every `<!-- name -->` and its `<!-- end -->` replaced."""
    for name, table in tables.items():
        page, count = re.subn(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{table}\n\g<2>", page, flags=re.S)
        assert count == 1, f"the page has no place for the table {name!r}"
    return page
