"""An audit as one HTML page that needs nothing else: the verdicts, what was found, what to do, and the numbers."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np

from acdc.auditing.record import AuditReport, Finding
from acdc.shown import counted, printable

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1a1a1a;background:#fff}
h1{font-size:1.5rem} h2{font-size:1.1rem;margin:0}
section{border:1px solid #ddd;border-radius:8px;padding:1rem;margin:1rem 0}
table{border-collapse:collapse} td,th{padding:.15rem .8rem .15rem 0;
text-align:left;vertical-align:top;font-weight:normal}
th{color:#666} .pass{color:#1b7f3b} .fail{color:#b3261e} .none{color:#777} .badge{font-weight:600}
details{margin-top:.5rem} summary{cursor:pointer;color:#555} .advice{border-left:3px solid #b3261e;padding-left:.7rem}
@media(prefers-color-scheme:dark){body{background:#181818;color:#e4e4e4}
section{border-color:#444} th,summary{color:#aaa}
.pass{color:#6fcf8a} .fail{color:#ff8a80}}
"""
MOST_ROWS = 40


def page(report: AuditReport) -> str:
    """The page's text."""
    facts = "".join(
        f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in report.facts().items()
    )
    summary = "".join(
        f'<tr><td><a href="#{_text(f.check)}">{_text(f.check)}</a></td><td>{_badge(f)}</td>'
        f"<td>{_text(f.number())}</td><td>{_text(f.found)}</td></tr>"
        for f in report.findings
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="generator" content="acdc audit">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Audit of {_text(report.model)} on {_text(report.task)}</title><style>{_STYLE}</style>"
        f"<h1>Audit of a circuit of {_text(report.model)} on {_text(report.task)}</h1><table>{facts}</table>"
        f"<p>A right circuit fails any check in at most {report.level_of_alarm:.0%} of audits (Holm).</p>"
        f"<table><tr><th>check</th><th>verdict</th><th>value</th><th>what was found</th></tr>{summary}</table>"
        + "".join(_section(finding) for finding in report.findings)
        + "</html>\n"
    )


def _section(f: Finding) -> str:
    if f.verdict == "not applicable":
        return (
            f'<section id="{_text(f.check)}"><h2>{_text(f.check)} {_badge(f)}</h2><p><i>{_text(f.question)}</i></p>'
            f"<p>{_text(f.found)}</p></section>"
        )
    advice = f'<p class="advice">What to do: {_text(f.advice)}.</p>' if f.verdict == "fail" else ""
    p = "" if f.p is None else f", p = {f.p:.3g}"
    threshold = "" if f.threshold is None else f" (may be {f.threshold:.3g})"
    shares = f.details.get("shares")
    picture = _histogram(np.array(shares)) if isinstance(shares, list) and shares else ""
    rest = {name: value for name, value in f.details.items() if name != "shares"}
    return (
        f'<section id="{_text(f.check)}"><h2>{_text(f.check)} {_badge(f)}</h2><p><i>{_text(f.question)}</i></p>'
        f"<p>{_text(f.found)}.</p>{advice}"
        f"<p>{_text(f.statistic)}: <b>{_text(f.number())}</b>{threshold}{p}</p>{picture}"
        f"<details><summary>all numbers ({f.seconds:.1f} s)</summary>{_value(rest)}</details></section>"
    )


def _badge(f: Finding) -> str:
    kind = {"pass": "pass", "fail": "fail"}.get(f.verdict, "none")
    return f'<span class="badge {kind}">{_text(f.verdict)}</span>'


def _histogram(shares: Any) -> str:
    """Prompts by their share of the way to no circuit, as bars."""
    counts, _ = np.histogram(shares, bins=20, range=(0, 1))
    height = 80 * np.log1p(counts) / np.log1p(max(counts.max(), 1))
    bars = "".join(
        f'<rect x="{20 * i}" y="{80 - h:.1f}" width="18" height="{h:.1f}" fill="currentColor" opacity=".6">'
        f"<title>{i / 20:.2f} to {(i + 1) / 20:.2f}: {counted(n, 'prompt')}</title></rect>"
        for i, (h, n) in enumerate(zip(height.tolist(), counts.tolist(), strict=True))
    )
    return (
        f'<svg width="400" height="100" role="img" aria-label="prompts by share">{bars}'
        '<text x="0" y="97" font-size="11" fill="currentColor">0: the model</text>'
        '<text x="400" y="97" font-size="11" text-anchor="end" fill="currentColor">1: no circuit</text></svg>'
    )


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        rows = list(value.items())
        more = (
            f"<tr><td>… and {len(rows) - MOST_ROWS} more in audit.json</td></tr>" if len(rows) > MOST_ROWS else ""
        )
        shown = "".join(f"<tr><th>{_text(k)}</th><td>{_value(v)}</td></tr>" for k, v in rows[:MOST_ROWS])
        return f"<table>{shown}{more}</table>"
    if isinstance(value, list | tuple):
        more = ", …" if len(value) > MOST_ROWS else ""
        return ", ".join(_value(item) for item in value[:MOST_ROWS]) + more
    if isinstance(value, float):
        return f"{value:.4g}"
    return _text(value)


def _text(value: object) -> str:
    return html.escape(printable(value))
