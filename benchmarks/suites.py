"""Suites: what methods are compared on.

A case is a model, a task of it and the graph whose edges count. Where the true circuit is known it comes with the
task, for the same ablation and the same distribution of inputs as the prompts.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from acdc.circuit import Circuit
from acdc.errors import AcdcError, unknown
from acdc.model.programs.interpbench import is_interpbench
from acdc.model.programs.tracr import builtin_names
from acdc.tasks.programs import interp

OWN = "own"
"""The suite of a model and a task of one's own."""
_WHERE = ("name", "model", "task", "task_options", "loading", "truth", "digest")
"""Fields of a case that its digest does not take as they are."""
HELD_OUT, TOKENIZER = "held_out", "tokenizer"
"""Options of a task, and of loading, that may be files."""
TRAINED = ("ioi", "greater-than", "gendered-pronoun", "sva", "docstring", "induction", "fact-recall")
"""What the `tiny-tasks` models are trained to do."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem for every method.

    Attributes:
        name: unique in its suite.
        task, task_options: as for `acdc.tasks.load`.
        loading: how the model is loaded, as for `acdc.load`.
        ablation: what removed edges carry; None: the task's own.
        qkv, inputs: options of the graph, see `Graph`.
        gradient_metric: the metric that methods are given, instead of the task's, that see only its gradient at the
            clean prompt: there a distance from the full model has none.
        truth: folder or `circuit.json` of the true circuit; None: the task's own, if it has one.
        digest: `digest_of` the case where its files are one's own, so that other files of the same names are noticed.
    """

    name: str
    model: str
    task: str
    task_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ablation: str | None = None
    qkv: Literal["split", "merged"] = "split"
    inputs: Literal["single", "split", "token"] = "single"
    gradient_metric: str | None = None
    truth: str | None = None
    digest: str | None = None
    loading: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """What it is of, each a name or files: model, task, true circuit, and what else these are made of."""
        truth = None if self.truth is None else str(_true_file(self.truth))
        others = truth, self.task_options.get(HELD_OUT), self.loading.get(TOKENIZER)
        return (self.model, self.task, *(str(name) for name in others if name is not None))

    def placed(self, place: Callable[[str], str]) -> Case:
        """The case with each of these names changed."""

        def changed(options: Mapping[str, Any], name: str) -> dict[str, Any]:
            return {key: place(str(value)) if key == name else value for key, value in options.items()}

        return dataclasses.replace(
            self,
            model=place(self.model),
            task=place(self.task),
            truth=None if self.truth is None else place(self.truth),
            task_options=changed(self.task_options, HELD_OUT),
            loading=changed(self.loading, TOKENIZER),
        )


@dataclasses.dataclass(frozen=True)
class Suite:
    """Cases that are reported together."""

    name: str
    description: str
    cases: tuple[Case, ...]


def _programs(
    names: Sequence[str], *, ablation: str = "resample", distribution: str = "varied"
) -> tuple[Case, ...]:
    return tuple(
        Case(
            name.partition("-")[2], name, name, {"distribution": distribution}, ablation, inputs="split",
            gradient_metric="projection",
        )
        for name in names
    )  # fmt: skip


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "tracr",
            "compiled programs; resample ablation, inputs that differ in tokens, lengths and positions",
            _programs(builtin_names()),
        ),
        Suite(
            "tracr-zero",
            "compiled programs; zero ablation, inputs of mixed lengths",
            _programs(builtin_names(), ablation="zero", distribution="mixed"),
        ),
        Suite(
            "interp",
            "networks trained to run a program part for part; resample ablation, inputs that differ in tokens, lengths "
            "and positions",
            _programs(interp.builtin_names()),
        ),
        Suite(
            "smoke",
            "a few small compiled programs, to try things out",
            _programs([f"tracr-{name}" for name in ("hist", "reverse", "proportion", "sort", "weighted")]),
        ),
        Suite(
            "trained",
            "trained models, whose true circuits nobody knows: faithfulness only",
            (
                *(
                    Case(f"induction-2l-{ablation}", "induction-2l", "induction", ablation=ablation)
                    for ablation in ("resample", "mean", "zero")
                ),
                *(
                    Case(f"{model}-{task}", model, task)
                    for model in ("tiny-tasks", "tiny-tasks-gqa")
                    for task in TRAINED
                ),
            ),
        ),
    )
}
"""Every suite by name."""


def _interpbench(folder: Path) -> Suite:
    """The InterpBench cases in a folder; their true edges are those between heads, with q, k and v together.

    As in `own_suite`, the name of each ends in a digest of its files.
    """
    if not folder.is_dir():
        raise unknown("suite", str(folder), SUITES)
    folders = [folder, *sorted(folder.iterdir())]
    cases = [
        _of_files(
            path.name,
            Case("", str(path), str(path), qkv="merged", inputs="split", gradient_metric="projection"),
        )
        for path in folders
        if is_interpbench(path)
    ]
    if not cases:
        raise AcdcError(f"no InterpBench case in {folder}: expected ll_model.pth there, or in a folder of it")
    return Suite(folder.resolve().name, "InterpBench models from a local folder; resample ablation", tuple(cases))


def true_circuit(path: str | Path) -> Circuit:
    """The circuit in a folder, or in a `circuit.json`, that counts as the true one."""
    return Circuit.load(_true_file(path).parent)


def _true_file(path: str | Path) -> Path:
    return Path(path) if Path(path).name == "circuit.json" else Path(path) / "circuit.json"


def own_suite(
    model: str,
    task: str,
    *,
    truth: str | None = None,
    ablation: str | None = None,
    metric: str | None = None,
    task_options: Mapping[str, Any] | None = None,
    loading: Mapping[str, Any] | None = None,
) -> Suite:
    """A suite of one case: a model and a task of one's own, in the same table as the others.

    The graph has the options (q, k and v, inputs) of the true circuit's, if there is one. The case's name ends in a
    digest of the files it is of, so that rows of another file under the same name are not taken for its own.

    Args:
        model, loading, task, task_options: as for `acdc.load` and `acdc.tasks.load`, names or files.
        truth: the folder or file of a circuit that counts as the true one.
        ablation: instead of the task's.
        metric: what methods are given that see only its gradient at the clean prompt; None: the task's.

    Raises:
        AcdcError: there is no such truth.
    """
    options: dict[str, Any] = {"task_options": dict(task_options or {}), "loading": dict(loading or {})}
    if truth is not None:
        graph = true_circuit(truth).graph
        options |= {"qkv": graph.qkv, "inputs": graph.inputs}
    name = "-".join(re.findall(r"[\w.]+", f"{Path(model).name}-{Path(task).stem}"))
    case = Case("", model, task, ablation=ablation, gradient_metric=metric, truth=truth, **options)
    return Suite(OWN, f"{model} on {task}", (_of_files(name, case.placed(str)),))  # other processes take texts


def _of_files(name: str, case: Case) -> Case:
    """A case that is named, whose rows are not taken for those of other files under this name."""
    digest = digest_of(case)
    return dataclasses.replace(case, name=f"{name}-{digest}", digest=digest)


def digest_of(case: Case) -> str:
    """Of a case's options and of the contents of its files, wherever they are; of what is no file, of its name."""
    options = [getattr(case, field.name) for field in dataclasses.fields(case) if field.name not in _WHERE]
    for given in (case.task_options, case.loading):
        if settings := {key: value for key, value in given.items() if key not in (HELD_OUT, TOKENIZER)}:
            options.append(settings)
    found = hashlib.sha256(repr(options).encode())
    for name in dict.fromkeys(case.names):
        files = _files(name)
        found.update(name.encode() if not files else b"")
        for path in files:
            with path.open("rb") as file:
                found.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:6]


def check_digest(case: Case) -> None:
    """Refuse a case whose files are not those that it was made of.

    Raises:
        AcdcError: a file has changed since, or is another one, or missing, on this machine.
    """
    if case.digest is not None and digest_of(case) != case.digest:
        raise AcdcError(
            f"the files of {case.name} ({', '.join(dict.fromkeys(case.names))}) are not those that the "
            "benchmark was started with: one was changed, or is another or missing on this machine; start it again"
        )


def _files(name: str) -> list[Path]:
    """The files that a name stands for, if it is a path."""
    path = Path(name)
    return sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path] if path.is_file() else []


def get_suite(name: str, *, cases: Sequence[str] | None = None) -> Suite:
    """A suite, or a part of it.

    Args:
        name: of `SUITES`, or a folder: an InterpBench case, or one with a folder for each.
        cases: names of cases, or patterns like "sort*"; None: all.

    Raises:
        AcdcError: there is no such suite or case.
    """
    suite = SUITES[name] if name in SUITES else _interpbench(Path(name))
    if cases is None:
        return suite
    known = [_called(case) for case in suite.cases]
    chosen: set[str] = set()
    for pattern in cases:
        pattern = pattern.removeprefix("tracr-").removeprefix("interp-")
        found = fnmatch.filter(known, pattern)
        if not found:
            if set("*?[") & set(pattern):
                raise AcdcError(f"no case of suite {name!r} is like {pattern!r}; known: {', '.join(known)}")
            raise unknown(f"case of suite {name!r}", pattern, known)
        chosen.update(found)
    return dataclasses.replace(suite, cases=tuple(case for case in suite.cases if _called(case) in chosen))


def _called(case: Case) -> str:
    """What a user calls a case: its name without the digest."""
    return case.name if case.digest is None else case.name.removesuffix(f"-{case.digest}")
