"""Can an audit be trusted? Faults that were planted, true circuits, proofs, and the circuits that methods find.

    python -m acdc.benchmarks.measuring.trust -o docs/trust

adds the rows that `results.csv` lacks, and writes trust.md beside the folder from all it has. It can be stopped at any
time. A fault counts as found if its check's p-value is below 5% of a twelfth: Holm then rejects it in every audit,
whatever the other checks say.
"""

from __future__ import annotations

import csv
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

import acdc
from acdc.auditing.record import ALARM, AuditReport
from acdc.benchmarks.measuring.claims import CLAIMS
from acdc.benchmarks.measuring.planted import KINDS, Case, circuits
from acdc.benchmarks.measuring.trust_page import page
from acdc.benchmarks.suites import SUITES, TRAINED
from acdc.certificates.enumeration import MOST_PAIRS, enumerate_pairs
from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.store.writing import write_atomically
from acdc.tasks.programs.program_task import ProgramTask

CHECKS = 12
NOTES = "## What this says"
"""Heading of the part of the page that is written by hand."""
SEEDS = range(5)
METHODS = ("guided", "acdc", "eap-ig", "eap", "clean-corrupted", "exact", "random")
FEW = 64
"""Fresh prompts of the quick audit."""
THOROUGH = ("guided", "acdc", "eap-ig")
"""Methods whose circuits are put to all twelve checks."""
SEARCHES = ("guided",)
"""Methods that search again on other samples."""
TRAINED_CASES = [
    ("induction-2l", "induction"),
    *((model, task) for model in ("tiny-tasks", "tiny-tasks-gqa") for task in TRAINED),
]
DISTRIBUTIONS = ("fixed", "mixed", "permuted", "varied")


@dataclasses.dataclass(frozen=True)
class Row:
    """One audit, or one proof.

    Attributes:
        part: "fault", "truth", "proof", "trained" (the quick audit), "usual" (all checks), "search" or "claim".
        name: of the fault, the level of the audit, the distribution, the method, or what was claimed; case: of the
            model (and task).
        ok: whether it is as it ought to be: found, without an alarm, proved or not refuted, passing all.
        value: of the check, the share of changed outputs, the mean overlap of two searches, or what `claims` measured;
            passed, judged: numbers of checks, of pairs, of edges that searches keep always and ever, or of edges of the
            smallest and the largest circuit.
        said: checks that failed, or what was found.
        seconds: of wall time.
    """

    part: str
    name: str
    case: str
    seed: int
    ok: bool
    value: float
    passed: int
    judged: int
    seconds: float
    said: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.part, self.name, self.case, self.seed


Rows = dict[tuple[str, str, str, int], Row]


def read(path: Path) -> Rows:
    """The rows of a table."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = [
            Row(
                r["part"], r["name"], r["case"], int(r["seed"]), r["ok"] == "True", float(r["value"]), int(r["passed"]),
                int(r["judged"]), float(r["seconds"]), r["said"],
            )
            for r in csv.DictReader(file)
        ]  # fmt: skip
    return {row.key: row for row in rows}


def add(path: Path, row: Row) -> None:
    """Append a row."""
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        if new:
            writer.writeheader()
        writer.writerow(dataclasses.asdict(row))


def faults(known: Rows, n: int) -> Iterator[Row]:
    """Each kind of planted fault before its check, and before the quick audit."""
    for kind in KINDS:
        have = sum(key[:2] == ("fault", kind.name) for key in known)
        if have >= n:
            continue
        for i, (name, seed, planted) in enumerate(circuits(kind, n)):
            case = f"{name} {i}"
            if ("fault", kind.name, case, seed) in known:
                continue
            started = time.perf_counter()
            report = acdc.audit(
                planted.model, planted.task, planted.circuit, level=kind.level,  # type: ignore[arg-type]
                checks=[kind.check], seed=seed, **planted.options,
            )  # fmt: skip
            found = report.findings[0]
            ok = found.p is not None and found.p <= ALARM / CHECKS
            seconds = time.perf_counter() - started
            yield Row("fault", kind.name, case, seed, ok, found.value or 0.0, int(not ok), 1, seconds, found.found)


def truths(known: Rows, level: str) -> Iterator[Row]:
    """Audits of true circuits, which ought to raise no alarm."""
    names = [case.model for suite in ("tracr", "interp") for case in SUITES[suite].cases]
    for seed in SEEDS:
        for name in names:
            if ("truth", level, name, seed) in known:
                continue
            case = Case.load(name, seed)
            circuit = Circuit(case.graph, case.truth)
            yield _audited("truth", level, name, seed, lambda c=case, x=circuit: acdc.audit(  # type: ignore[misc]
                c.model, c.task, x, level=level, seed=c.task.seed,  # type: ignore[arg-type]
            ))  # fmt: skip


def proofs(known: Rows, most_runs: int) -> Iterator[Row]:
    """Every true circuit on all pairs of inputs, or as many as can be."""
    names = [case.model for suite in ("tracr", "interp") for case in SUITES[suite].cases]
    for distribution in DISTRIBUTIONS:
        for name in names:
            if ("proof", distribution, name, 0) in known:
                continue
            model, task = acdc.load(name), acdc.tasks.load(name, distribution=distribution)
            assert isinstance(task, ProgramTask)
            started = time.perf_counter()
            truth = task.truth()
            if truth is None:
                continue
            graph = model.graph(inputs="split")
            found = enumerate_pairs(model, task, graph, truth.mask(graph), most=most_runs)
            seconds = time.perf_counter() - started
            said = f"{'proof' if found.proof else 'no proof'}: {found.what}"
            ok = found.changed == 0
            yield Row(
                "proof",
                distribution,
                name,
                0,
                ok,
                found.mean,
                found.pairs - found.changed,
                found.pairs,
                seconds,
                said,
            )


def trained(known: Rows, part: str, level: str, methods: Sequence[str], size: int | None) -> Iterator[Row]:
    """Circuits that methods find in trained models, on so many fresh prompts, or as many as the audit draws itself."""
    for model_name, task_name in TRAINED_CASES:
        for method in methods:
            case = f"{model_name} {task_name}"
            if (part, method, case, 0) in known:
                continue
            model, task = acdc.load(model_name), acdc.tasks.load(task_name)
            try:
                circuit = acdc.discover(model, task, method)
            except AcdcError as error:
                yield Row(part, method, case, 0, False, 0.0, 0, 0, 0.0, str(error)[:100])
                continue
            yield _audited(part, method, case, 0, lambda m=model, t=task, c=circuit: acdc.audit(  # type: ignore[misc]
                m, t, c, level=level, size=size,  # type: ignore[arg-type]
            ))  # fmt: skip


def searches(known: Rows, n: int) -> Iterator[Row]:
    """How often each edge is kept when the search sees other prompts."""
    for model_name, task_name in TRAINED_CASES:
        for method in SEARCHES:
            case = f"{model_name} {task_name}"
            if ("search", method, case, 0) in known:
                continue
            started = time.perf_counter()
            model, task = acdc.load(model_name), acdc.tasks.load(task_name)
            circuit = acdc.discover(model, task, method)
            report = acdc.audit(model, task, circuit, checks=["stability"], searches=n, size=64)
            found = report.findings[0].details["searches on other prompts"]
            seconds = time.perf_counter() - started
            overlap, always, ever = found["overlap of two"], found["always"], found["ever"]
            yield Row("search", method, case, 0, True, overlap, always, ever, seconds, found["samples"])


def claims(known: Rows) -> Iterator[Row]:
    """What critics found of other circuits."""
    for name, (measure, only) in CLAIMS.items():
        for model_name, task_name in TRAINED_CASES:
            case = f"{model_name} {task_name}"
            if ("claim", name, case, 0) in known or only not in (None, task_name):
                continue
            model = acdc.load(model_name)
            started = time.perf_counter()
            found = list(measure(model, acdc.tasks.load(task_name).prepare(model)))
            seconds = time.perf_counter() - started
            for one in found:
                yield Row("claim", one.name, case, 0, True, one.value, one.least, one.most, seconds, "")


def _audited(part: str, name: str, case: str, seed: int, run: Callable[[], AuditReport]) -> Row:
    started = time.perf_counter()
    report = run()
    seconds = time.perf_counter() - started
    passed, failed = len(report.passed), len(report.failed)
    return Row(
        part,
        name,
        case,
        seed,
        not failed,
        report.n_edges,
        passed,
        passed + failed,
        seconds,
        " ".join(report.failed),
    )


def main(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the table.")],
    part: Annotated[
        str,
        typer.Option(
            help="faults, truths, proofs, trained, usual, searches, claims, or none to write the page alone."
        ),
    ] = "all",
    n: Annotated[int, typer.Option("--circuits", help="Circuits of each kind of fault.")] = 60,
    runs: Annotated[int, typer.Option(help="Runs of each proof on one pair of inputs, at most.")] = MOST_PAIRS,
    level: Annotated[str, typer.Option(help="Of the audits of truths.")] = "quick",
    again: Annotated[int, typer.Option("--searches", help="On other samples of prompts, of each circuit.")] = 20,
) -> None:
    """Measure what is missing."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.csv"
    known = read(path)
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "faults": lambda: faults(known, n),
        "truths": lambda: truths(known, level),
        "proofs": lambda: proofs(known, runs),
        "trained": lambda: trained(known, "trained", "quick", METHODS, FEW),
        "usual": lambda: trained(known, "usual", "usual", THOROUGH, None),
        "searches": lambda: searches(known, again),
        "claims": lambda: claims(known),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, rows in parts.items():
            if part in ("all", name):
                for row in rows():
                    add(path, row)
                    print(*row.key, row.ok, row.said[:80], flush=True)
    where = out.parent / "trust.md"
    notes = where.read_text().partition(NOTES)[2] if where.is_file() else ""
    write_atomically(where, page(read(path).values(), (NOTES + notes) if notes else ""))


if __name__ == "__main__":
    typer.run(main)
