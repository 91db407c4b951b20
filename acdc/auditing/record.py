"""What a check is, what it finds, and what an audit says: records, which become lines, JSON and a page.

A check tests one hypothesis: that the circuit is right in one respect. It gives a p-value, so that several checks can
be read together: `AuditReport` rejects by Holm, and a right circuit is faulted by any of them in at most 5% of audits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from acdc.auditing.names import Name
from acdc.metrics.statistics import NO_INTERVAL, Interval
from acdc.shown import Shown, in_brackets, rounded

if TYPE_CHECKING:
    from acdc.auditing.subject import Subject

Verdict = Literal["pass", "fail", "not applicable"]
Level = Literal["quick", "usual", "full"]
LEVELS: tuple[Level, ...] = ("quick", "usual", "full")
ALARM = 0.05
"""Probability with which a right circuit may be faulted by any check of an audit."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a check measured.

    Attributes:
        statistic: what the value is, in words.
        value: the number the check turns on; interval: (low, high) of it over the prompts, where one is known.
        threshold: what the value may be; in the same units.
        p: p-value of the hypothesis that the circuit is right in this respect; 0 or 1 where nothing is drawn.
        found: one plain sentence.
        advice: what to do where the check fails.
        details: further numbers and tables, as JSON has them.
    """

    statistic: str
    value: float
    threshold: float
    p: float
    found: str
    advice: str
    interval: Interval = NO_INTERVAL
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class NotApplicable(Exception):
    """A check has nothing to say here; the message says why, and what would have to be given."""


class OutOfTime(NotApplicable):
    """It would not end in the time that there is."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One check of an audit.

    Attributes:
        name: as given to `--checks`.
        question: what it answers.
        run: measures; raises `NotApplicable`.
        level: the audit from which on it is run.
        seconds: that it will take, about.
    """

    name: Name
    question: str
    run: Callable[[Subject], Result]
    level: Level
    seconds: Callable[[Subject], float]


@dataclasses.dataclass(frozen=True)
class Finding:
    """A check with its verdict; `Result` says what the numbers are.

    Attributes:
        verdict: "fail" where the p-value is rejected together with those of all other checks (Holm).
        seconds: that it took; conditions: the level and the fresh prompts that it was found at.
        left_out: whether it was not run for want of time.
    """

    check: str
    question: str
    verdict: Verdict
    statistic: str
    value: float | None
    interval: tuple[float | None, float | None]
    threshold: float | None
    p: float | None
    found: str
    advice: str
    seconds: float
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    conditions: str = ""
    left_out: bool = False

    @classmethod
    def of(cls, check: Check, result: Result, seconds: float) -> Finding:
        """Not judged yet: a finding passes until all are read together."""
        low, high = result.interval
        return cls(
            check.name, check.question, "pass", result.statistic, _number(result.value), (_number(low), _number(high)),
            _number(result.threshold), result.p, result.found, result.advice, seconds, dict(result.details),
        )  # fmt: skip

    @classmethod
    def none(cls, check: Check, reason: str, *, left_out: bool = False) -> Finding:
        """The check had nothing to say."""
        return cls(
            check.name, check.question, "not applicable", "", None, (None, None), None, None, reason, "", 0.0,
            left_out=left_out,
        )  # fmt: skip

    def number(self) -> str:
        """The value with its interval and what it may be."""
        if self.value is None:
            return "–"
        low, high = self.interval
        interval = "" if low is None or high is None else in_brackets((low, high))
        return f"{rounded(self.value)}{interval}"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclasses.dataclass(frozen=True, repr=False)
class AuditReport(Shown):
    """All findings on one circuit.

    Attributes:
        model, task, metric, ablation, method: of the circuit and of the audit.
        n_edges, n_edges_total: of the circuit, and of the graph.
        prompts: where the audit's prompts come from; n_prompts: how many there are.
        claim: the faithfulness that the circuit is held to.
        level: "quick", "usual" or "full".
        findings: one a check, in order.
        level_of_alarm: probability with which a right circuit is faulted by any check.
        key: digest of all that the findings depend on.
        complete: whether every check that was asked for has been run.
    """

    model: str
    task: str
    metric: str
    ablation: str
    method: str
    n_edges: int
    n_edges_total: int
    prompts: str
    n_prompts: int
    claim: float
    level: str
    findings: tuple[Finding, ...]
    level_of_alarm: float = ALARM
    key: str = ""
    complete: bool = True

    def __getitem__(self, check: str) -> Finding:
        """The finding of one check by its name."""
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(check)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that the circuit fails."""
        return tuple(finding.check for finding in self.findings if finding.verdict == "fail")

    @property
    def passed(self) -> tuple[str, ...]:
        """Names of the checks that it passes."""
        return tuple(finding.check for finding in self.findings if finding.verdict == "pass")

    def _summary(self) -> str:
        judged = len(self.failed) + len(self.passed)
        failed = f", fails {', '.join(self.failed)}" if self.failed else ""
        return f"{self.n_edges} of {self.n_edges_total} edges, passes {len(self.passed)} of {judged} checks{failed}"

    def facts(self) -> dict[str, str]:
        return {
            "circuit": f"{self.n_edges} of {self.n_edges_total} edges of {self.model} on {self.task}"
            + (f", by {self.method}" if self.method else ""),
            "held to": f"faithfulness {self.claim:g} in {self.metric} under {self.ablation} ablation",
            "prompts": f"{self.n_prompts} {self.prompts}",
            "verdict": self.verdict(),
        }

    def verdict(self) -> str:
        """In one line."""
        judged = len(self.failed) + len(self.passed)
        more = "" if self.complete else "; not all checks were run"
        if not judged:
            return f"no check applies, so nothing is said of it{more}"
        if not self.failed:
            which = f"all {judged} checks that apply" if judged > 1 else "the one check that applies"
            return f"passes {which}{more}"
        return f"fails {len(self.failed)} of {judged} checks: {', '.join(self.failed)}{more}"

    def table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """A line a check."""
        rows: list[Sequence[str]] = [
            (f.check, f.verdict, f.number(), "–" if f.p is None else f"{f.p:.2g}", f.found) for f in self.findings
        ]
        return ("check", "verdict", "value", "p", "what was found"), rows
