"""`audit`: run the checks on a circuit, read their p-values together, and note each as it is done, to go on from there.

A right circuit is faulted by any check in at most 5% of audits: p-values are rejected by Holm's rule, which holds
whatever the checks share. What a note belongs to is a digest of the weights, the prompts, the circuit and the options;
notes of anything else are neither taken nor replaced. A finding of a shallower level, or on other fresh prompts, gives
way to a new one. Audits of one circuit may run at once, each with checks of its own: their findings come together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from acdc.auditing.checks import CHECKS
from acdc.auditing.prompts import FEWEST
from acdc.auditing.record import ALARM, LEVELS, AuditReport, Check, Finding, Level, NotApplicable, OutOfTime
from acdc.auditing.stability import SEARCHES
from acdc.auditing.subject import Subject
from acdc.circuit import Circuit
from acdc.circuit.provenance import plain
from acdc.engine import memory
from acdc.engine.belonging import prompts_digest, weights_digest
from acdc.engine.problem import Progress, no_progress
from acdc.errors import AcdcError, check_names, check_type, check_whole, unknown
from acdc.metrics import OUTCOMES, Outcome
from acdc.metrics.hypotheses import holm
from acdc.model.model import Model
from acdc.store.amounts import bytes_of
from acdc.store.reading import read_json
from acdc.store.writing import fields_digest, one_at_a_time, write_atomically
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task

FORMAT = "acdc-audit"
VERSION = 3


@memory.explained
@torch.inference_mode(False)
def audit(
    model: Model,
    task: Task | Dataset | Prompts,
    circuit: Circuit,
    *,
    level: Level = "usual",
    checks: Sequence[str] | None = None,
    faithfulness: float | None = None,
    metric: Metric | None = None,
    ablation: str | None = None,
    shift: Task | Dataset | Prompts | None = None,
    size: int | None = None,
    searches: int | None = None,
    limit: float | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    seed: int = 0,
    notes: str | Path | None = None,
    progress: Progress = no_progress,
) -> AuditReport:
    """Put a circuit, of whatever origin, to every check that applies.

    Args:
        task: a recipe (`acdc.tasks.load`) draws fresh prompts; a dataset is judged on its held-out ones.
        level: "quick": what costs seconds; "usual"; "full": also searches on large models, and more of everything.
        checks: names of checks, to run these alone; None: all of the level.
        faithfulness: what the circuit is held to; None: what it was searched for, else the task's.
        metric, ablation: instead of the task's own.
        shift: a second task, or prompts, that the circuit ought to hold on too.
        size: fresh prompts to draw; None: 512 for models of up to 0.2 M parameters, 256 (128 at level "quick") for
            those of up to 2 M, 64 for others.
        searches: how often the check `stability` searches again, on other samples of prompts, to tell how often each
            edge is kept; None: 3 at level "full", else 0.
        limit: seconds; checks that will not end in time are left out, and say how long they would take.
        notes: a JSON file where each check's finding is noted, and from which the same audit goes on.

    Returns:
        One finding a check, judged together.

    Raises:
        AcdcError: the circuit is of another graph than the model's, an unknown check, too few prompts, or a metric that
            is the same with and without all edges.
    """
    check_type("a Circuit", circuit, Circuit)
    chosen = _chosen(level, checks)
    if limit is not None and not limit > 0:
        raise AcdcError(f"expected a limit above 0 seconds, got {limit}")
    if size is not None:
        check_whole("a number of prompts", size, least=FEWEST)
    if searches is not None:
        check_whole("a number of searches", searches, least=0)
        if searches and "stability" not in {check.name for check in chosen}:
            raise AcdcError(
                "searches are of the check stability, which is not asked for: leave them out, or ask for it"
            )
    if faithfulness is not None and not 0 < faithfulness <= 1:
        raise AcdcError(f"expected a faithfulness above 0 and at most 1, got {faithfulness}")
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    if dataset.exact and faithfulness is not None:
        raise AcdcError(
            f"{dataset.name} has exact outputs, and a circuit is held to every one of them: leave faithfulness out"
        )
    searched_for = circuit.provenance.selection.get("faithfulness")
    own = float(searched_for) if isinstance(searched_for, int | float) else dataset.faithfulness
    subject = Subject(
        model, task, dataset, circuit, own if faithfulness is None else faithfulness, level, seed=seed,
        memory=None if memory is None else bytes_of(memory), batch_size=batch_size, progress=progress, size=size,
        other=shift, searches=searches, until=None if limit is None else time.monotonic() + limit,
    )  # fmt: skip
    key = _key(subject)
    known = _noted(notes, key, level, dataset.name)
    missing = [check for check in chosen if not _is_of(known.get(check.name), subject)]
    if missing:
        _ = subject.on_fresh  # what is wrong with model, circuit and prompts shows here, before any check
    found: dict[str, Finding] = {}
    for number, check in enumerate(missing, len(chosen) - len(missing)):
        progress(number, len(chosen), f"check {check.name}")
        found[check.name] = finding = _run(check, subject)
        if notes is not None and finding.seconds:  # what was left out for want of time may be run the next time
            _note(Path(notes), subject, key, known, found, complete=False)
    if notes is not None and missing:
        return _note(Path(notes), subject, key, known, found, complete=True)
    return _report(subject, key, _on_its_prompts(known, subject) | found, complete=True)


def _chosen(level: str, names: Sequence[str] | None) -> list[Check]:
    if level not in LEVELS:
        raise unknown("level of an audit", level, LEVELS)
    if names is None:
        return [check for check in CHECKS.values() if LEVELS.index(check.level) <= LEVELS.index(level)]
    check_names("checks", names)
    if not names:
        raise AcdcError("expected at least one check")
    for name in names:
        if name not in CHECKS:
            raise unknown("check", name, CHECKS)
    return [check for check in CHECKS.values() if check.name in names]


def _run(check: Check, subject: Subject) -> Finding:
    started = time.perf_counter()
    try:
        subject.check_time(check.seconds, check.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = check.run(subject)
    except NotApplicable as reason:
        return Finding.none(check, str(reason), left_out=isinstance(reason, OutOfTime))
    except AcdcError as error:  # a check that this model or metric does not allow
        return Finding.none(check, f"it cannot be run here: {error}")
    finding = Finding.of(check, result, max(time.perf_counter() - started, 1e-9))
    return dataclasses.replace(finding, details=plain(finding.details), conditions=_conditions(subject))


def _report(subject: Subject, key: str, found: Mapping[str, Finding], *, complete: bool) -> AuditReport:
    """The findings judged together; an audit is not complete whose time was too short for some check."""
    findings = [found[name] for name in CHECKS if name in found]
    complete = complete and not any(f.left_out for f in findings)
    tested = [f for f in findings if f.p is not None]
    rejected = holm([f.p for f in tested if f.p is not None], ALARM)
    failed = {f.check for f, bad in zip(tested, rejected, strict=True) if bad}
    judged = [
        f
        if f.verdict == "not applicable"
        else dataclasses.replace(f, verdict="fail" if f.check in failed else "pass")
        for f in findings
    ]
    made, dataset = subject.circuit.provenance, subject.dataset
    return AuditReport(
        model=subject.model.name,
        task=dataset.name,
        metric=dataset.metric.name,
        ablation=dataset.ablation,
        method=made.method,
        n_edges=subject.circuit.n_edges,
        n_edges_total=subject.graph.n_edges,
        prompts=subject.where,
        n_prompts=len(subject.fresh),
        claim=subject.claim,
        level=subject.level,
        findings=tuple(judged),
        key=key,
        complete=complete,
    )


# ---- notes ------------------------------------------------------------------------------------------------------


def _key(subject: Subject) -> str:
    """A digest of all that the findings depend on, but for the conditions of each."""
    dataset, made = subject.dataset, subject.circuit.provenance
    values = [
        VERSION, weights_digest(subject.model), prompts_digest(dataset.discovery), repr(subject.graph),
        hashlib.sha256(subject.edges.tobytes()).hexdigest(), _metric(dataset.metric), dataset.ablation, subject.claim,
        subject.circuit.unit, made.method, made.options, made.selection, subject.seed,
        None if subject.shifted is None else prompts_digest(subject.shifted.discovery),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()


def _metric(outcome: Outcome) -> list[str]:
    """What tells a metric from others: its name, and of a user's function what it does, as far as its code says."""
    if OUTCOMES.get(outcome.name) is outcome:
        return [outcome.name]
    function = getattr(outcome.function, "given", outcome.function)
    code = getattr(function, "__code__", None)
    if code is None:
        return [outcome.name, repr(function)]
    constants = [value for value in code.co_consts if isinstance(value, int | float | str)]
    return [outcome.name, repr((code.co_code, constants, code.co_names))]


def _conditions(subject: Subject) -> str:
    return f"{subject.level}, on {prompts_digest(subject.fresh)}"


def _on_its_prompts(findings: Mapping[str, Finding], subject: Subject) -> dict[str, Finding]:
    """Those on the prompts of this audit, of whatever level: one report is of one set of prompts."""
    where = prompts_digest(subject.fresh)
    return {name: found for name, found in findings.items() if found.conditions.endswith(where)}


def _is_of(finding: Finding | None, subject: Subject) -> bool:
    """Whether a finding that was noted is what this audit would find."""
    if finding is None or finding.conditions != _conditions(subject):
        return False
    asked = subject.searches if finding.check == "stability" else None
    return asked is None or asked == finding.details.get(SEARCHES, {}).get("searches", 0)


def _noted(notes: str | Path | None, key: str, level: Level, task: str) -> dict[str, Finding]:
    """The findings on this circuit that a file holds.

    Raises:
        AcdcError: the file is of another audit, of a deeper one, damaged, or something else.
    """
    if notes is None or not Path(notes).is_file():
        return {}
    try:
        value = read_json(Path(notes))
        if value["format"] != FORMAT:
            raise ValueError
        other, of = value["key"] != key, value["task"]
        changed = value.get("sha256") != fields_digest(value)
        known = {row["check"]: _finding(row) for row in value["findings"] if row["seconds"]}
    except (AcdcError, KeyError, TypeError, ValueError):
        raise AcdcError(
            f"{notes} is damaged, or not of an audit: expected the findings that an audit notes; delete it to begin "
            "anew, or choose another"
        ) from None
    if of != task:
        raise AcdcError(
            f"{notes} holds the findings of another audit (of the prompts of {of}): write to another folder with "
            "--out, or replace it with --force"
        )
    if other:
        raise AcdcError(
            f"{notes} holds the findings of another audit (of another metric, seed, circuit, weights or prompts): "
            "write to another folder with --out, or replace it with --force"
        )
    if changed:
        raise AcdcError(
            f"{notes} was changed after the audit had written it, so its findings are not taken over: delete it to "
            "begin anew, or replace it with --force"
        )
    if LEVELS.index(value["level"]) > LEVELS.index(level):
        raise AcdcError(
            f"{notes} holds the findings of a deeper audit, of level {value['level']!r}: ask for that level to go on "
            "from it, write to another folder with --out, or replace it with --force"
        )
    return {name: finding for name, finding in known.items() if name in CHECKS}


def _finding(row: dict[str, Any]) -> Finding:
    low, high = row["interval"]
    return Finding(**{**row, "interval": (low, high)})


def _note(
    path: Path,
    subject: Subject,
    key: str,
    known: Mapping[str, Finding],
    found: Mapping[str, Finding],
    *,
    complete: bool,
) -> AuditReport:
    """Write the findings of this audit beside those that are there, which another one may have added meanwhile.

    Args:
        known: what was there when this audit began.
        found: by this one; of what was left out, a complete audit alone says so.

    Raises:
        AcdcError: the file is of another audit by now.
    """
    with one_at_a_time(path.absolute().parent):
        there = _noted(path, key, subject.level, subject.dataset.name)
        run = {name: finding for name, finding in found.items() if finding.seconds}
        left_out = found if complete else {}
        of_it = _on_its_prompts({**known, **there}, subject)
        report = _report(subject, key, {**left_out, **of_it, **run}, complete=complete)
        write_atomically(path, report_json(report))
    return report


def report_json(report: AuditReport) -> str:
    """The report as JSON, with a digest of its fields; numbers that JSON has no word for as null."""
    value = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(report), "failed": list(report.failed)}
    finite = _finite(plain(value))
    return json.dumps(finite | {"sha256": fields_digest(finite)}, indent=1) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
