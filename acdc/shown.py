"""How the public records show themselves: one line for `repr`, lines for `print`, a table for notebooks.

A record says what a person wants to see as facts, pairs of a name and a text, and everything follows from them. Names
come from files that others wrote, so what a terminal would obey is shown as its number (`printable`).
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence

_NAME = "text-align:left;font-weight:normal;opacity:.7;padding-right:1.2em"
_CELL = "text-align:right;padding-right:1.2em"


_OBEYED = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and line feed, DEL, C1
    r"\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f"  # direction of text, line ends, invisible operators
    r"\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # no characters; marks; invisible letters
)
UNSAFE = re.compile(f"[{_OBEYED}]")


def printable(text: object) -> str:
    """A text as it can be shown: control characters and the like by their number, as Python writes them."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode-escape", "surrogatepass").decode(), str(text))


class Shown:
    """Base of records with `repr`, `str` and an HTML table."""

    def _summary(self) -> str:
        """What stands in the brackets of the `repr`."""
        raise NotImplementedError

    def facts(self) -> Mapping[str, str]:
        """What is said of it, by name, in the order in which it is shown."""
        raise NotImplementedError

    def table(self) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
        """Header and rows of what is shown below the facts; nothing by default."""
        return (), ()

    def __repr__(self) -> str:
        return printable(f"{type(self).__name__}({self._summary()})")

    def __str__(self) -> str:
        lines = _columns(list(self.facts().items()), left=2)
        header, rows = self.table()
        if header:
            lines += ["", *_columns([header, *rows], left=1)]
        return printable("\n".join(lines))

    def _repr_html_(self) -> str:
        facts = "".join(
            f'<tr><th style="{_NAME}">{html.escape(name)}</th><td style="text-align:left">{html.escape(text)}</td></tr>'
            for name, text in self.facts().items()
        )
        header, rows = self.table()
        head = "".join(f'<th style="{_CELL}">{html.escape(name)}</th>' for name in header)
        body = "".join(
            "<tr>" + "".join(f'<td style="{_CELL}">{html.escape(cell)}</td>' for cell in row) + "</tr>"
            for row in rows
        )
        return f"<table>{facts}</table>" + (f"<table><tr>{head}</tr>{body}</table>" if header else "")


def _columns(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Rows as lines of aligned columns, the first `left` of them to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def counted(n: int, noun: str, *, of: int | None = None) -> str:
    """ "1 edge", "2,000 edges"; with `of` "1 of 10 edges", whose noun goes by the whole."""
    whole = n if of is None else of
    return f"{n:,} {'' if of is None else f'of {of:,} '}{noun}{'' if whole == 1 else 's'}"


def are(n: int) -> str:
    """The verb after `counted`."""
    return "is" if n == 1 else "are"


def rounded(value: float) -> str:
    """Three decimals, and no minus sign before a zero; "undefined" for NaN."""
    return "undefined" if math.isnan(value) else f"{round(value, 3) + 0.0:.3f}"


def in_brackets(interval: tuple[float, float]) -> str:
    """The interval in brackets, or nothing if there is none, or none that says anything."""
    low, high = interval
    return f" [{rounded(low)}, {rounded(high)}]" if math.isfinite(low) and math.isfinite(high) else ""
