"""The page docs/trust.md, from the rows that `trust` measured: what an audit finds, and what speaks against it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from acdc.benchmarks.measuring.planted import KINDS
from acdc.metrics import proportion_interval

if TYPE_CHECKING:
    from acdc.benchmarks.measuring.trust import Row

COMMAND = "python -m acdc.benchmarks.measuring.trust -o docs/trust"


def page(rows: Collection[Row], notes: str = "") -> str:
    """The text of the page.

    Args:
        notes: what was written by hand, which stays.
    """
    measured = (_faults, _truths, _proofs, _trained, _searches, _claims)
    parts = [_INTRODUCTION, *(part(rows) for part in measured)]
    return "\n\n".join(part for part in (*parts, notes) if part).rstrip() + "\n"


_INTRODUCTION = f"""# Can an audit be trusted?

`acdc audit RUN` puts a circuit to twelve checks, and `acdc certify RUN` claims what can be measured again. Here is how
often the checks find a fault that was planted, how often they fault a true circuit, and what they say of the circuits
that methods find. Made by `{COMMAND}`
from [trust/results.csv](trust/results.csv), which can be stopped at any time and
goes on from its rows. Brackets are 95% confidence intervals."""


def _share(good: int, n: int) -> str:
    low, high = proportion_interval(good, n)
    return f"{good} of {n} [{low:.2f}, {high:.2f}]" if n > 1 else f"{good} of {n}"


def _table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(header)
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def _faults(rows: Collection[Row]) -> str:
    own = [row for row in rows if row.part == "fault"]
    if not own:
        return ""
    lines = []
    for kind in KINDS:
        found = [row for row in own if row.name == kind.name]
        if found:
            seconds = statistics.median(row.seconds for row in found)
            missed = Counter(row.case.split()[0] for row in found if not row.ok)
            where = ", ".join(f"{name} {n}" for name, n in missed.most_common(3))
            good = sum(row.ok for row in found)
            lines.append((kind.name, kind.check, _share(good, len(found)), f"{seconds:.2g}", where or "–"))
    return (
        "## Planted faults\n\nFound: the check's p-value is below 5% of a twelfth, so that it fails in every audit, "
        "whatever the other checks say. That is the check's power at its usual prompts.\n\n"
        + _table(("fault", "check", "found", "seconds, median", "missed in"), lines)
    )


def _truths(rows: Collection[Row]) -> str:
    own = [row for row in rows if row.part == "truth"]
    if not own:
        return ""
    lines = []
    for level in ("quick", "usual", "full"):
        for kind in ("tracr", "interp"):
            some = [row for row in own if row.name == level and row.case.startswith(kind)]
            if some:
                alarms = Counter(check for row in some for check in row.said.split())
                told = ", ".join(f"{name} {n}" for name, n in alarms.most_common()) or "–"
                bad = sum(not row.ok for row in some)
                seconds = statistics.median(row.seconds for row in some)
                lines.append((level, kind, _share(bad, len(some)), told, f"{seconds:.2g}"))
    return "## True circuits\n\nAudits that fault a true circuit in any check; at most 5% should.\n\n" + _table(
        ("audit", "models", "audits with an alarm", "by", "seconds, median"), lines
    )


def _proofs(rows: Collection[Row]) -> str:
    own = [row for row in rows if row.part == "proof"]
    if not own:
        return ""
    lines = []
    for distribution in ("fixed", "mixed", "permuted", "varied"):
        for kind in ("tracr", "interp"):
            some = [row for row in own if row.name == distribution and row.case.startswith(kind)]
            if not some:
                continue
            proved = [row for row in some if row.said.startswith("proof")]
            changed = [row for row in some if not row.ok]
            worst = max((row.value for row in some), default=0.0)
            lines.append(
                (
                    distribution, kind, len(some), sum(row.ok for row in proved),
                    sum(row.ok for row in some) - sum(row.ok for row in proved), len(changed),
                    f"{sum(row.judged for row in some):,}", f"{worst:.2g}",
                )
            )  # fmt: skip
    refuted = [row for row in own if not row.ok and row.case.startswith("tracr")]
    listed = "\n".join(
        f"- `{row.case}`, {row.name} inputs: {row.judged - row.passed:,} of {row.judged:,} pairs ({row.said})"
        for row in refuted
    )
    text = (
        "## Truths, by enumeration\n\nEvery shipped true circuit under resample ablation, on all pairs of a clean "
        "input and a donor, whose activations replace what is removed. Donors that the circuit cannot tell apart, "
        "since removed edges bring it the same of them, are run as one. Where that takes more than 2^20 runs, donors "
        "are drawn, which is no proof. A compiled program's circuit is "
        "refuted by one output that differs; networks that were trained to "
        "run a program are not exact, and the share of changed answers is told.\n\n"
        + _table(
            (
                "inputs",
                "models",
                "truths",
                "proved",
                "not refuted, no proof",
                "with changes",
                "pairs",
                "largest mean share changed",
            ),
            lines,
        )
    )
    return text + (f"\n\nRefuted truths of compiled programs:\n\n{listed}" if listed else "")


def _trained(rows: Collection[Row]) -> str:
    quick, usual = (_by_method([r for r in rows if r.part == part]) for part in ("trained", "usual"))
    if not quick:
        return ""
    text = (
        "## Circuits of trained models\n\nWhat each method finds at its defaults (the task's faithfulness of 0.95), "
        f"held to that faithfulness prompt by prompt. The quick audit, on 64 fresh prompts:\n\n{quick}"
    )
    return text + (
        f"\n\nAll twelve checks, of which some do not apply, on as many as the audit draws itself (`acdc audit RUN`):"
        f"\n\n{usual}"
        if usual
        else ""
    )


def _by_method(rows: Collection[Row]) -> str:
    own = [row for row in rows if row.judged]
    lines = []
    for method in dict.fromkeys(row.name for row in own):
        some = [row for row in own if row.name == method]
        failed = Counter(check for row in some for check in row.said.split())
        passed, judged = (statistics.fmean(getattr(row, name) for row in some) for name in ("passed", "judged"))
        told = ", ".join(f"{name} {n}" for name, n in failed.most_common())
        edges, seconds = (statistics.median(getattr(row, name) for row in some) for name in ("value", "seconds"))
        longest = max(row.seconds for row in some)
        mean, took = f"{passed:.1f} of {judged:.1f}", f"{seconds:.0f}, {longest:.0f}"
        lines.append((method, len(some), f"{edges:.0f}", mean, told or "–", took))
    failed_head, seconds_head = "failed: how many circuits", "seconds: median, most"
    head = ("method", "circuits", "edges, median", "checks passed, mean", failed_head, seconds_head)
    return _table(head, lines) if lines else ""


def _searches(rows: Collection[Row]) -> str:
    own = [row for row in rows if row.part == "search"]
    if not own:
        return ""
    lines = [
        (row.name, row.case, row.said, f"{row.value:.2f}", row.passed, row.judged, f"{row.passed / row.judged:.2f}")
        for row in own
        if row.judged
    ]
    head = ("method", "case", "samples", "overlap of two", "edges kept always", "ever", "always / ever")
    return (
        "## Searches on other prompts\n\nThe same search on other samples of prompts: the mean overlap (Jaccard) of "
        "two circuits, and how many edges all of them keep, and any. `acdc audit RUN --checks stability --searches 20` "
        "tells it of a circuit, edge by edge.\n\n" + _table(head, lines)
    )


def _claims(rows: Collection[Row]) -> str:
    own = [row for row in rows if row.part == "claim"]
    lines = []
    for name in dict.fromkeys(row.name for row in own):
        some = [row for row in own if row.name == name]
        values = [row.value for row in some]
        figures = (f"{figure(values):.2f}" for figure in (min, statistics.median, max))
        edges = f"{min(row.passed for row in some)} to {max(row.judged for row in some)}"
        lines.append((name, len(some), *figures, edges))
    return (
        "## What critics found of other circuits\n\nOn the trained cases. *Resamples*: the overlap (Jaccard) of "
        "EAP-IG's best edges on two bootstraps of the prompts, by the mean of the scores' sizes, or by the size of "
        "their mean; *orders of tests*: of ACDC's circuits under two orders; *edges*: the share of held-out prompts of "
        "indirect objects on which that many prefer the answer, the best of five methods.\n\n"
        + _table(("what", "cases", "least", "median", "largest", "edges of the circuits"), lines)
        if lines
        else ""
    )
